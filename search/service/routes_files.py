"""Routes of a job's files: a fixed list of names, and the export that makes some of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse

from search.service.folder import JobFolder
from search.service.routes_jobs import JobOf, Nothing, ServiceOf, problems
from search.service.schemas import Artifact, Job
from search.service.service import RefusedError

files = APIRouter(prefix="/api", tags=["files"])

#: name -> where it lies in the job's folder, and its type
ARTIFACTS = {
    "report.html": ("report.html", "text/html"),
    "results.json": ("results.json", "application/json"),
    "spec.yaml": ("spec.yaml", "application/yaml"),
    "log.txt": ("log.txt", "text/plain"),
    "events.jsonl": ("events.jsonl", "application/x-ndjson"),
    "latency.json": ("latency.json", "application/json"),
    "policy.json": ("artifacts/policy.json", "application/json"),
    "plan.json": ("artifacts/plan.json", "application/json"),
    "weights.pt": ("artifacts/weights.pt", "application/octet-stream"),
    "model.onnx": ("artifacts/model.onnx", "application/octet-stream"),
    "card.json": ("artifacts/card.json", "application/json"),
    "masks.npz": ("artifacts/masks.npz", "application/octet-stream"),
    "all.zip": ("artifacts/all.zip", "application/zip"),
}
_BINARY = {"type": "string", "format": "binary"}
#: a report brings its own style and no script; it is shown as if it came from nowhere
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox"


@files.get("/jobs/{job}/artifacts", response_model=list[Artifact], responses=problems(404, 422))
def list_artifacts(job: JobOf) -> list[Artifact]:
    """The files of a job that are there now."""
    found = ((name, artifact(job, name)) for name in ARTIFACTS)
    return [Artifact(name=name, bytes=path.stat().st_size) for name, path in found if path is not None]


@files.get(
    "/jobs/{job}/artifacts/{name}", response_class=FileResponse,
    responses={200: {"content": {"*/*": {"schema": _BINARY}}}, **problems(404, 422, otherwise_json=False)},
)  # fmt: skip
def get_artifact(job: JobOf, name: str) -> FileResponse:
    """A file of a job."""
    path = artifact(job, name) if name in ARTIFACTS else None
    if path is None:
        raise RefusedError(404, f"no artifact {name[:80]!r}; expected one of: {', '.join(ARTIFACTS)}")
    page = name == "report.html"
    return FileResponse(
        path, media_type=ARTIFACTS[name][1], filename=f"{job.id}-{name}",
        content_disposition_type="inline" if page else "attachment",
        headers={"content-security-policy": _REPORT_POLICY} if page else None,
    )  # fmt: skip


@files.post("/jobs/{job}/export", status_code=202, response_model=Job, responses=problems(404, 409, 422, 507))
def export(
    job: JobOf,
    service: ServiceOf,
    agent: Annotated[str | None, Query(max_length=100, pattern=r"^[A-Za-z0-9_-]+$")] = None,
    seed: Annotated[int | None, Query(ge=0, le=2**63)] = None,
    step: Annotated[int | None, Query(ge=1, le=10**6)] = None,
    nothing: Nothing = None,
) -> Job:
    """Begin to write the network of the winner, or of an agent, a seed, a step; a note tells when it is there."""
    service.export(job, agent, seed, step)
    return service.describe(job)


def artifact(job: JobFolder, name: str) -> Path | None:
    """The file behind a name of the list; None if it is not there, or not a plain file within the job's folder."""
    path = job.path / ARTIFACTS[name][0]
    inside = path.resolve().is_relative_to(job.path.resolve())
    return path if inside and path.is_file() else None
