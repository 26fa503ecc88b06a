"""Trials on Ray Tune: in parallel, retried when a worker dies, stopped by a signal. The only file that imports ray.

Within a trial, several evaluations that its agent asks for at once are tasks of Ray, on CPUs that the trial reserves.

Call `search.machine.set_ray_environment` before the first import of this module: Ray reads its settings then.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import shutil
import signal
import socket
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import ray
import torch
from ray import tune

from amc_env.budget import Budget
from amc_env.problem import PruningProblem, Score, Widths
from amc_env.splits import DataSplits
from hw.files import write_atomically
from search.build import build_problem
from search.errors import UserError
from search.latency_job import job_table
from search.machine import available_cpus, trials_at_once
from search.progress import OnProgress, TrialProgress, TrialState
from search.spec_models import Spec
from search.trial import PlannedTrial, plan_trials, run_trial

_SMALLEST_OBJECT_STORE = 100 * 2**20


@dataclass(frozen=True)
class Attempt:
    """What one run of Ray Tune does: trials of a job that are not finished yet.

    Attributes:
        job: the job's folder; on a cluster, on storage that every node sees.
        storage: a new folder for what Ray Tune keeps.
        address: of a Ray cluster that exists; None for one of our own on this machine.
    """

    spec: Spec
    data: DataSplits | None
    trials: Sequence[PlannedTrial]
    job: Path
    storage: Path
    address: str | None


def run_trials(attempt: Attempt, on_progress: OnProgress) -> None:
    """Run the trials. They leave their results in their folders, `job/trials/<name>`.

    Raises:
        KeyboardInterrupt: SIGINT or SIGTERM came; all trials were stopped.
        UserError: the cluster is too small for the spec's resources.
    """
    with _ray(attempt.address, _bytes(attempt.data)), _stop_on_signal() as stopped:
        resources, cpus = attempt.spec.resources, _cpus_of_nodes()
        trials_at_once(resources, cpus, attempt.spec.evaluations_at_once)
        source = _Source(str(attempt.job), attempt.spec, (ray.put(attempt.data),))
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, source=source), functools.partial(_bundles, attempt.spec)),
            param_space={"trial": tune.grid_search([trial.name for trial in attempt.trials])},
            tune_config=tune.TuneConfig(
                # as many as there is room for if they are small; Ray starts none before there is room for it
                max_concurrent_trials=trials_at_once(resources, cpus),
                trial_name_creator=_name,
                trial_dirname_creator=_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(attempt.storage),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=resources.max_failures),
                callbacks=[_Watch(attempt.job, on_progress, stopped)],
            ),
        )
        with contextlib.redirect_stdout(io.StringIO()):
            tuner.fit()


def check_local_ray() -> str:
    """Start a Ray on this machine, let it compute something, and end it. Returns its version."""
    with _ray(None, 0):
        ray.get(ray.remote(lambda: 1).remote())
    return str(ray.__version__)


@dataclass(frozen=True)
class _Source:
    """Of what all processes of a job build the same problem.

    Attributes:
        job: the job's folder.
        data: a reference to the splits in Ray's shared memory, in a tuple so that Ray passes it on as it is.
    """

    job: str
    spec: Spec = field(compare=False)
    data: tuple[Any] = field(compare=False)

    def problem(self) -> PruningProblem:
        if not Path(self.job).is_dir():
            raise FileNotFoundError(
                f"no folder {self.job} on node {socket.gethostname()}: on a cluster, the job folder must lie on "
                f"storage that every node sees at the same path"
            )
        return build_problem(self.spec, ray.get(self.data[0]), job_table(Path(self.job)))


def _planned(spec: Spec, config: dict[str, str]) -> PlannedTrial:
    return next(trial for trial in plan_trials(spec) if trial.name == config["trial"])


def _bundles(spec: Spec, config: dict[str, str]) -> tune.PlacementGroupFactory:
    """The CPUs that a trial reserves: its own, or those of its evaluations, for which it only waits."""
    evaluation: dict[str, int | float] = {"CPU": spec.resources.threads_per_trial}
    count = spec.resources.evaluations_at_once(_planned(spec, config).agent)
    return tune.PlacementGroupFactory([evaluation] if count == 1 else [{}, *[evaluation] * count])


def _trial(config: dict[str, str], source: _Source) -> None:
    """What a worker does: one trial."""
    spec, planned = source.spec, _planned(source.spec, config)
    problem = source.problem()
    if spec.resources.evaluations_at_once(planned.agent) > 1:
        problem.scorer = _Workers(source, problem)

    def report(progress: TrialProgress) -> None:
        tune.report(
            {"evaluations": progress.evaluations, "best_reward": progress.best_reward, "spent_s": progress.seconds}
        )

    run_trial(spec, problem, planned.agent, planned.seed, Path(source.job) / "trials" / planned.name, report)


class _Workers:
    """The scorer of a trial's problem: a task of Ray for each evaluation, on the CPUs that the trial reserved.

    The tasks begin in the order of the plans, so that those of one process stay as near to each other as they can be
    and its activations are used again. A task whose process dies begins again in another, `max_failures` times.
    """

    def __init__(self, source: _Source, problem: PruningProblem) -> None:
        self._source, self._problem = source, problem
        self._max_failures = source.spec.resources.max_failures
        remote = ray.remote(num_cpus=source.spec.resources.threads_per_trial, max_retries=self._max_failures)
        self._score = remote(_score)

    def __call__(self, plans: Sequence[Widths]) -> Iterator[Score]:
        """Begin all at once with the best reward as it is now; the scores come in the order of the plans."""
        best = dict(self._problem.best_rewards)
        return self._in_order(deque(self._score.remote(self._source, widths, best) for widths in plans))

    def _in_order(self, tasks: deque[Any]) -> Iterator[Score]:
        """What is not asked for any more ends with the trial: Ray stops tasks whose owner is gone.

        They are not cancelled: of 24 owners that did so while tasks failed, five died of it (Ray 2.60).
        """
        while tasks:
            yield self._result(tasks.popleft())

    def _result(self, task: Any) -> Score:
        """Its score, or its own error.

        Raises:
            RuntimeError: its process died once more than `max_failures`.
        """
        try:
            score: Score = ray.get(task)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error  # the first is the user's, the second has the traceback of the worker
        except ray.exceptions.RayError as error:
            raise RuntimeError(
                f"the process of an evaluation was killed, or memory ran out, more often than resources.max_failures "
                f"({self._max_failures}) allows; `amc resume` tries again, and a job with fewer "
                f"resources.evaluations_in_parallel needs less memory"
            ) from error
        return score


def _score(source: _Source, widths: Widths, best_rewards: dict[tuple[Budget, ...], float]) -> Score:
    """What a worker does for a trial: one evaluation."""
    return _worker_problem(source).score_against(widths, best_rewards)


@functools.lru_cache(maxsize=1)
def _worker_problem(source: _Source) -> PruningProblem:
    """The problem of this process, built by its first evaluation."""
    torch.set_num_threads(source.spec.resources.threads_per_trial)
    return source.problem()


def _name(trial: Any) -> str:
    return str(trial.config["trial"])


class _Watch(tune.Callback):
    """Follows the trials in the driver: progress, the errors of workers that died, and the signal to stop."""

    def __init__(self, job: Path, on_progress: OnProgress, stopped: Callable[[], bool]) -> None:
        self._job, self._on_progress, self._stopped = job, on_progress, stopped

    def __getstate__(self) -> dict[str, Any]:
        """Ray Tune saves its callbacks; this one is never restored."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._stopped():
            raise KeyboardInterrupt

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._tell(trial, "running", result)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell(trial, "retrying")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell(trial, "finished" if (self._folder(trial) / "result.json").exists() else "failed")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = f"The worker process of the trial ended unexpectedly, or never began:\n{trial.get_error()}\n"
        write_atomically(self._folder(trial) / "error.txt", error)
        self._tell(trial, "failed")

    def _folder(self, trial: Any) -> Path:
        return self._job / "trials" / _name(trial)

    def _tell(self, trial: Any, state: TrialState, result: dict[str, Any] | None = None) -> None:
        last = result or trial.last_result or {}
        self._on_progress(
            TrialProgress(
                _name(trial), state, last.get("evaluations", 0), last.get("best_reward"), last.get("spent_s", 0.0)
            )
        )


@contextlib.contextmanager
def _ray(address: str | None, data_bytes: int) -> Iterator[None]:
    """Connected to a Ray: one of our own that ends with the block, or the cluster at the address."""
    if ray.is_initialized():
        raise ValueError("this process is connected to a Ray already; call ray.shutdown() first")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    # Ray makes socket files in its folder, whose paths must be short, and opens it to all users: hence one inside ours.
    folder = tempfile.mkdtemp(prefix="amc-", dir=None if len(tempfile.gettempdir()) < 24 else "/tmp")
    try:
        if address is None:
            _start(
                address="local",
                num_cpus=available_cpus(),
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=_SMALLEST_OBJECT_STORE + 2 * data_bytes,
                _temp_dir=f"{folder}/r",
                **common,
            )
        else:
            ray.init(address=address, **common)
        yield
    finally:
        with _signals_ignored():
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _start(**options: Any) -> None:
    """Start a Ray of our own.

    Raises:
        UserError: its processes did not come up in the time that Ray gives them.
    """
    try:
        ray.init(**options)
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            "Ray's processes did not start in time: the machine is busy, or short of memory; try again when it is "
            "quieter (the job goes on with amc resume)"
        ) from error


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Within the block SIGINT and SIGTERM only set a flag, which the value of the block reads."""
    came = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        came.set()

    with _handlers(handler):
        yield came.is_set


def _signals_ignored() -> contextlib.AbstractContextManager[None]:
    """Within the block SIGINT and SIGTERM do nothing: a second Ctrl-C must not leave processes behind."""
    return _handlers(signal.SIG_IGN)


@contextlib.contextmanager
def _handlers(handler: Any) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _cpus_of_nodes() -> list[int]:
    return [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _bytes(data: DataSplits | None) -> int:
    if data is None:
        return 0
    return sum(split.images.nbytes + split.labels.nbytes for split in (data.calibration, data.search, data.test))
