"""Jobs on a real Ray, disturbed: a killed worker, a killed driver, signals. The result must not show it.

Each job is a process of its own, marked by an environment variable that all its descendants inherit, so that what is
left running can be found.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from search.build import build_problem
from search.job import is_running, load_results
from search.results import TrialRecord
from search.spec import load_spec
from search.trial import plan_trials, run_trial

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc")

SPEC = """\
version: 1
name: toy
network: {kind: toy, decisions: 3, seconds_per_evaluation: 0.5}
budget: {macs: 50%}
agents: [{kind: ddpg, warmup_episodes: 2, batch_size: 4}]
evaluations: 10
resources: {trials_in_parallel: 1}
"""
_PATIENCE_S = 180.0

Start = Callable[..., "Driver"]


class Driver:
    """`amc` in a process of its own."""

    def __init__(self, *arguments: object) -> None:
        self.mark = f"AMC_TEST_MARK={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        command = [sys.executable, "-c", "from search.cli import main; main()", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, env={**os.environ, name: value}, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def finish(self) -> tuple[int, str]:
        """Exit code and standard error."""
        _, errors = self.process.communicate(timeout=_PATIENCE_S)
        return self.process.returncode, errors

    def running(self) -> list[int]:
        """Process ids of the driver and all its descendants."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and self.mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    def ended(self) -> bool:
        return not self.running()

    def clean_up(self) -> None:
        for process in self.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def start() -> Iterator[Start]:
    drivers: list[Driver] = []

    def make(*arguments: object) -> Driver:
        drivers.append(Driver(*arguments))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.clean_up()


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spec") / "spec.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture(scope="module")
def undisturbed(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> TrialRecord:
    """The trial run at once in this process, without waiting."""
    loaded = load_spec(spec, ["network.seconds_per_evaluation=0"])
    (trial,) = plan_trials(loaded)
    folder = tmp_path_factory.mktemp("undisturbed")
    return run_trial(loaded, build_problem(loaded), trial.agent, trial.seed, folder, lambda progress: None)


def wait_until(condition: Callable[[], object]) -> bool:
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def evaluations(job: Path) -> int:
    journal = job / "trials" / "ddpg-seed0" / "evaluations.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def reached(job: Path, count: int) -> bool:
    return evaluations(job) >= count


def worker(job: Path) -> int:
    return int((job / "trials" / "ddpg-seed0" / "pid").read_text())


def timeless(trial: TrialRecord) -> TrialRecord:
    """All that must be the same in two runs of a trial: every evaluation and the winner."""
    return trial.model_copy(update={"seconds": 0.0})


def test_killed_worker_and_killed_driver(start: Start, spec: Path, undisturbed: TrialRecord, tmp_path: Path) -> None:
    job = tmp_path / "job"
    driver = start("run", spec, "--out", job)
    assert wait_until(partial(reached, job, 3))
    first = worker(job)
    os.kill(first, signal.SIGKILL)
    assert wait_until(lambda: worker(job) != first and reached(job, 6))
    driver.process.kill()
    driver.process.wait()
    assert not is_running(job)
    results = load_results(job)
    assert (results.status, results.trials[0].best) == ("interrupted", None)
    resumed = start("resume", job)
    code, errors = resumed.finish()
    assert code == 0, errors
    results = load_results(job)
    assert results.status == "finished"
    assert [timeless(trial) for trial in results.trials] == [timeless(undisturbed)]
    assert wait_until(lambda: driver.ended() and resumed.ended()), "processes were left running"


def test_signals_leave_a_job_that_resumes(start: Start, spec: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    for send, number, arguments, enough in (
        (os.killpg, signal.SIGINT, ("run", spec, "--out", job), 3),  # as a terminal does on Ctrl-C
        (os.kill, signal.SIGTERM, ("resume", job), 6),
    ):
        driver = start(*arguments)
        assert wait_until(partial(reached, job, enough))
        send(driver.process.pid, number)
        code, errors = driver.finish()
        assert code == 130
        assert f"interrupted; continue with: amc resume {job}" in errors
        assert wait_until(driver.ended), "processes were left running"
        results = load_results(job)
        assert (results.status, results.trials[0].status) == ("interrupted", "interrupted")


def test_worker_that_dies_too_often_is_a_failed_trial(start: Start, spec: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    driver = start("run", spec, "--out", job, "--set", "resources.max_failures=0")
    assert wait_until(partial(reached, job, 2))
    os.kill(worker(job), signal.SIGKILL)
    code, errors = driver.finish()
    assert code == 1
    assert "all trials failed" in errors
    assert "ended unexpectedly" in (job / "trials" / "ddpg-seed0" / "error.txt").read_text()
    assert load_results(job).status == "failed"
