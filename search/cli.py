"""The command `amc`. Libraries are imported by the verbs that need them, so that `amc --help` answers at once."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from search.cli_errors import FAILED, INTERRUPTED, NO_FEASIBLE_POLICY, USAGE, clear_errors, fail
from search.cli_lottery import lottery
from search.cli_lut import lut
from search.cli_sensitivity import sensitivity
from search.cli_service import (
    cancel,
    client_options,
    compare_on_server,
    connect,
    export_from_server,
    job_folder,
    logs,
    ls,
    queue_again,
    rm,
    serve,
    show_job,
    submit,
    wait,
)

if TYPE_CHECKING:
    from search.progress import OnJobProgress, SetUpProgress, TrialProgress
    from search.results import Results
    from search.spec_models import Spec

_FOLDER = click.Path(path_type=Path)
_address = click.option("--address", help="Of a Ray cluster that exists; by default one is started for the job.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="amc-search")
def main() -> None:
    """Find the best per-layer pruning ratios of a trained network under a budget.

    Exit codes: 0 done, 1 failed, 2 bad spec or usage, 3 no feasible policy, 130 interrupted.
    """


@main.command()
@click.argument("spec", type=_FOLDER)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value, e.g. evaluations=10.")
@click.option("--out", type=_FOLDER, help="The job's folder; by default runs/<name>-<time>.")
@click.option(
    "--known", multiple=True, type=_FOLDER, metavar="DIR|FILE",
    help="A job of the same problem, or its known.jsonl: what it evaluated is not evaluated again.",
)  # fmt: skip
@_address
def run(spec: Path, overrides: tuple[str, ...], out: Path | None, known: tuple[Path, ...], address: str | None) -> None:
    """Run a job and compare its agents."""
    with clear_errors():
        from search.job import run_job
        from search.spec import load_spec

        loaded = load_spec(spec, overrides)
        folder = out or Path("runs") / f"{loaded.name}-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        with _job(folder, loaded) as on_progress:
            results = run_job(loaded, folder, address, on_progress, known=known)
        _conclude(results, folder)


@main.command()
@click.argument("job", metavar="DIR|JOB")
@_address
@client_options
def resume(job: str, address: str | None, data: Path, server: str | None, token: str | None) -> None:
    """Go on with a job that was interrupted, or in which trials failed; one named by its id is queued again."""
    with clear_errors():
        from search.job import job_spec, resume_job

        if not Path(job).is_dir():
            if address is not None:
                raise click.UsageError(
                    "--address: of a job in a folder only; on a server `amc serve` says where jobs run"
                )
            queue_again(connect(data, server, token), job)
            return
        folder = Path(job)
        with _job(folder, job_spec(folder)) as on_progress:
            results = resume_job(folder, address, on_progress)
        _conclude(results, folder)


@main.command()
@click.argument("job", metavar="DIR|JOB")
@client_options
def show(job: str, data: Path, server: str | None, token: str | None) -> None:
    """Show how far a job is, or its results. Changes nothing."""
    with clear_errors():
        here = Path(job).is_dir()
        folder = job_folder(job, data) if here or server is None else None
        if folder is None or not (here or (folder / "results.json").is_file()):
            show_job(connect(data, server, token), job)
            return
        from search.job import is_running, load_results

        if is_running(folder) and not (folder / "results.json").is_file():
            click.echo(f"{folder}: running, nothing is evaluated yet")
            return
        results = load_results(folder)
        state = "running" if is_running(folder) else results.status
        click.echo(f"{results.name}: {state}, {folder}\n")
        for trial in results.trials:
            best = max((point.best_reward for point in trial.history if point.best_reward is not None), default=None)
            reward = "no feasible policy" if best is None else f"best reward {best:.4f}"
            status = "not finished" if trial.status == "interrupted" else trial.status
            click.echo(f"  {trial.agent} seed {trial.seed}: {status}, {trial.evaluations} evaluations, {reward}")
            if trial.error:
                click.echo(f"    {trial.error.strip().splitlines()[-1]}")
        click.echo()
        _echo_comparison([results])
        _echo_series(results, folder)


@main.command()
@click.argument("jobs", metavar="DIR|JOB...", nargs=-1, required=True)
@click.option("--format", "form", type=click.Choice(["table", "csv", "json", "md"]), default="table", show_default=True)
@client_options
def compare(jobs: tuple[str, ...], form: str, data: Path, server: str | None, token: str | None) -> None:
    """Compare the agents of one or several jobs; of the same problem also with each other."""
    with clear_errors():
        if server is not None and not all(Path(job).is_dir() for job in jobs):
            if form != "table":
                raise click.UsageError("--format: a server gives the table only; give folders, or ask its /api/compare")
            compare_on_server(connect(data, server, token), jobs)
            return
        from search.job import load_results

        _echo_comparison([load_results(job_folder(job, data)) for job in jobs], form)


@main.command()
@click.argument("job", metavar="DIR|JOB")
@click.option("--out", type=_FOLDER, required=True, help="A new folder for policy, plan, weights, ONNX and run card.")
@click.option("--agent", help="Of this agent; by default the best of all.")
@click.option("--seed", type=int, help="Of this seed; by default the best of all.")
@click.option("--step", type=int, help="A network of the agent's series instead, by its number in `amc show`.")
@client_options
def export(
    job: str, out: Path, agent: str | None, seed: int | None, step: int | None,
    data: Path, server: str | None, token: str | None,
) -> None:  # fmt: skip
    """Write the best policy of a job and its pruned network."""
    with clear_errors():
        if server is not None and not Path(job).is_dir():
            export_from_server(connect(data, server, token), job, out, {"agent": agent, "seed": seed, "step": step})
            return
        from search.chosen import ChoiceError
        from search.export import ExportError, export_job

        try:
            chosen = export_job(job_folder(job, data), out, agent, seed, step)
        except (ChoiceError, ExportError) as error:
            fail(error, FAILED)
        if not chosen.feasible:
            click.echo(f"network {step} of {chosen.trial.agent} seed {chosen.trial.seed} is over the budget", err=True)
        click.echo(f"written to {out}")


@main.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.option("--sparse", is_flag=True, help="Also with sparse kernels, and each layer by itself.")
@click.option("--agent", help="The best policy of this agent; by default the best of all.")
@click.option("--seed", type=int, help="Of this seed; by default the best of all.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of one run.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images in one run.")
def measure(folder: Path, sparse: bool, agent: str | None, seed: int | None, threads: int, batch: int) -> None:
    """Time the best policy's network beside the dense one, in torch, in onnxruntime and in 8 bits.

    With --sparse also in torch's CSR form and with sparse kernels, whole and layer by layer. The result goes into the
    job's report.
    """
    with clear_errors():
        from search.job import measure_job
        from search.measure import MeasureOptions
        from search.measure_report import measured_text

        results = measure_job(folder, MeasureOptions(sparse, threads, batch), agent=agent, seed=seed)
        click.echo(measured_text(results))
        click.echo(f"report: {folder / 'report.html'}")


for command in (lut, sensitivity, lottery, serve, submit, ls, logs, wait, cancel, rm):
    main.add_command(command)


@main.group()
def spec() -> None:
    """Write, check and describe specs."""


@spec.command("init")
@click.argument("path", default="spec.yaml", type=_FOLDER)
def spec_init(path: Path) -> None:
    """Write a commented spec to start from, for the embedded digits."""
    with clear_errors():
        from search.spec import STARTER

        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(STARTER)
        except OSError as error:
            fail(f"{path}: cannot be written: {error.strerror}", USAGE)
        click.echo(f"written to {path}; run it with: amc run {path}")


@spec.command("validate")
@click.argument("path", type=_FOLDER)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As of `amc run`.")
def spec_validate(path: Path, overrides: tuple[str, ...]) -> None:
    """Check a spec without running it."""
    with clear_errors():
        from search.spec import load_spec

        loaded = load_spec(path, overrides)
        click.echo(f"{path}: valid, spec id {loaded.spec_id}")


@spec.command("schema")
def spec_schema() -> None:
    """Print the JSON schema of specs."""
    from search.spec import spec_schema as schema

    click.echo(json.dumps(schema(), indent=2))


@main.command()
def doctor() -> None:
    """Check that this installation can run a job."""
    from search.doctor import diagnose

    bad = 0
    for finding in diagnose():
        click.echo(f"{'ok  ' if finding.good else 'FAIL'}  {finding.check}: {finding.detail}")
        bad += not finding.good
    sys.exit(FAILED if bad else 0)


@contextlib.contextmanager
def _job(folder: Path, spec: Spec) -> Iterator[OnJobProgress]:
    """Say where a job runs and how long it took; in a terminal, show its trials as they come on."""
    from search.progress import LiveProgress
    from search.trial import plan_trials

    started = time.monotonic()
    trials = [trial.name for trial in plan_trials(spec)]
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    click.echo(f"{spec.name}: {len(trials)} trials of up to {spec.evaluations} evaluations, {folder}", err=True)
    try:
        if sys.stderr.isatty():
            with LiveProgress(trials, spec.evaluations) as live:
                yield live
        else:
            yield _Lines()
    except KeyboardInterrupt:
        _interrupted(folder)
    finally:
        signal.signal(signal.SIGTERM, before)
    click.echo(f"wall-clock {time.monotonic() - started:.1f} s", err=True)


class _Lines:
    """What a log shows of a job: each stage of it once, fine-tuning at every tenth, and each trial when it ends."""

    def __init__(self) -> None:
        self._said: set[object] = set()
        self._last: dict[str, TrialProgress] = {}

    def __call__(self, progress: TrialProgress | SetUpProgress) -> None:
        from search.progress import CalibrationProgress, FineTuneProgress, TrialProgress

        if isinstance(progress, TrialProgress):
            self._trial(progress)
            return
        if isinstance(progress, CalibrationProgress) and progress.done >= progress.layers:
            return
        stage: object = type(progress)
        if isinstance(progress, FineTuneProgress):
            stage = progress.name, 10 * progress.step // progress.steps
        if stage not in self._said:
            click.echo(progress, err=True)
            self._said.add(stage)

    def _trial(self, progress: TrialProgress) -> None:
        if progress.state == "running":
            self._last[progress.trial] = progress
        if progress.state not in ("finished", "failed"):
            return
        last = self._last.get(progress.trial, progress)
        best = "no feasible policy" if last.best_reward is None else f"best reward {last.best_reward:.4f}"
        count = f"{last.evaluations} evaluation{'s' * (last.evaluations != 1)}"
        click.echo(f"{progress.trial}: {progress.state}, {count}, {best}", err=True)


def _conclude(results: Results, folder: Path) -> None:
    """The table, the report, and the exit code that follows from the results."""
    _echo_comparison([results])
    click.echo(f"\nreport: {folder / 'report.html'}")
    for trial in results.trials:
        if trial.error:
            last = trial.error.strip().splitlines()[-1]
            click.echo(f"{trial.agent} seed {trial.seed} failed: {last}", err=True)
    if results.status == "interrupted":
        _interrupted(folder)
    if results.status == "failed":
        click.echo(f"all trials failed; when the cause is gone: amc resume {folder}", err=True)
        sys.exit(FAILED)
    if all(trial.best is None for trial in results.trials):
        click.echo("no agent found a policy that meets the budget", err=True)
        sys.exit(NO_FEASIBLE_POLICY)


def _echo_comparison(jobs: Sequence[Results], form: str = "table") -> None:
    """The table; for people also what the report says: outcome, standing, caveats, and what the scores are of."""
    from search.tables import compare as compare_results
    from search.tables import format_rows
    from search.verdict import said_of

    click.echo(format_rows(compare_results(jobs), form), nl=False)  # type: ignore[arg-type]
    for line in () if form in ("csv", "json") else said_of(jobs):
        click.echo(f"\n{line}")


def _echo_series(results: Results, folder: Path) -> None:
    """The networks on the way of each trial that kept them."""
    from search.columns import aligned
    from search.series_report import series_table

    for trial in results.trials:
        if trial.series:
            command = f"amc export {folder} --agent {trial.agent} --seed {trial.seed} --step N --out NEW"
            click.echo(f"\nnetworks on the way of {trial.agent} seed {trial.seed}; export number N with: {command}")
            click.echo(aligned(*series_table(results, trial)), nl=False)


def _interrupted(folder: Path) -> None:
    begun = (folder / "spec.yaml").exists()
    click.echo(f"interrupted; continue with: amc resume {folder}" if begun else "interrupted before it began", err=True)
    sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
