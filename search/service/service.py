"""What the routes work with: the store, its index, the supervisor, the helper process, and the limits."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search.service.admission import RefusedSpecError, admit
from search.service.events import ACTIVE, append_event
from search.service.folder import JobFolder
from search.service.guard import Limits
from search.service.index import Index
from search.service.registry import Registry
from search.service.schemas import Fault, Job
from search.service.store import Store, Submission, WrongStateError, signature
from search.service.summary import describe
from search.service.supervisor import DRIVER, Supervisor, counts
from search.service.worker import Worker

_LONGEST_TRIAL_NAME = 100
_VIEWS_KEPT = 16


class RefusedError(Exception):
    """A request is refused with a status of HTTP and a reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Settings:
    """How a server runs.

    Attributes:
        data: its folder.
        watch: folders beside it whose jobs are shown.
        max_running: jobs at once.
        token: that every request must bear.
        driver: the command that runs a job.
        resume_interrupted: queue at the start what was interrupted.
        limits: of what clients may ask for.
        clusters: addresses of Ray that a spec may name.
    """

    data: Path
    watch: tuple[Path, ...] = ()
    max_running: int = 1
    token: str | None = field(default=None, repr=False)
    driver: tuple[str, ...] = DRIVER
    resume_interrupted: bool = False
    limits: Limits = field(default_factory=Limits)
    clusters: tuple[str, ...] = ()


class Service:
    """One server's work on one data folder."""

    def __init__(self, settings: Settings, worker: Worker | None = None) -> None:
        self.settings = settings
        self.store = Store(settings.data, settings.watch)
        self.store.prepare()
        self.registry = Registry(self.store.data)
        self.index = Index(self.store.data / "index.sqlite3")
        self.worker = worker or Worker()
        self.supervisor = Supervisor(
            self.store, self.index, settings.max_running, settings.driver, each_round=self.worker.rest
        )
        self._creating = threading.Lock()
        self._exports: dict[str, subprocess.Popen[bytes]] = {}
        self._views: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self._once: dict[str, Any] = {}

    def start(self) -> None:
        """Begin to run jobs."""
        self.supervisor.start(resume_interrupted=self.settings.resume_interrupted)

    def stop(self) -> None:
        """Stop; jobs that run go on."""
        self.supervisor.stop()
        self.worker.close()
        self.index.close()

    def check(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Whether a spec sent over HTTP may be run and is valid, and what it comes to.

        Raises:
            RefusedSpecError: it names what it must not.
        """
        checked: dict[str, Any] = self.worker.call("check_spec", raw=admit(raw, self.registry, self.settings.clusters))
        if checked["valid"] and (fault := self._beyond_limits(checked)):
            return {"valid": False, "errors": [fault.model_dump()]}
        return checked

    def submit(self, raw: Mapping[str, Any], key: str | None, evaluated_by: Sequence[str] = ()) -> tuple[Job, bool]:
        """Make a job; with a key that is known already, find it. Says whether it is new.

        Args:
            raw: the spec.
            key: of idempotency.
            evaluated_by: jobs whose evaluations the new one takes over.

        Raises:
            RefusedSpecError: the spec is not valid, or names what it must not.
            UnknownJobError: one of those jobs is not there.
            TaskError: one of them has not begun its search, or they are of different problems.
            RefusedError: too many jobs wait, or the key belongs to another request.
        """
        checked = self.check(raw)
        if not checked["valid"]:
            raise RefusedSpecError([Fault(**fault) for fault in checked["errors"]])
        folders = [str(self.find(job).path) for job in evaluated_by]
        asked = "\n".join([json.dumps(raw, sort_keys=True), *evaluated_by])
        digest = hashlib.sha256(asked.encode()).hexdigest()
        evaluated = self.worker.call("known_of", folders=folders) if folders else None
        with self._creating:
            self.supervisor.ready.wait()  # until then, not all keys are known
            known = None if key is None else self.index.by_key(key)
            if known is not None:
                job = self.store.find(known)
                request = job.request()
                if request is not None and request.digest != digest:
                    raise RefusedError(409, "this idempotency key came with another request before; take a new one")
                return describe(job), False
            _, queued = counts(self.index)
            if queued >= self.settings.limits.queued:
                raise RefusedError(429, f"{queued} jobs wait already, which is the limit; try again later")
            name, trials = checked["name"], tuple(checked["trials"])
            job = self.store.create(
                Submission(name, checked["yaml"], trials, checked["evaluations"], key, digest, evaluated)
            )
            self.supervisor.refresh(job)
        return describe(job), True

    def view(self, job: JobFolder) -> dict[str, Any]:
        """The drawn sections of a job, drawn again only when something has changed."""
        running = job.state() in ACTIVE
        version = _version(job)
        sections = self._kept(("view", job.id, version), "view", folder=str(job.path), running=running)
        return {"version": version, "sections": sections}

    def compare(self, jobs: list[JobFolder]) -> dict[str, Any]:
        """Jobs side by side."""
        for job in jobs:
            if not (job.path / "results.json").is_file():
                raise WrongStateError(f"{job.id}: its search has not begun, there is nothing to compare yet")
        key = ("compare", *(f"{job.id} {_version(job)}" for job in jobs))
        compared: dict[str, Any] = self._kept(key, "compare_jobs", folders=[str(job.path) for job in jobs])
        return compared

    def once(self, task: str) -> Any:
        """The result of a task that never changes."""
        if task not in self._once:
            self._once[task] = self.worker.call(task)
        return self._once[task]

    def export(self, job: JobFolder, agent: str | None, seed: int | None, step: int | None) -> None:
        """Begin to export a network in a process of its own; it ends in `artifacts/` and a note among the events."""
        if "export" not in describe(job).actions:
            raise WrongStateError(f"{job.id} has no network to export")
        before = self._exports.get(job.id)
        if before is not None and before.poll() is None:
            raise WrongStateError(f"{job.id} is being exported already")
        command = [sys.executable, "-P", "-m", "search.service.exporter", str(job.path)]
        for name, value in (("--agent", agent), ("--seed", seed), ("--step", step)):
            command += [] if value is None else [f"{name}={value}"]
        with job.log.open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")
        self._exports[job.id] = process
        threading.Thread(target=_tell_death, args=(process, job.events), daemon=True).start()

    def describe(self, job: JobFolder) -> Job:
        """A job as it is now. The list that is asked for afterwards says no less."""
        described = describe(job)
        if self.index.state(job.id) != described.state:
            self.supervisor.refresh_or_skip(job)
        return described

    def find(self, job: str) -> JobFolder:
        """A job by its id.

        Raises:
            UnknownJobError: there is none.
        """
        return self.store.find(job)

    def forget(self, job: JobFolder) -> None:
        """Delete a job."""
        self.store.delete(job)
        self.index.remove(job.id)

    def _kept(self, key: tuple[str, ...], task: str, **arguments: Any) -> Any:
        if key in self._views:
            return self._views[key]
        drawn = self.worker.call(task, **arguments)
        self._views[key] = drawn
        while len(self._views) > _VIEWS_KEPT:
            self._views.popitem(last=False)
        return drawn

    def _beyond_limits(self, checked: Mapping[str, Any]) -> Fault | None:
        limits, trials = self.settings.limits, checked["trials"]
        if len(trials) > limits.trials:
            return Fault(path="seeds", message=f"{len(trials):,} trials; this server takes at most {limits.trials:,}")
        if max(len(name) for name in trials) > _LONGEST_TRIAL_NAME:
            return Fault(path="agents", message=f"a name with its seed is longer than {_LONGEST_TRIAL_NAME} characters")
        total = len(trials) * checked["evaluations"]
        if total > limits.evaluations:
            most = f"this server takes at most {limits.evaluations:,}"
            return Fault(path="evaluations", message=f"{len(trials)} trials come to {total:,} evaluations; {most}")
        return None


def _tell_death(process: subprocess.Popen[bytes], events: Path) -> None:
    """An exporter that was killed could not tell how it went."""
    if code := process.wait():
        append_event(events, "note", text=f"export: failed: its process ended with {code}; the job's log may say why")


def _version(job: JobFolder) -> str:
    """Changes with all that is drawn of a job."""
    journals = ((path.name, path.stat().st_size) for path in sorted(job.path.glob("trials/*/*.json*")))
    return hashlib.sha256(repr([signature(job), *journals]).encode()).hexdigest()[:16]
