"""A service whose trials run without Ray, and what its tests share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import search.job
from search.service.app import create_app
from search.service.service import Service, Settings
from search.service.tasks import answer
from search.service.worker import TaskError, Worker
from search.trial import plan_trials, run_trial

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
