"""The helper process: it answers, explains, is started anew when it dies, and ends with its owner."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from search.service.worker import TaskError, Worker
from tests.search.service.helpers import SPEC


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker(idle_s=0.0)
    yield made
    made.close()


def process(worker: Worker) -> int | None:
    return worker.pid


def test_the_helper(worker: Worker) -> None:
    assert process(worker) is None
    assert worker.call("check_spec", raw=SPEC)["trials"] == ["uniform-seed0", "random-seed0", "random-seed1"]
    with pytest.raises(TaskError, match="got neither"):
        worker.call("take_weights", incoming="/dev/null", target="/none")
    with pytest.raises(RuntimeError, match="task view: TypeError: "):
        worker.call("view", nothing="of that name")
    first = worker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="the helper process ended with -9"):
        worker.call("schema")
    assert worker.call("schema")["title"] == "Spec"
    assert worker.pid != first
    worker.rest()
    assert process(worker) is None
