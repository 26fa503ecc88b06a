"""Servers for the tests of the service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from starlette.testclient import TestClient

from scripts._toy_service import Server
from tests.search.service.helpers import SPEC, make_client, run_here


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """Of a server that starts no jobs: they stay queued."""
    with make_client(tmp_path / "data", max_running=0) as made:
        yield made


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished job, as `amc run` leaves it."""
    return run_here(tmp_path_factory.mktemp("finished") / "toy-run")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not Path("/proc/self/environ").exists():
        pytest.skip("finds processes in /proc")
    made = Server(tmp_path_factory.mktemp("server") / "data")
    yield made
    made.kill_all()


@pytest.fixture
def toy_spec(tmp_path: Path) -> Path:
    """Two trials of twenty-five evaluations, a twentieth of a second each."""
    slow = {**SPEC, "network": {"kind": "toy", "decisions": 4, "seconds_per_evaluation": 0.05}}
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({**slow, "agents": [{"kind": "random"}], "evaluations": 25}))
    return path
