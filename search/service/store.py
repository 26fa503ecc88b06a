"""The data folder of the service: jobs are made in it, found, and deleted.

- `jobs/<id>/`: a job, see `search.service.folder`
- `models/`, `data/`, `tables/`, `uploads/`: what specs sent over HTTP may name, see `search.service.registry`
- `index.sqlite3`: see `search.service.index`
- `server.lock`: locked by the server while it runs
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from hw.files import write_atomically
from search.errors import UserError
from search.locking import acquire, held
from search.service.events import ACTIVE, ENDED, State, change_state, last_event, now
from search.service.folder import JobFolder, Request, save_request

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
_HIDDEN_NEW, _HIDDEN_OLD = ".new-", ".deleted-"
RESERVE_BYTES = 65_536


class UnknownJobError(UserError):
    """There is no such job."""


class WrongStateError(UserError):
    """What is asked for cannot be done with the job as it is now."""


@dataclass(frozen=True)
class Submission:
    """A job to be made: its checked spec as YAML, the names of its trials, and the evaluations of each.

    `known` is the text of its file of what other jobs evaluated, see `search.known`.
    """

    name: str
    spec: str
    trials: tuple[str, ...]
    evaluations: int
    key: str | None = None
    digest: str | None = None
    known: str | None = None


class Store:
    """The jobs under a data folder, and those under the folders that are watched beside it."""

    def __init__(self, data: Path, watch: Sequence[Path] = ()) -> None:
        self.data = data.resolve()
        self.jobs = self.data / "jobs"
        self.watch = tuple(folder.resolve() for folder in watch)

    def prepare_folders(self) -> None:
        """Make the folders, readable by their owner alone."""
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in ("jobs", "models", "data", "tables", "uploads"):
            (self.data / name).mkdir(exist_ok=True)

    def prepare(self) -> None:
        """Make the folders, and clear away what a crash left half made or half deleted; for the server alone."""
        self.prepare_folders()
        for entry in self.jobs.iterdir():
            if entry.name.startswith((_HIDDEN_NEW, _HIDDEN_OLD)):
                shutil.rmtree(entry)

    @property
    def served(self) -> bool:
        """Whether a server is at work on this data folder."""
        return held(self.data / "server.lock")

    def create(self, submission: Submission) -> JobFolder:
        """Make the folder of a new job, queued; it appears whole or not at all."""
        stem = submission.name[:40].strip("._-") or "job"
        job = f"{stem}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        temporary = self.jobs / f"{_HIDDEN_NEW}{job}"
        temporary.mkdir(parents=True)
        try:
            write_atomically(temporary / "spec.yaml", submission.spec)
            if submission.known is not None:
                write_atomically(temporary / "known.jsonl", submission.known)
            (temporary / "reserve").write_bytes(secrets.token_bytes(RESERVE_BYTES))
            request = Request(
                id=job, name=submission.name, submitted=now(), trials=submission.trials,
                evaluations=submission.evaluations, key=submission.key, digest=submission.digest,
            )  # fmt: skip
            save_request(temporary, request)
            change_state(temporary / "events.jsonl", "queued")
            temporary.rename(self.jobs / job)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync(self.jobs)
        return JobFolder(job, self.jobs / job)

    def __iter__(self) -> Iterator[JobFolder]:
        """All jobs. Of a watched folder: itself, if it is a job, or the jobs in it."""
        if self.jobs.is_dir():
            for entry in os.scandir(self.jobs):
                if _JOB_ID.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    yield JobFolder(entry.name, Path(entry.path))
        for folder in self.watch:
            places = (
                [folder] if (folder / "spec.yaml").is_file() else sorted(folder.iterdir()) if folder.is_dir() else []
            )
            for path in places:
                if (path / "spec.yaml").is_file() and (path / "lock").is_file():
                    yield JobFolder(_watched_id(path), path, watched=True)

    def find(self, job: str) -> JobFolder:
        """A job by its id. The id is compared with those of the folders that exist, never joined to a path unseen.

        Raises:
            UnknownJobError: there is none.
        """
        path = self.jobs / job if _JOB_ID.fullmatch(job) else None
        if path is not None and path.is_dir() and not path.is_symlink() and (path / "spec.yaml").is_file():
            return JobFolder(job, path)
        found = next((each for each in self if each.watched and each.id == job), None)
        if found is None:
            raise UnknownJobError(f"no job {job[:120]!r}")
        return found

    def cancel(self, job: JobFolder) -> None:
        """Ask for the end of a job: one that waits is cancelled at once, one that runs when its driver has heard.

        Raises:
            WrongStateError: it is not waiting or running, or runs in a terminal.
        """
        state = job.state()
        if state not in ("queued", "starting", "running", "cancelling"):
            raise WrongStateError(f"{job.id} is {state}; only a job that is queued or running can be cancelled")
        last = last_event(job.events)
        if job.request() is None or last is None or last["job"] not in ("queued", *ACTIVE):
            raise WrongStateError(f"{job.id} runs in a terminal; end it there (Ctrl-C)")
        job.want("cancel")
        if not change_state(job.events, "cancelled", {"queued"}):
            change_state(job.events, "cancelling", {"starting", "running"})

    def resume(self, job: JobFolder) -> None:
        """Queue a job again; it goes on where it was.

        Raises:
            WrongStateError: it is waiting or running, or nothing is left to do.
        """
        state = job.state()
        failed = any((job.path / "trials" / trial / "error.txt").exists() for trial in job.planned())
        if state not in ENDED or (state == "succeeded" and not failed):
            why = "all its trials are finished" if state == "succeeded" else "it is not over yet"
            raise WrongStateError(f"{job.id} is {state}; {why}, there is nothing to resume")
        if job.request() is None:
            self._adopt(job)
        change_state(job.events, state, ACTIVE)  # nobody may have recorded yet how it ended
        job.want("run")
        change_state(job.events, "queued", ENDED)

    def delete(self, job: JobFolder) -> None:
        """Delete a job's folder: renamed first, so that no half of it is ever seen.

        Raises:
            WrongStateError: the job is running, or does not lie in the data folder.
        """
        if job.watched or job.path.parent != self.jobs:
            raise WrongStateError(f"{job.id} lies outside the data folder; delete it there")
        with job.lock.open("ab") as lock:
            if not acquire(lock, 1.0):
                raise WrongStateError(f"{job.id} is {job.state()}; cancel it first")
            hidden = self.jobs / f"{_HIDDEN_OLD}{job.id}"
            job.path.rename(hidden)
            shutil.rmtree(hidden)

    def _adopt(self, job: JobFolder) -> None:
        """Give a job that `amc run` made what a driver needs."""
        spec = job.spec()
        if not {"name", "evaluations"} <= spec.keys():
            raise WrongStateError(f"{job.id}: its spec cannot be read")
        request = Request(
            id=job.id, name=str(spec["name"]), submitted=now(), trials=job.planned(), evaluations=spec["evaluations"]
        )
        save_request(job.path, request)
        change_state(job.events, "interrupted")


def signature(job: JobFolder) -> str:
    """Changes when anything does that the list shows of a job that is over."""
    parts = []
    for name in ("events.jsonl", "request.json", "results.json", "report.html", "attempts", "spec.yaml"):
        try:
            known = (job.path / name).stat()
            parts.append(f"{known.st_mtime_ns}:{known.st_size}")
        except FileNotFoundError:
            parts.append("-")
    return " ".join(parts)


def queued_at(job: JobFolder, state: State) -> str | None:
    """Since when a job waits; None if it does not."""
    last = last_event(job.events)
    return last["time"] if state == "queued" and last else None


def _watched_id(path: Path) -> str:
    """The folder's name, with what tells it from others of the same name elsewhere."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", path.name)[:100].lstrip("._-") or "job"
    return f"{stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:6]}"


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
