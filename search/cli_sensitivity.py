"""The verb `amc sensitivity`: how much each layer suffers from pruning, without any search."""

from __future__ import annotations

import math
import signal
import sys
from pathlib import Path

import click

from search.cli_errors import INTERRUPTED, clear_errors
from search.cli_progress import progress_line

_STEP = 0.1


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="The folder; of an earlier call: go on.  [runs/<name>-sensitivity]"
)
@click.option(
    "--step",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help=f"Between the ratios removed.  [default: {_STEP}]",
)
@click.option("--ratios", metavar="R,R,...", help="The ratios removed, instead of steps, such as 0.25,0.5,0.75.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As of `amc run`.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def sensitivity(
    spec: Path, out: Path | None, step: float | None, ratios: str | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Prune each layer alone at several ratios and show what is lost.

    Takes the spec of a job; its budget, agents and evaluations do not matter. Writes sensitivity.json, .csv and .html.
    Interrupted, the same command goes on; with other ratios it measures what is missing.
    """
    asked = _ratios(step, ratios)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with clear_errors():
            from search.columns import aligned
            from search.sensitivity import curves_table, measure_sensitivity
            from search.sensitivity_report import write_page
            from search.spec import load_spec

            # this form of the reward needs no budget; the curves are of the error, whatever the reward
            loaded = load_spec(spec, (*overrides, "reward=error_macs"))
            out = out or Path("runs") / f"{loaded.name}-sensitivity"
            try:
                record = measure_sensitivity(loaded, asked, out, _calibration, progress_line("measurements", lines=20))
            except KeyboardInterrupt:
                click.echo("\ninterrupted; the same command goes on", err=True)
                sys.exit(INTERRUPTED)
            write_page(record, out / "sensitivity.html")
            if as_json:
                click.echo(record.model_dump_json(indent=1))
                return
            said, (headings, *rows) = curves_table(record)
            click.echo(aligned(headings, rows, left={"layer"}), nl=False)
            click.echo(said)
            click.echo(f"page: {out / 'sensitivity.html'}")
    finally:
        signal.signal(signal.SIGTERM, before)


def _ratios(step: float | None, text: str | None) -> list[float]:
    """The ratios that are asked for, ascending."""
    if text is None:
        distance = step or _STEP
        return [round(place * distance, 10) for place in range(1, 1 + int(1 / distance)) if place * distance < 1 - 1e-9]
    if step is not None:
        raise click.UsageError("--step and --ratios: expected one of them")
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values or not 0.0 < values[0] <= values[-1] < 1.0:
        raise click.UsageError(f"--ratios: expected fractions in (0, 1), such as 0.25,0.5, got {text!r}")
    return values


def _calibration(done: int, layers: int) -> None:
    if done < layers:
        progress_line("layers calibrated", lines=4)(done, layers, math.nan)
