"""Jobs on a real Ray, disturbed: killed workers, a killed driver, signals. The result must not show it.

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

from agents.random_search import RandomSearch
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

# Every process of a job imports the module of its objective. This one marks the processes that are scoring, and lets
# the random agent ask for several evaluations at once.
BATCHES = """\
import os
import time
from pathlib import Path

import numpy as np
from torch.nn.functional import cross_entropy

from agents.base import BestSoFar
from agents.random_search import RandomSearch

FOLDER = Path(__file__).parent


def error(outputs, labels, dense_outputs):
    if (FOLDER / "fail").exists():
        raise ValueError("the boxes overlap")
    (FOLDER / f"scoring-{os.getpid()}").touch()
    time.sleep(0.5)
    (FOLDER / f"scoring-{os.getpid()}").unlink()
    return cross_entropy(outputs, labels, reduction="none")


def search(self, problem, *, max_evaluations, seed, on_evaluation):
    rng = np.random.default_rng(seed)
    best = BestSoFar(on_evaluation)
    while best.count < max_evaluations:
        ratios = rng.uniform(0.0, problem.ratios(problem.smallest_widths), size=(4, len(problem.decisions)))
        plans = [problem.widths(problem.fit_to_budget(each)) for each in ratios]
        for evaluation in problem.evaluate_many(plans[: max_evaluations - best.count]):
            best(evaluation)
    return best.evaluation


RandomSearch.search = search
RandomSearch.evaluates_many = True
"""

IN_PARALLEL = """\
version: 1
name: digits
network: {kind: digits}
data: {kind: digits, calibration_images: 60, search_images: 100, test_images: 100}
budget: {macs: 50%}
pruning: {round_to: 4}
evaluation: {fidelity: sequential, images: 40, rows: 500, objective: "amc_test_batches:error"}
agents: [{kind: random}]
evaluations: 10
resources: {trials_in_parallel: 1, evaluations_in_parallel: 2}
"""
_PATIENCE_S = 600.0

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
    return sum(journal.read_bytes().count(b"\n") for journal in job.glob("trials/*/evaluations.jsonl"))


def reached(job: Path, count: int) -> bool:
    return evaluations(job) >= count


def worker(job: Path) -> int:
    (path,) = job.glob("trials/*/pid")
    return int(path.read_text())


def timeless(trial: TrialRecord) -> TrialRecord:
    """All that must be the same in two runs of a trial: every evaluation and the winner."""
    history = tuple(point.model_copy(update={"seconds": 0.0}) for point in trial.history)
    return trial.model_copy(update={"seconds": 0.0, "history": history})


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


@pytest.fixture
def parallel(tmp_path: Path) -> Path:
    """The spec of a trial whose evaluations run in parallel."""
    (tmp_path / "amc_test_batches.py").write_text(BATCHES)
    (tmp_path / "spec.yaml").write_text(IN_PARALLEL)
    return tmp_path / "spec.yaml"


def one_by_one(spec: Path) -> TrialRecord:
    """The trial run at once in this process."""
    loaded = load_spec(spec)
    (trial,) = plan_trials(loaded)
    (spec.parent / "serial").mkdir()
    with pytest.MonkeyPatch.context() as patch:  # brings back what the module of the objective changes here
        patch.setattr(RandomSearch, "search", RandomSearch.search)
        patch.setattr(RandomSearch, "evaluates_many", False)
        patch.syspath_prepend(spec.parent)
        problem = build_problem(loaded)
        record = run_trial(loaded, problem, trial.agent, trial.seed, spec.parent / "serial", lambda progress: None)
        patch.delitem(sys.modules, "amc_test_batches")
    return record


def kill_one_that_scores(folder: Path) -> None:
    assert wait_until(lambda: list(folder.glob("scoring-*")))
    path = min(folder.glob("scoring-*"))
    os.kill(int(path.name.partition("-")[2]), signal.SIGKILL)
    path.unlink()


def test_evaluations_in_parallel_are_those_of_one_by_one_although_a_worker_is_killed(
    start: Start, parallel: Path
) -> None:
    folder, job = parallel.parent, parallel.parent / "job"
    driver = start("run", parallel, "--out", job)
    assert wait_until(lambda: reached(job, 2) and len(list(folder.glob("scoring-*"))) == 2)
    kill_one_that_scores(folder)
    code, errors = driver.finish()
    assert code == 0, errors
    assert [timeless(trial) for trial in load_results(job).trials] == [timeless(one_by_one(parallel))]
    assert wait_until(driver.ended), "processes were left running"


def test_what_goes_wrong_in_a_worker_is_the_error_of_the_trial(start: Start, parallel: Path) -> None:
    folder, job = parallel.parent, parallel.parent / "job"
    driver = start("run", parallel, "--out", job, "--set", "resources.max_failures=0")
    assert wait_until(partial(reached, job, 1))
    kill_one_that_scores(folder)
    code, errors = driver.finish()
    assert code == 1
    assert (
        "random seed 0 failed: RuntimeError: the process of an evaluation was killed, or memory ran out, more often "
        "than resources.max_failures (0) allows"
    ) in errors
    (folder / "fail").touch()
    code, errors = start("resume", job).finish()
    assert code == 1
    assert "random seed 0 failed: ValueError: the boxes overlap\n" in errors
    assert 'raise ValueError("the boxes overlap")' in (job / "trials" / "random-seed0" / "error.txt").read_text()


def test_ctrl_c_ends_evaluations_in_parallel(start: Start, parallel: Path) -> None:
    folder, job = parallel.parent, parallel.parent / "job"
    driver = start("run", parallel, "--out", job)
    assert wait_until(lambda: reached(job, 1) and list(folder.glob("scoring-*")))
    os.killpg(driver.process.pid, signal.SIGINT)
    assert driver.finish()[0] == 130
    assert wait_until(driver.ended), "processes were left running"
    assert [trial.status for trial in load_results(job).trials] == ["interrupted"]
