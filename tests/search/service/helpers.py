"""A service whose trials run without Ray, and what its tests share."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import search.job
from search.service.app import create_app
from search.service.client import ServerJobs
from search.service.service import Service, Settings
from search.service.tasks import answer
from search.service.worker import TaskError, Worker
from search.trial import plan_trials, run_trial

ROOT = Path(__file__).parents[3]
TOY_SERVICE = ROOT / "scripts" / "_toy_service.py"
PATIENCE_S = 120.0

SPEC: dict[str, Any] = {
    "version": 1,
    "name": "toy",
    "network": {"kind": "toy", "decisions": 4},
    "budget": {"macs": "50%"},
    "agents": [{"kind": "uniform"}, {"kind": "random"}],
    "seeds": [0, 1],
    "evaluations": 5,
}

MakeClient = Callable[..., TestClient]


class HereWorker(Worker):
    """The tasks of the helper in this process, where torch is loaded already."""

    def call(self, task: str, **arguments: Any) -> Any:
        import json

        answered = json.loads(json.dumps(answer(json.dumps({"task": task, "arguments": arguments}))))
        if "refused" in answered:
            raise TaskError(answered["refused"])
        if "failed" in answered:
            raise RuntimeError(answered["failed"])
        return answered["result"]


def make_client(data: Path, **settings: Any) -> TestClient:
    """A client of a server on a data folder; no job is started unless `driver` is told."""
    settings.setdefault("driver", (sys.executable, "-c", "pass"))
    return TestClient(create_app(Service(Settings(data, **settings), HereWorker())), base_url="http://127.0.0.1")


def run_here(folder: Path, **changes: Any) -> Path:
    """Run a job in this process, its trials one after the other."""
    from search.spec_models import Spec

    def search_here(job: Any, place: Path, pending: list[str], on_progress: Any) -> None:
        for trial in plan_trials(job.spec):
            if trial.name in pending:
                run_trial(job.spec, job.problem, trial.agent, trial.seed, place / "trials" / trial.name, on_progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.job, "_search", search_here)
        search.job.run_job(Spec.model_validate({**SPEC, **changes}), folder)
    return folder


class Server:
    """A server in a process of its own; it and all its descendants bear a mark by which they are found."""

    def __init__(self, data: Path, max_running: int = 1) -> None:
        self.data, self._max_running = data, max_running
        self.mark = f"AMC_TEST_MARK={uuid.uuid4().hex}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.jobs = ServerJobs(self.url, None)
        name, value = self.mark.split("=")
        command = [sys.executable, str(TOY_SERVICE), "serve", str(self.data), str(port), str(self._max_running)]
        self.process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT), name: value}, cwd="/")
        assert wait_until(self.answers), "the server did not start"

    def answers(self) -> bool:
        try:
            return bool(self.jobs._json("GET", "/api/health"))
        except ConnectionError:
            return False

    def kill(self) -> None:
        """End the server alone, without warning."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def processes(self, *words: str) -> list[int]:
        """The server, its helper and its drivers; only those with these words in their command."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and self.mark.encode() in (entry / "environ").read_bytes():
                    command = (entry / "cmdline").read_bytes().decode().split("\0")
                    if all(word in command for word in words):
                        found.append(int(entry.name))
        return found

    def kill_all(self, *words: str) -> None:
        for process in self.processes(*words):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if not words and self.process is not None:
            self.process.wait()

    def submit(self, spec: Path, **changes: object) -> str:
        overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
        return str(self.jobs.submit(spec, overrides)["id"])

    def state(self, job: str) -> str:
        return str(self.jobs.job(job)["state"])


def wait_until(condition: Callable[[], object]) -> bool:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
