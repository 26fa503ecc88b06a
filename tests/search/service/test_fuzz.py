"""Some of the requests of `scripts/fuzz_service.py`, which sends ten thousand."""

from __future__ import annotations

from pathlib import Path

from scripts.fuzz_service import fuzz
from search.service.service import Service, Settings
from tests.search.service.helpers import HereWorker


def test_no_request_is_an_error_of_the_server(tmp_path: Path) -> None:
    answers, faults = fuzz(Service(Settings(tmp_path, max_running=0), HereWorker()), requests=100, randomness=0)
    assert faults == []
    assert sum(answers.values()) >= 50
