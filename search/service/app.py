"""The API and the page, on FastAPI. What a route needs of the rest of the service stands in `Service`."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata, resources
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response

from search.service.admission import RefusedSpecError
from search.service.guard import Guard
from search.service.routes_files import files
from search.service.routes_jobs import jobs
from search.service.routes_specs import specs
from search.service.service import RefusedError, Service
from search.service.store import UnknownJobError, WrongStateError
from search.service.worker import TaskError
from search.theme import CSS

_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def create_app(service: Service) -> FastAPI:
    """The application; it starts and stops the service's supervisor."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(
        title="amc-search", version=metadata.version("amc-search"), lifespan=lifespan, docs_url=None, redoc_url=None,
        openapi_url="/api/openapi.json", summary="Searches for pruning ratios: submitted, watched, compared, fetched.",
    )  # fmt: skip
    app.state.service = service
    app.add_middleware(Guard, token=service.settings.token, limits=service.settings.limits)
    for router in (jobs, specs, files):
        app.include_router(router)
    app.add_api_route("/", _page, include_in_schema=False)
    app.add_api_route("/assets/{name}", _asset, include_in_schema=False)
    _explain_errors(app)
    return app


def _page(request: Request) -> Response:
    return _static(request, "index.html")


def _asset(name: str, request: Request) -> Response:
    return _static(request, name)


def _static(request: Request, name: str) -> Response:
    """A file of the page by its exact name; the style of reports too."""
    headers = {"cache-control": "no-cache"}
    if name == "theme.css":
        return Response(CSS, media_type="text/css", headers=headers)
    web = resources.files("search.service") / "web"
    found = next((entry for entry in web.iterdir() if entry.name == name), None) if web.is_dir() else None
    kind = _KINDS.get(name[name.rfind(".") :]) if found else None
    if found is None or kind is None:
        return JSONResponse({"detail": "there is no such file"}, 404)
    return Response(found.read_bytes(), media_type=kind, headers=headers)


def _explain_errors(app: FastAPI) -> None:
    """Every error that a client can mend is a 4xx that says what is wrong and where."""

    def told(status: int) -> Any:
        async def handler(request: Request, error: Exception) -> Response:
            return JSONResponse({"detail": str(error)}, status)

        return handler

    async def faults(request: Request, error: Exception) -> Response:
        if not isinstance(error, RefusedSpecError):
            raise error
        body = {"detail": str(error), "errors": [fault.model_dump() for fault in error.faults]}
        return JSONResponse(body, 422)

    async def invalid(request: Request, error: Exception) -> Response:
        if not isinstance(error, RequestValidationError):
            raise error
        errors = [
            {"path": ".".join(str(part) for part in fault["loc"]), "message": fault["msg"]} for fault in error.errors()
        ]
        detail = "; ".join(f"{fault['path']}: {fault['message']}" for fault in errors)
        return Response(json.dumps({"detail": detail, "errors": errors}), 422, media_type="application/json")

    async def refused(request: Request, error: Exception) -> Response:
        status = error.status if isinstance(error, RefusedError) else 500
        return JSONResponse({"detail": str(error)}, status)

    async def unwritable(request: Request, error: Exception) -> Response:
        logging.getLogger(__name__).exception("the disk", exc_info=error)
        return JSONResponse({"detail": f"the server's disk: {getattr(error, 'strerror', None) or error}"}, 507)

    app.add_exception_handler(RefusedSpecError, faults)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(UnknownJobError, told(404))
    app.add_exception_handler(WrongStateError, told(409))
    app.add_exception_handler(TaskError, told(422))
    app.add_exception_handler(OSError, unwritable)
    app.add_exception_handler(sqlite3.OperationalError, unwritable)
