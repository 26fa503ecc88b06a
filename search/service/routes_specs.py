"""Routes of what a job can be made of: specs, networks, data, tables, agents, uploaded weights."""

from __future__ import annotations

import secrets
from importlib import metadata
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool

from search.service.admission import RefusedSpecError
from search.service.routes_jobs import ServiceOf, SpecBody, problems, spec_of
from search.service.schemas import AgentKind, Checked, Health, Models, RegisteredTable, Upload
from search.service.service import RefusedError, Service
from search.service.supervisor import counts
from search.service.worker import TaskError

specs = APIRouter(prefix="/api", tags=["specs"])

_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@specs.get("/health", response_model=Health, responses=problems())
def health(service: ServiceOf) -> Health:
    """Whether the service works, and how much it has to do."""
    running, queued = counts(service.index)
    return Health(
        status="ok", version=metadata.version("amc-search"), running=running, queued=queued,
        max_running=service.settings.max_running,
    )  # fmt: skip


@specs.get("/schema", response_model=dict[str, Any], responses=problems())
def schema(service: ServiceOf) -> Any:
    """The JSON schema of specs."""
    return service.once("schema")


@specs.get("/models", response_model=Models, responses=problems())
def models(service: ServiceOf) -> Models:
    """What a spec sent over HTTP may name."""
    kinds = [AgentKind(**agent) for agent in service.once("agents")]
    return Models(models=service.registry.models(), data=service.registry.data(), tables=_tables(service), agents=kinds)


@specs.get("/tables", response_model=list[RegisteredTable], responses=problems())
def tables(service: ServiceOf) -> list[RegisteredTable]:
    """The latency tables that a spec may name."""
    return _tables(service)


@specs.post(
    "/specs/check", response_model=Checked, response_model_exclude_none=True, responses=problems(422),
    openapi_extra=dict(SpecBody),
)  # fmt: skip
async def check(request: Request, service: ServiceOf) -> Any:
    """Whether a spec is valid; if it is not, every fault with its place."""
    try:
        return await run_in_threadpool(service.check, await spec_of(request))
    except RefusedSpecError as error:
        return {"valid": False, "errors": error.faults}


@specs.get("/uploads", response_model=list[Upload], responses=problems())
def uploads(service: ServiceOf) -> list[Upload]:
    """The weights that were uploaded."""
    return service.registry.uploads()


@specs.post(
    "/uploads", status_code=201, response_model=Upload, responses=problems(409, 422, 507), openapi_extra=_UPLOAD_BODY
)
async def upload(
    request: Request,
    service: ServiceOf,
    name: Annotated[str, Query(max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")],
) -> Upload:
    """Take the weights of a network, safetensors or a state_dict of torch.save; a spec names them as `NAME.pt`."""
    folder = service.store.data / "uploads"
    target = folder / f"{name}.pt"
    if service.registry.find("weights", target.name) is not None:
        raise RefusedError(409, f"there are weights {target.name} already; take another name")
    incoming = folder / f".incoming-{secrets.token_hex(8)}"
    try:
        with incoming.open("xb") as file:
            async for chunk in request.stream():
                await run_in_threadpool(file.write, chunk)
        await run_in_threadpool(service.worker.call, "take_weights", incoming=str(incoming), target=str(target))
    finally:
        incoming.unlink(missing_ok=True)
    return Upload(name=target.name, bytes=target.stat().st_size)


def _tables(service: Service) -> list[RegisteredTable]:
    found = []
    for path in service.registry.tables():
        try:
            found.append(RegisteredTable(name=path.name, **service.worker.call("table_info", path=str(path))))
        except TaskError:
            continue  # not a table: whoever runs the server sees it by `amc lut show`
    return found
