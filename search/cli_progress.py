"""Progress of a command on standard error: what is done, and how long the rest will take."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import click

OnProgress = Callable[[int, int, float], None]


def progress_line(what: str, lines: int | None = None) -> OnProgress:
    """A function of done, total and seconds left (NaN: unknown) that says so.

    In a terminal it is one line that is overwritten, else a line each time.

    Args:
        what: is counted.
        lines: about how many there may be where no terminal overwrites them; None: any number.
    """
    terminal = sys.stderr.isatty()

    def tell(done: int, total: int, left: float) -> None:
        from search.figures import duration

        every = 1 if terminal or lines is None else math.ceil(total / lines)
        if done % every and done < total:
            return
        rest = f", {duration(left)} left" if not math.isnan(left) and done < total else ""
        text = f"{done}/{total} {what}{rest}"
        click.echo(f"\r{text:<60}" if terminal else text, err=True, nl=not terminal or done == total)

    return tell
