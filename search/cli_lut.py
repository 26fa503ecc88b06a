"""The verbs `amc lut`: build, show, compare and check latency tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from search.cli_errors import FAILED, clear_errors, fail
from search.cli_progress import progress_line

if TYPE_CHECKING:
    from amc_env.evaluation import NetworkProblem
    from hw.latency_table import LatencyTable
    from search.spec_models import Spec

_FILE = click.Path(path_type=Path)
_set = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As of `amc run`.")


@click.group()
def lut() -> None:
    """Latency tables: what each layer of a network takes at each width, measured where it will run."""


@lut.command()
@click.argument("spec", type=_FILE)
@click.option("--out", type=_FILE, required=True, help="The table's file, JSON.")
@_set
def build(spec: Path, out: Path, overrides: tuple[str, ...]) -> None:
    """Measure the table that a search of this spec needs.

    The spec's section `latency` says in which runtime and with how many threads. Interrupted, the same command goes on.
    """
    with clear_errors():
        from hw.latency_file import save_table
        from search.latency import TableSize, build_latency_table

        loaded, problem = _problem(spec, overrides)
        if not out.resolve().parent.is_dir():
            raise click.UsageError(f"--out: there is no folder {out.resolve().parent}")
        if out.exists():
            raise click.UsageError(f"--out: {out} exists; delete it or give another name")
        journal = out.with_name(out.name + ".journal")
        latency = loaded.latency
        click.echo(f"measuring {latency.conditions}; interrupted, the same command goes on", err=True)
        try:
            table = build_latency_table(
                problem,
                latency.conditions,
                TableSize(latency.levels, latency.random, latency.seconds),
                journal=journal,
                on_progress=progress_line("networks"),
            )
        except ValueError as error:
            fail(error, FAILED)
        save_table(table, out)
        journal.unlink()
        click.echo(_summary(table))
        click.echo(f"written to {out}; check it with: amc lut verify {spec} {out}")


@lut.command()
@click.argument("table", type=_FILE)
@click.option("--format", "form", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
def show(table: Path, form: str) -> None:
    """Show where and how a table was measured, and its layers; as CSV or JSON all entries."""
    with clear_errors():
        from hw.latency_file import write_csv

        loaded = _load(table)
        if form == "csv":
            click.echo(write_csv(loaded.entries), nl=False)
        elif form == "json":
            click.echo(table.read_text())
        else:
            click.echo(_summary(loaded))
            click.echo()
            click.echo(_layers(loaded), nl=False)


@lut.command()
@click.argument("first", type=_FILE)
@click.argument("second", type=_FILE)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def diff(first: Path, second: Path, as_json: bool) -> None:
    """Compare the entries that two tables share: how much longer each takes in the second."""
    with clear_errors():
        from search.latency_report import table_difference

        difference = table_difference(_load(first), _load(second))
        click.echo(json.dumps(difference.content(), indent=1) if as_json else difference.text())


@lut.command()
@click.argument("spec", type=_FILE)
@click.argument("table", type=_FILE)
@click.option("--policies", type=click.IntRange(min=4), default=60, show_default=True, help="Random policies to time.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object with every policy.")
@click.option("--plot", type=_FILE, help="Also write a page with the plot, HTML.")
@_set
def verify(
    spec: Path, table: Path, policies: int, seed: int, as_json: bool, plot: Path | None, overrides: tuple[str, ...]
) -> None:
    """Predict random policies by the table, time each twice end to end, and say how far the two are apart."""
    with clear_errors():
        from search.latency import verify_table
        from search.latency_report import verification_content, verification_page, verification_text

        loaded = _load(table)
        _, problem = _problem(spec, overrides)
        try:
            checked = verify_table(problem, loaded, policies, seed=seed, on_progress=progress_line("networks"))
        except ValueError as error:
            fail(error, FAILED)
        if plot is not None:
            plot.write_text(verification_page(loaded, checked))
        content = json.dumps(verification_content(loaded, checked), indent=1)
        click.echo(content if as_json else verification_text(loaded, checked))


@lut.command("import")
@click.argument("csv", type=_FILE)
@click.option("--out", type=_FILE, required=True, help="The table's file, JSON.")
@click.option("--runtime", required=True, help="What the entries were measured in, e.g. tflite-pixel1.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--processor", default="unknown", help="Where they were measured.")
def import_csv(csv: Path, out: Path, runtime: str, threads: int, batch: int, processor: str) -> None:
    """Make a table of entries that were measured elsewhere, say on a phone.

    Columns: op (conv, linear), in_channels, out_channels, input_height, input_width, latency_ms, and what is known of
    kernel_height, kernel_width, stride_*, padding_*, dilation_*, groups, bias, followed_by, n, median, p10, p90.
    """
    with clear_errors():
        from hw.host import Conditions
        from hw.latency_file import LatencyFileError, read_csv, save_table

        try:
            table = read_csv(csv, Conditions(runtime, threads, batch), processor)
        except LatencyFileError as error:
            fail(error, FAILED)
        save_table(table, out)
        click.echo(f"{len(table.entries)} entries written to {out}")


@lut.command()
def schema() -> None:
    """Print the JSON schema of a table's file."""
    from hw.latency_file import table_schema

    click.echo(json.dumps(table_schema(), indent=1))


def _problem(path: Path, overrides: Sequence[str]) -> tuple[Spec, NetworkProblem]:
    """The spec's problem, free of budgets: its decisions say what a search can meet."""
    from amc_env.evaluation import NetworkProblem
    from search.build import build_problem
    from search.spec import load_spec

    spec = load_spec(path, overrides)
    try:
        problem = build_problem(spec.model_copy(update={"budget": {}}))
    except (ValueError, OSError) as error:
        fail(error, FAILED)
    if not isinstance(problem, NetworkProblem):
        fail(f"{path}: expected a network of which channels are removed; there is no width of a layer to time", FAILED)
    return spec, problem


def _load(path: Path) -> LatencyTable:
    from hw.latency_file import LatencyFileError, load_table

    try:
        return load_table(path)
    except LatencyFileError as error:
        fail(error, FAILED)


def _summary(table: LatencyTable) -> str:
    from search.figures import percent
    from search.latency_report import reliability_warning

    host, correction = table.host, table.correction
    versions = ", ".join(f"{name} {version}" for name, version in host.versions.items())
    lines = [
        str(table.conditions),
        f"{host.processor}, {host.cpus} CPUs, governor {host.governor}, {versions}, {host.created}",
        f"{len(table.entries):,} entries of {len(table.layers)} layers, from {len(table.networks)} networks",
    ]
    if table.reference is not None:
        lines.append(f"dense network: {table.reference.p10:.4g} ms (median {table.reference.median:.4g})")
    if correction.networks:
        lines.append(
            f"median error of the sum of entries {percent(correction.before)}, with the correction "
            f"{percent(correction.after)} (each network left out of its fit)"
        )
    if warning := reliability_warning(correction.after):
        lines.append(warning)
    return "\n".join(lines)


def _layers(table: LatencyTable) -> str:
    from hw.latency_table import describe
    from search.columns import aligned

    headings = ("layer", "ms", "entries", "shape")
    rows = [
        (layer.name, f"{cost:.4f}", str(len(table.entries_of(layer))), describe(layer))
        for layer, cost in zip(table.layers, table.layer_costs(table.layers), strict=True)
    ]
    if not table.layers:
        headings = ("op", "ms", "n", "shape")
        rows = [(entry.shape.op, f"{entry.mean:.4f}", str(entry.n), describe(entry.shape)) for entry in table.entries]
    return aligned(headings, rows, left={"layer", "op", "shape"})
