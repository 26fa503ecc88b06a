"""Servers and drivers that die: nothing is lost, nothing is done twice, the result is that of an undisturbed run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts._toy_service import Server, evaluations, wait_until
from search.job import load_results
from search.results import Results
from search.service.client import ServerError
from search.service.events import read_events
from tests.search.conftest import comparable
from tests.search.service.helpers import run_here


def folder(server: Server, job: str) -> Path:
    return server.data / "jobs" / job


def reached(server: Server, job: str, count: int) -> bool:
    return wait_until(lambda: evaluations(folder(server, job)) >= count)


def timeless(results: Results) -> Results:
    """All that must be the same in two runs, of two specs."""
    return comparable(results).model_copy(update={"spec": {}, "spec_id": ""})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Results:
    run = tmp_path_factory.mktemp("undisturbed") / "job"
    return timeless(load_results(run_here(run, agents=[{"kind": "random"}], evaluations=25)))


def check_events(job: Path) -> list[dict[str, Any]]:
    """All lines are whole, and numbered without gap or double."""
    lines = (job / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    return events


def test_a_killed_server_and_a_killed_driver(server: Server, toy_spec: Path, undisturbed: Results) -> None:
    server.hold(3)
    job = server.submit(toy_spec)
    assert reached(server, job, 3)
    server.kill()
    server.hold(10)  # the job goes on, and a new server finds it running
    assert reached(server, job, 10)
    server.start()
    assert server.state(job) == "running"
    (driver,) = server.processes("drive")
    os.kill(driver, 9)
    assert wait_until(lambda: server.state(job) == "interrupted")
    server.go_on()
    assert server.jobs.resume(job)["state"] == "queued"
    assert wait_until(lambda: server.state(job) == "succeeded")
    assert timeless(load_results(folder(server, job))) == undisturbed
    states = [event["state"] for event in check_events(folder(server, job)) if event["kind"] == "state"]
    assert states == [
        "queued", "starting", "running", "interrupted", "queued", "starting", "running", "succeeded",
    ]  # fmt: skip


def test_a_watcher_misses_nothing_when_the_server_dies(server: Server, toy_spec: Path) -> None:
    job = server.submit(toy_spec, evaluations=10)
    stream = server.jobs._stream(f"/api/jobs/{job}/events")
    seen = [event["seq"] for event in itertools.islice(stream, 3)]
    server.kill()
    with contextlib.suppress(ConnectionError):
        seen += [event["seq"] for event in stream]
    server.start()
    rest = server.jobs._stream(f"/api/jobs/{job}/events?after={seen[-1]}")
    seen += [event["seq"] for event in rest if "seq" in event]
    assert seen == [event["seq"] for event in check_events(folder(server, job))]
    assert server.state(job) == "succeeded"


def test_cancelled_and_resumed(server: Server, toy_spec: Path, undisturbed: Results) -> None:
    server.hold(3)
    job, waiting = server.submit(toy_spec), server.submit(toy_spec)
    assert reached(server, job, 3)
    assert server.state(waiting) == "queued"  # one at a time
    assert server.jobs.cancel(waiting)["state"] == "cancelled"
    assert server.jobs.cancel(job)["state"] == "cancelling"
    assert wait_until(lambda: server.state(job) == "cancelled")
    assert wait_until(lambda: server.processes("drive") == [])
    server.go_on()
    server.jobs.resume(job)
    assert wait_until(lambda: server.state(job) == "succeeded")
    assert timeless(load_results(folder(server, job))) == undisturbed


def test_everything_killed_at_once(tmp_path: Path, toy_spec: Path, undisturbed: Results) -> None:
    server = Server(tmp_path / "data")
    jobs = [server.submit(toy_spec) for _ in range(2)]
    finished: dict[Path, int] = {}
    for enough in (10, 60):
        assert wait_until(lambda: sum(evaluations(folder(server, job)) for job in jobs) >= enough)  # noqa: B023
        server.kill_all()
        for path in server.data.glob("jobs/*/trials/*/result.json"):
            assert finished.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
        server.start()
    assert wait_until(lambda: all(server.state(job) == "succeeded" for job in jobs))
    for job in jobs:
        check_events(folder(server, job))
        assert timeless(load_results(folder(server, job))) == undisturbed
    assert all(path.stat().st_mtime_ns == changed for path, changed in finished.items())
    server.kill_all()


def test_a_job_that_cannot_be_run_says_why(server: Server, toy_spec: Path) -> None:
    job = server.submit(toy_spec, budget__macs="1%")
    assert wait_until(lambda: server.state(job) == "failed")
    assert "the smallest reachable macs is 14 MACs" in server.jobs.job(job)["error"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of four mebibytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small tmpfs")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_full_disk(small_disk: Path, toy_spec: Path, undisturbed: Results) -> None:
    server = Server(small_disk / "data")
    try:
        older = server.submit(toy_spec, network__seconds_per_evaluation=0)
        assert wait_until(lambda: server.state(older) == "succeeded")
        server.hold(5)
        job = server.submit(toy_spec)
        assert reached(server, job, 5)
        ballast = small_disk / "ballast"
        with ballast.open("wb") as file:
            free = shutil.disk_usage(small_disk).free
            file.write(b"x" * free)
        server.go_on()
        assert wait_until(lambda: server.state(job) == "failed")
        assert "the disk that holds the job is full" in server.jobs.job(job)["error"]
        assert server.state(older) == "succeeded"  # and the server goes on
        assert timeless(load_results(folder(server, older))) == undisturbed
        with pytest.raises(ServerError, match="the server's disk: No space left on device"):
            server.submit(toy_spec)
        ballast.unlink()
        server.jobs.resume(job)
        assert wait_until(lambda: server.state(job) == "succeeded")
        assert timeless(load_results(folder(server, job))) == undisturbed
        assert len(read_events(folder(server, job) / "events.jsonl")[0]) == len(check_events(folder(server, job)))
    finally:
        server.kill_all()
