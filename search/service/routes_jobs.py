"""Routes of jobs: made, listed, watched, cancelled, resumed, deleted, compared."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import PlainTextResponse, StreamingResponse

from search.service.admission import read_spec
from search.service.events import State
from search.service.folder import JobFolder
from search.service.index import Query as ListQuery
from search.service.schemas import Comparison, Job, JobList, Problem, Trial, View
from search.service.service import RefusedError, Service
from search.service.stream import stream
from search.service.summary import trials_of

jobs = APIRouter(prefix="/api", tags=["jobs"])

Sort = Literal["created", "updated", "name", "state", "network", "budget", "best", "age"]
_MOST_COMPARED = 6
_MOST_KNOWN = 20
_LONGEST_LOG = 2**20
_TEXT = {"type": "string"}
_EVENT = {"type": "object", "properties": dict.fromkeys(("id", "event", "data"), _TEXT), "required": ["event", "data"]}


def problems(*statuses: int, otherwise_json: bool = True) -> dict[int | str, dict[str, Any]]:
    """The errors that a route may answer with, for its OpenAPI; they are JSON also where other answers are not."""
    named = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    told = {"model": Problem} if otherwise_json else {"description": "Error", **named}
    return dict.fromkeys((400, 401, 403, 413, 415, 421, *statuses), told)


def the_service(request: Request) -> Service:
    """The service that the application was made for."""
    service: Service = request.app.state.service
    return service


def the_job(job: Annotated[str, Path(max_length=200)], service: Annotated[Service, Depends(the_service)]) -> JobFolder:
    """The job that the path names."""
    return service.find(job)


ServiceOf = Annotated[Service, Depends(the_service)]
JobOf = Annotated[JobFolder, Depends(the_job)]
SpecBody: Mapping[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "object"}} for kind in ("application/json", "application/yaml")},
    }
}
Nothing = Annotated[dict[str, Any] | None, Body()]


async def spec_of(request: Request) -> dict[str, Any]:
    """The spec in a request's body."""
    kind = request.headers["content-type"].partition(";")[0].strip().lower()
    return await run_in_threadpool(read_spec, await request.body(), kind)


@jobs.post(
    "/jobs", status_code=201, response_model=Job, openapi_extra=dict(SpecBody),
    responses={200: {"model": Job, "description": "Made before, with this key"}, **problems(404, 409, 422, 429, 507)},
)  # fmt: skip
async def submit(
    request: Request,
    response: Response,
    service: ServiceOf,
    known: Annotated[list[str] | None, Query(max_length=_MOST_KNOWN)] = None,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=200, pattern=r"^[!-~]+$")] = None,
) -> Job:
    """Make a job of a spec, JSON or YAML; with an idempotency key that came before, answer with that job.

    What the jobs named as `known` have evaluated of the same problem is not evaluated again.
    """
    job, new = await run_in_threadpool(service.submit, await spec_of(request), idempotency_key, known or ())
    response.status_code = 201 if new else 200
    return job


@jobs.get("/jobs", response_model=JobList, responses=problems(422))
def list_jobs(
    service: ServiceOf,
    state: Annotated[list[State] | None, Query()] = None,
    network: Annotated[str | None, Query(max_length=200)] = None,
    q: Annotated[str, Query(max_length=200)] = "",
    sort: Sort = "created",
    order: Literal["asc", "desc"] = "desc",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
) -> Response:
    """The jobs as the index has them: never more than a second behind, and never behind what `GET /jobs/{job}` said."""
    rows, total = service.index.page(
        ListQuery(state or (), network, q, sort, descending=order == "desc", limit=limit, offset=offset)
    )
    networks, states = service.index.counts()
    rest = JobList(jobs=[], total=total, networks=networks, states=states).model_dump_json(exclude={"jobs"})
    return Response(f'{{"jobs":[{",".join(rows)}],{rest[1:]}', media_type="application/json")


@jobs.get("/jobs/{job}", response_model=Job, responses=problems(404, 422))
def get_job(job: JobOf, service: ServiceOf) -> Job:
    """A job as it is now."""
    return service.describe(job)


@jobs.get("/jobs/{job}/trials", response_model=list[Trial], responses=problems(404, 422))
def get_trials(job: JobOf) -> list[Trial]:
    """The trials of a job as they are now."""
    return trials_of(job, job.state())


@jobs.get(
    "/jobs/{job}/events", response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": _EVENT}}}, **problems(404, 422, otherwise_json=False)},
)  # fmt: skip
async def get_events(
    job: JobOf,
    after: Annotated[int, Query(ge=0)] = 0,
    last_event_id: Annotated[int | None, Header(ge=0)] = None,
) -> StreamingResponse:
    """Everything that happens to a job, as server-sent events, from the one behind `after` or the last event id on."""
    number = after if last_event_id is None else last_event_id
    return StreamingResponse(stream(job, number), media_type="text/event-stream")


@jobs.get(
    "/jobs/{job}/log", response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"schema": _TEXT}}}, **problems(404, 422, otherwise_json=False)},
)  # fmt: skip
def get_log(
    job: JobOf,
    tail: Annotated[int, Query(ge=1, le=10_000)] = 200,
    offset: Annotated[int | None, Query(ge=0, le=2**62)] = None,
) -> PlainTextResponse:
    """The last lines of a job's log, or what it holds from a byte on; the header `log-end` says up to which byte."""
    content, end = read_log(job, offset)
    text = content.decode("utf-8", "replace")
    if offset is None:
        text = "".join(f"{line}\n" for line in text.splitlines()[-tail:])
    return PlainTextResponse(text, headers={"log-end": str(end)})


def read_log(job: JobFolder, offset: int | None) -> tuple[bytes, int]:
    """A mebibyte of the log at most, from a byte on or the last one, and the byte behind it."""
    if not job.log.is_file():
        return b"", 0
    with job.log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LONGEST_LOG) if offset is None else min(offset, size))
        return file.read(_LONGEST_LOG), file.tell()


@jobs.get("/jobs/{job}/view", response_model=View, responses=problems(404, 422))
def get_view(job: JobOf, service: ServiceOf) -> Any:
    """The sections of a job's page, drawn by the code that draws the report; none before the search has begun."""
    return service.view(job)


@jobs.post("/jobs/{job}/cancel", status_code=202, response_model=Job, responses=problems(404, 409, 422, 507))
def cancel_job(job: JobOf, service: ServiceOf, nothing: Nothing = None) -> Job:
    """End a job that waits or runs; what it has found so far stays, and it can be resumed."""
    service.store.cancel(job)
    service.supervisor.refresh(job)
    return service.describe(job)


@jobs.post("/jobs/{job}/resume", status_code=202, response_model=Job, responses=problems(404, 409, 422, 507))
def resume_job(job: JobOf, service: ServiceOf, nothing: Nothing = None) -> Job:
    """Queue a job that is over but not finished again."""
    service.store.resume(job)
    service.supervisor.refresh(job)
    return service.describe(job)


@jobs.delete("/jobs/{job}", status_code=204, responses=problems(404, 409, 422))
def delete_job(job: JobOf, service: ServiceOf) -> None:
    """Delete a job that is not running, with everything in its folder."""
    service.forget(job)


@jobs.get("/compare", response_model=Comparison, responses=problems(404, 409, 422))
def compare(service: ServiceOf, ids: Annotated[list[str], Query(min_length=1, max_length=_MOST_COMPARED)]) -> Any:
    """One to six jobs side by side."""
    if len(set(ids)) < len(ids):
        raise RefusedError(422, "ids: expected each job once")
    return service.compare([service.find(job) for job in ids])
