"""The verb `amc lottery`: sparse networks that train as well as the dense one."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from search.cli_errors import INTERRUPTED, clear_errors

if TYPE_CHECKING:
    from amc_env.training.lottery import LotteryProgress

_EVERY = 2.0  # seconds between two lines of progress in a terminal


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder; of an earlier call: go on.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As of `amc run`.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def lottery(spec: Path, out: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Find lottery tickets: prune an untrained network in rounds, each time from its first weights again.

    Takes a spec with the sections network (without weights), data and lottery. Writes results.json and lottery.html.
    Interrupted, the same command goes on.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with clear_errors():
            from hw.files import write_atomically
            from search.columns import aligned
            from search.lottery_job import run_lottery
            from search.lottery_report import left_table, lottery_page
            from search.lottery_spec import LotterySpec
            from search.spec import load_as

            loaded = load_as(LotterySpec, spec, overrides)
            try:
                results = run_lottery(loaded, out, _Told(len(loaded.seeds)))
            except KeyboardInterrupt:
                click.echo("\ninterrupted; the same command goes on", err=True)
                sys.exit(INTERRUPTED)
            page = lottery_page(results.name, results.curves, results.dense, results.spec)
            write_atomically(out / "lottery.html", page)
            if as_json:
                click.echo(results.model_dump_json(indent=1))
                return
            click.echo(aligned(*left_table(results.curves, results.dense)), nl=False)
            click.echo("test accuracy: mean of the seeds (from the worst to the best)")
            click.echo(f"page: {out / 'lottery.html'}")
    finally:
        signal.signal(signal.SIGTERM, before)


class _Told:
    """Says which network is in training, and in a terminal how far it is; with the time that the rest will take."""

    def __init__(self, seeds: int) -> None:
        self._seeds, self._terminal = seeds, sys.stderr.isatty()
        self._network = self._said = 0.0

    def __call__(self, done: int, progress: LotteryProgress) -> None:
        from search.figures import duration

        training, now = progress.training, time.monotonic()
        network = done * progress.networks + progress.index
        if network == self._network and not (self._terminal and now - self._said > _EVERY):
            return
        self._network, self._said = network, now
        total = self._seeds * progress.networks
        left = (total - network + 1) * training.steps - training.step
        said = (
            f"seed {progress.seed}, round {progress.round}, {progress.arm} ({network}/{total}): step {training.step}/"
            f"{training.steps}, loss {training.loss:.4f}, {duration(left * training.seconds_per_step)} left"
        )
        click.echo(f"\r{said:<100}" if self._terminal else said, err=True, nl=not self._terminal)
