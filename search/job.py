"""A job: a spec in, a folder with the results out. What stands in the folder is the whole state of the job.

- `DIR/spec.yaml`: the spec, paths absolute, defaults filled in
- `DIR/results.json`: written when the job begins, and again whenever it ends
- `DIR/report.html`
- `DIR/trials/<agent>-seed<k>/evaluations.jsonl`: the journal
- `DIR/trials/<agent>-seed<k>/result.json`: if and only if the trial is finished
- `DIR/trials/<agent>-seed<k>/error.txt`: if it failed
- `DIR/attempts/<n>/`: what Ray Tune keeps of the n-th attempt
- `DIR/latency.json`, `latency.journal`, `rounds/<n>/`, `sparse_latency.json`: see `search.latency_job`
- `DIR/finetune/<agent>-seed<k>/`: see `search.finetune_job`
- `DIR/known.jsonl`: what other jobs had evaluated before; see `search.known`
- `DIR/lock`: locked by the process that runs the job
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from pydantic import ValidationError

from amc_env.budget import Budget, InfeasibleBudgetError
from amc_env.evaluation import NetworkProblem
from amc_env.fine_grained import WeightProblem
from amc_env.image_problem import ImageProblem
from amc_env.problem import Decision, PruningProblem
from amc_env.pruning.calibration import OnProgress as OnLayers
from amc_env.splits import DataSplits, Split
from amc_env.weights import weights_digest
from hw.files import write_atomically
from hw.latency_table import LatencyTable
from search.build import build_problem, calibrate, load_data, load_training_images, measure_test
from search.errors import UserError
from search.finetune_job import check_recipe, fine_tune_winners
from search.known import FILE as KNOWN
from search.known import Known, join_known, known_of_job, load_known, problem_of_spec
from search.latency_job import (
    finish_refinement,
    given_table,
    job_table,
    provide_sparse_table,
    provide_table,
    put_aside,
    time_policies,
)
from search.locking import held, locked
from search.machine import available_cpus, check_reachable, set_ray_environment, trials_at_once
from search.measure import MeasureOptions, measure_winner
from search.progress import CalibrationProgress, LatencyProgress, OnJobProgress, SetUpProgress, TrialProgress
from search.ray_jobs import end_lost_driver, is_jobs_address
from search.report import write_report
from search.results import (
    BudgetRecord,
    DecisionRecord,
    DenseRecord,
    JobStatus,
    Results,
    SplitRecord,
    TrialRecord,
    steps_left,
)
from search.spec import load_spec, save_spec
from search.spec_models import Spec
from search.tables import missed_winner
from search.trial import plan_trials, read_trial

_VERSIONS = ("amc-search", "torch", "torchvision", "gymnasium", "stable-baselines3", "ray", "numpy", "onnxruntime")


class JobError(UserError):
    """The job cannot be run as asked; the message says why."""


@dataclass(frozen=True)
class _Job:
    spec: Spec
    data: DataSplits | None
    problem: PruningProblem
    address: str | None
    table: LatencyTable | None = None
    training: Split | None = None


def _ignore(progress: TrialProgress | SetUpProgress) -> None:
    pass


def run_job(
    spec: Spec,
    out: Path,
    address: str | None = None,
    on_progress: OnJobProgress = _ignore,
    *,
    known: Sequence[Path] = (),
) -> Results:
    """Run a new job in a folder that is empty or not there yet.

    Args:
        spec: what to do.
        out: the job's folder.
        address: of a Ray cluster that exists; None to start one on this machine, for this job alone.
        on_progress: called as the calibration and then the trials come on.
        known: folders of jobs of the same problem, or files of `search.known`: what is evaluated there is not
            evaluated again.

    Returns:
        The results; their status is "interrupted" if SIGINT or SIGTERM came while trials were running.

    Raises:
        JobError: the folder is in use, or network, data, budget or resources are not as the spec needs them.
        KnownError: what is known is damaged, or of another problem.
        KeyboardInterrupt: a signal came before the first trial, or after the last.
    """
    _refuse_used(out)
    sources = [(path, known_of_job(load_results(path)) if path.is_dir() else load_known(path)) for path in known]
    job = _prepare(spec, address, on_progress)
    joined = _join(job, sources) if sources else None
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        _refuse_used(out)
        if joined is not None:
            joined.save(out / KNOWN)
        write_atomically(out / "spec.yaml", save_spec(spec))
        return _run(job, out.resolve(), on_progress)


def known_of_jobs(folders: Sequence[Path]) -> Known:
    """What jobs have evaluated, for a job that is yet to be prepared and then checks that its problem is theirs.

    Raises:
        JobError: a folder is none of a job, or its search has not begun.
        KnownError: the jobs are of different problems.
    """
    sources = [(folder, known_of_job(load_results(folder))) for folder in folders]
    return join_known(sources[0][1].problem, sources)


def _join(job: _Job, sources: Sequence[tuple[Path, Known]]) -> Known:
    decisions = [_decision(decision) for decision in job.problem.decisions]
    problem = problem_of_spec(job.spec, decisions, _identity(job), metadata.version("amc-search"))
    return join_known(problem, sources)


def resume_job(folder: Path, address: str | None = None, on_progress: OnJobProgress = _ignore) -> Results:
    """Go on with a job that was interrupted or in which trials failed. Returns and raises as `run_job`."""
    job_spec(folder)
    with _locked(folder):
        end_lost_driver(folder.resolve())
        return continue_job(folder, address, on_progress)


def continue_job(folder: Path, address: str | None = None, on_progress: OnJobProgress = _ignore) -> Results:
    """Run what is left of a job, for a process that has locked `folder/lock` already: all of it, if it is new."""
    spec = job_spec(folder)
    done = (folder / "results.json").exists() and _is_done(load_results(folder))
    if done and not _pending(spec, folder) and (folder / "report.html").exists():
        raise JobError(f"{folder}: all trials are finished, nothing to resume; see `amc show {folder}`")
    job = _prepare(spec, address, on_progress)
    if (folder / KNOWN).exists() and not (folder / "results.json").exists():  # submitted with it, unchecked so far
        _join(job, [(folder / KNOWN, load_known(folder / KNOWN))])
    return _run(job, folder.resolve(), on_progress)


def job_spec(folder: Path) -> Spec:
    """The spec of a job.

    Raises:
        JobError: the folder is none of a job.
    """
    if not (folder / "spec.yaml").is_file():
        raise JobError(f"{folder}: no job folder, it has no spec.yaml; expected a folder made by `amc run`")
    return load_spec(folder / "spec.yaml")


def load_results(folder: Path) -> Results:
    """The results of a job, as far as it has come. Reads only.

    Raises:
        JobError: the folder is none of a job, the job has not begun its search, or its results are damaged.
    """
    spec = job_spec(folder)
    if not (folder / "results.json").is_file():
        raise JobError(f"{folder}: the search has not begun; continue with `amc resume {folder}`")
    try:
        results = Results.model_validate_json((folder / "results.json").read_bytes())
    except ValidationError as error:
        raise JobError(
            f"{folder / 'results.json'} is damaged; delete it, `amc resume {folder}` makes it anew"
        ) from error
    return results if results.status == "finished" else _with_trials(results, spec, folder)


def is_running(folder: Path) -> bool:
    """Whether a process is running the job."""
    return held(folder / "lock")


def _prepare(spec: Spec, address: str | None, on_progress: OnJobProgress) -> _Job:
    try:
        address = address or spec.resources.address
        if is_jobs_address(address):
            raise UserError(
                f"{address} is the address of Ray Jobs, where a server has searches driven: submit the job to `amc "
                f"serve`; to drive it from here, give the address of the cluster itself, such as head:6379"
            )
        if address is None:
            trials_at_once(spec.resources, [available_cpus()], spec.evaluations_at_once)
        else:
            check_reachable(address)
        data = load_data(spec)
        problem = build_problem(
            spec, data, given_table(spec), lambda done, total: on_progress(CalibrationProgress(done, total))
        )
        _check_agents(spec, problem)
        training = load_training_images(spec)
        if spec.finetune is not None and training is not None and isinstance(problem, ImageProblem):
            check_recipe(spec.finetune, problem, training)
        return _Job(spec, data, problem, address, training=training)
    except (ValueError, OSError) as error:
        raise JobError(str(error)) from error


def _check_agents(spec: Spec, problem: PruningProblem) -> None:
    awaits_table = len(problem.budgets) < len(spec.limits)
    for index, agent in enumerate(spec.agents):
        if awaits_table and agent.needs_budget:
            continue  # it is checked when the table is there
        try:
            agent.check(problem, spec.evaluations)
        except ValueError as error:
            raise ValueError(f"agents.{index} ({agent.label}): {error}") from error


def _with_table(job: _Job, folder: Path, on_progress: OnJobProgress) -> _Job:
    """The job with the budget on latency, if the spec has one; the table is measured now if there is none."""
    if job.spec.needs_sparse_table and isinstance(job.problem, WeightProblem):
        return _with_sparse_table(job, job.problem, folder, on_progress)
    if not job.spec.needs_table or not isinstance(job.problem, NetworkProblem):
        return job
    try:
        table = provide_table(job.spec, job.problem, folder, on_progress)
        problem = build_problem(job.spec, job.data, table)
        _check_agents(job.spec, problem)
        return replace(job, problem=problem, table=table)
    except ValueError as error:
        raise JobError(str(error)) from error


def _with_sparse_table(job: _Job, problem: WeightProblem, folder: Path, on_progress: OnJobProgress) -> _Job:
    try:
        table = provide_sparse_table(job.spec, problem, folder, on_progress)
        limited = build_problem(job.spec, job.data, table)
        _check_agents(job.spec, limited)
        return replace(job, problem=limited)
    except ValueError as error:
        raise JobError(str(error)) from error


def _run(job: _Job, folder: Path, on_progress: OnJobProgress) -> Results:
    started = time.monotonic()
    job = _with_table(job, folder, on_progress)
    while True:
        begun = _begin(job, folder)
        pending = _pending(job.spec, folder)
        for name in pending:
            (folder / "trials" / name).mkdir(parents=True, exist_ok=True)
            (folder / "trials" / name / "error.txt").unlink(missing_ok=True)
        with contextlib.suppress(KeyboardInterrupt):  # the trials tell what was interrupted
            if pending:
                calibrate(job.problem, job.spec, lambda done, layers: on_progress(CalibrationProgress(done, layers)))
                _search(job, folder, pending, on_progress)
        results = _with_trials(begun, job.spec, folder)
        timed = results.latency is not None
        if not timed and results.status == "finished" and job.table and isinstance(job.problem, NetworkProblem):
            record = time_policies(job.spec, job.problem, job.table, results.trials, folder, on_progress)
            results = results.model_copy(update={"latency": record})
            corrected = _corrected(job, folder, results)
            if corrected is not None:
                job = corrected
                continue
        results = _conclude(results, begun, started, folder)
        if job.training is not None and results.status == "finished":
            results = _conclude(_fine_tuned(job, job.training, results, folder, on_progress), begun, started, folder)
        if results.status == "finished" and "measured" in _left(results) and isinstance(job.problem, ImageProblem):
            options = MeasureOptions(True, job.spec.latency.threads, job.spec.latency.batch)
            measured = measure_winner(folder, job.problem, results, options, on_layer=_layers(on_progress))
            results = _conclude(results.model_copy(update={"measured": measured}), begun, started, folder)
        return results


def _is_done(results: Results) -> bool:
    return results.status == "finished" and not _left(results)


def _left(results: Results) -> list[str]:
    return steps_left(results.spec, vars(results), any(trial.best is not None for trial in results.trials))


def _layers(on_progress: OnJobProgress) -> OnLayers:
    return lambda done, total: on_progress(LatencyProgress(done, total, unit="layers"))


def _conclude(results: Results, begun: Results, started: float, folder: Path) -> Results:
    """Write results and report of a job that began again at `started`."""
    results = results.model_copy(update={"seconds": begun.seconds + time.monotonic() - started})
    _save(results, folder)
    write_report(results, folder / "report.html")
    return results


def _fine_tuned(job: _Job, training: Split, results: Results, folder: Path, on_progress: OnJobProgress) -> Results:
    if job.spec.finetune is None or not isinstance(job.problem, ImageProblem):
        return results
    try:
        record = fine_tune_winners(job.spec.finetune, job.problem, training, results, folder, on_progress)
    except ValueError as error:
        raise JobError(str(error)) from error
    return results.model_copy(update={"finetune": record})


def measure_job(
    folder: Path,
    options: MeasureOptions,
    *,
    agent: str | None = None,
    seed: int | None = None,
    on_layer: OnLayers = lambda done, total: None,
) -> Results:
    """Time the winner of a finished job on this machine, and write it into the job's results and report.

    Args:
        folder: the job's.
        options: how.
        agent, seed: of which trials; None for all.
        on_layer: called with how many layers are measured, of how many.

    Raises:
        JobError: the job is running, or has no network, or there is no such winner.
    """
    job_spec(folder)
    with _locked(folder):
        results = load_results(folder)
        try:
            problem = build_problem(Spec.model_validate(results.spec), table=job_table(folder))
            if not isinstance(problem, ImageProblem):
                raise JobError("the job searched the toy problem, which has no network to measure")
            record = measure_winner(folder, problem, results, options, agent=agent, seed=seed, on_layer=on_layer)
        except (ValueError, OSError) as error:
            raise JobError(str(error)) from error
        results = results.model_copy(update={"measured": record})
        _save(results, folder)
        write_report(results, folder / "report.html")
        return results


def _corrected(job: _Job, folder: Path, results: Results) -> _Job | None:
    """The job with a table corrected by its winner, if that misses the budget and the search may go on."""
    missed, record = missed_winner(results), results.latency
    if missed is None or record is None or job.table is None or not isinstance(job.problem, NetworkProblem):
        return None
    if len(record.refinements) >= job.spec.latency.refine:
        return None
    if max(missed.predicted_ms, missed.measured_ms) >= record.predicted_dense_ms:
        return None  # there is nothing to learn from a network that is no faster
    table = job.table.refined(missed.predicted_ms, missed.measured_ms, record.predicted_dense_ms)
    try:
        problem = build_problem(job.spec, job.data, table)
    except InfeasibleBudgetError:
        return None  # the report says that the budget is missed
    put_aside(folder, missed, job.table)
    return replace(job, problem=problem, table=finish_refinement(folder, job.table, job.problem))


def _search(job: _Job, folder: Path, pending: list[str], on_progress: OnJobProgress) -> None:
    set_ray_environment(job.address)
    from search.tuner import Attempt, run_trials

    trials = [trial for trial in plan_trials(job.spec) if trial.name in pending]
    attempts = folder / "attempts"
    attempts.mkdir(exist_ok=True)
    storage = attempts / str(1 + max((int(entry.name) for entry in attempts.iterdir()), default=0))
    storage.mkdir()
    try:
        run_trials(Attempt(job.spec, job.data, trials, folder, storage, job.address), on_progress)
    except ConnectionError as error:
        raise JobError(f"no Ray cluster at {job.address}: {error}") from error


def _begin(job: _Job, folder: Path) -> Results:
    """What is known before any trial, among it the dense network, measured once per job."""
    path = folder / "results.json"
    identity = _identity(job)
    if not path.exists():
        begun = _describe(job, identity)
        if (folder / KNOWN).exists():
            begun = begun.model_copy(update={"known": len(load_known(folder / KNOWN).records)})
        _save(begun, folder)
        return begun
    begun = Results.model_validate_json(path.read_text())
    stale = ("latency", "finetune", "measured") if _pending(job.spec, folder) else ("finetune",)
    begun = begun.model_copy(update=dict.fromkeys(stale))
    changed = [name for name, value in identity.items() if getattr(begun, name) != value]
    if Spec.model_validate(begun.spec) != job.spec:  # not by spec_id: a newer release may add keys with defaults
        changed.append("spec")
    if changed:
        raise JobError(f"{folder}: not what it was when the job began: {', '.join(changed)}; start a new job")
    return begun


def _identity(job: _Job) -> dict[str, str]:
    """What must be the same when a job is resumed; the toy problem has neither data nor weights."""
    return {
        "data_digest": "" if job.data is None else job.data.digest,
        "weights_digest": weights_digest(job.problem.network) if isinstance(job.problem, ImageProblem) else "",
    }


def _describe(job: _Job, identity: dict[str, str]) -> Results:
    problem, data = job.problem, job.data
    try:
        search, test = problem.score(problem.dense_widths), measure_test(problem, problem.dense_widths)
    except ValueError as error:
        raise JobError(str(error)) from error
    splits = {} if data is None else {name: getattr(data, name) for name in ("calibration", "search", "test")}
    return Results(
        name=job.spec.name,
        status="interrupted",
        spec=job.spec.content(),
        spec_id=job.spec.spec_id,
        data_digest=identity["data_digest"],
        weights_digest=identity["weights_digest"],
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=0.0,
        dense=DenseRecord(
            costs=problem.dense_costs,
            search_error=search.error,
            test_error=test.error,
            search_accuracy=search.accuracy,
            test_accuracy=test.accuracy,
        ),
        budgets=tuple(_budget(problem, budget) for budget in problem.budgets),
        decisions=tuple(_decision(decision) for decision in problem.decisions),
        narrowest=tuple(map(_narrowest, problem.decisions)) if isinstance(problem, NetworkProblem) else (),
        splits={name: SplitRecord(images=len(split), source=split.source) for name, split in splits.items()},
        trials=(),
        versions={"python": platform.python_version(), **{name: metadata.version(name) for name in _VERSIONS}},
    )


def _narrowest(decision: Decision) -> int | None:
    """The narrowest width, if the next one in its steps exists but `max_ratio` forbids it."""
    first, *others = decision.choices
    return first if len(others) > 1 and first > others[0] - first else None


def _budget(problem: PruningProblem, budget: Budget) -> BudgetRecord:
    fraction = budget.limit / problem.dense_costs[budget.cost]  # of latency: less the margin
    unit = problem.cost_models[budget.cost].unit
    return BudgetRecord(cost=budget.cost, limit=budget.limit, fraction=fraction, unit=unit)


def _decision(decision: Decision) -> DecisionRecord:
    layer = decision.layer
    return DecisionRecord(
        name=decision.name,
        channels=decision.size,
        op=layer.op,
        kernel=layer.kernel_size[0],
        stride=layer.stride[0],
        macs=layer.macs,
    )


def _with_trials(results: Results, spec: Spec, folder: Path) -> Results:
    """The results with all trials as they are now, and the status that follows from them."""
    planned = plan_trials(spec)
    trials = tuple(read_trial(trial.agent, trial.seed, folder / "trials" / trial.name) for trial in planned)
    return results.model_copy(update={"trials": trials, "status": job_status(trials)})


def job_status(trials: tuple[TrialRecord, ...]) -> JobStatus:
    """Interrupted if any trial was, failed if all did, else finished."""
    states = {trial.status for trial in trials}
    if "interrupted" in states:
        return "interrupted"
    return "failed" if states == {"failed"} else "finished"


def _pending(spec: Spec, folder: Path) -> list[str]:
    names = [trial.name for trial in plan_trials(spec)]
    return [name for name in names if not (folder / "trials" / name / "result.json").exists()]


def _save(results: Results, folder: Path) -> None:
    write_atomically(folder / "results.json", results.model_dump_json(indent=1))


def _refuse_used(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(entry.name != "lock" for entry in out.iterdir())):
        raise JobError(f"{out}: expected a new or empty folder for the job; take another, or `amc resume {out}`")


def _locked(folder: Path) -> contextlib.AbstractContextManager[None]:
    return locked(folder, JobError(f"{folder}: another process is running this job"))
