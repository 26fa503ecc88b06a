"""Accuracy against the weights that are left: a table and a plot of several ways to prune, each over several seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml

from search.figures import percent
from search.page_parts import both, escape, page, row, section, stacked, swatch, table
from search.svg import (
    Frame,
    Point,
    Scale,
    colour,
    drawing,
    line,
    marker,
    number,
    padded,
    path,
    text,
    tick_step,
    ticks,
    x_axis,
    y_axis,
)


@dataclass(frozen=True)
class LeftPoint:
    """Networks with the same share of their weights left.

    Attributes:
        left: fraction, in (0, 1].
        accuracies: of each seed, as fractions.
    """

    left: float
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the seeds."""
        return float(np.mean(self.accuracies))

    @property
    def times(self) -> str:
        """How many times fewer weights, as "9.0x"."""
        return f"{1 / self.left:.1f}x"


@dataclass(frozen=True)
class LeftCurve:
    """One way to prune, over the weights left."""

    name: str
    points: tuple[LeftPoint, ...]


def left_table(curves: Sequence[LeftCurve], dense: LeftPoint) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: a line for each share of weights, the dense network first; mean accuracies, and their range.

    The curves have the same shares.
    """
    headings = ["weights left", "fewer", *(curve.name for curve in curves)]
    lines = [["100 %", "1x", *[_cell(dense)] * len(curves)]]
    for points in zip(*(curve.points for curve in curves), strict=True):
        lines.append([percent(points[0].left, 1), points[0].times, *map(_cell, points)])
    return headings, lines


def left_plot(curves: Sequence[LeftCurve], dense: LeftPoint, width: int = 960, height: int = 400) -> str:
    """Mean accuracies with bars from the worst seed to the best; the dense network's mean is dashed.

    Shares of weights are on a logarithmic axis, fewer to the right. A curve that falls far below the rest ends at the
    lower edge; the line of one that begins below it comes from the dense network.
    """
    points = [point for curve in curves for point in curve.points]
    label = "Accuracy against the weights left"
    frame = Frame(width, height, left=76, bottom=64)
    x = frame.x(0.0, 1.03 * max(-math.log(point.left) for point in points))
    y = frame.y(*padded([dense.mean, *_shown([point.mean for point in points], dense.mean)], share=0.08, least=0.002))
    count = int(frame.height // 45)
    levels, step = ticks(100 * y.low, 100 * y.high, count), tick_step(100 * y.low, 100 * y.high, count)
    levels = [level for level in levels if level <= 100]
    parts = y_axis(
        frame, y, [level / 100 for level in levels], [f"{number(level, step)} %" for level in levels], "accuracy"
    )
    lefts = [1.0, *(point.left for point in max((curve.points for curve in curves), key=len))]
    names = [f"{percent(left, 1)}\n{1 / left:.3g}x" for left in lefts]
    parts += x_axis(frame, x, [-math.log(left) for left in lefts], names, "weights left")
    parts.append(line(frame.left, y(dense.mean), frame.width - frame.right, y(dense.mean), "dense"))
    parts.append(text(frame.left + 6, y(dense.mean) - 6, f"dense {percent(dense.mean)}", "note"))
    for index, curve in enumerate(curves):
        seen = list(itertools.takewhile(lambda point: point.mean >= y.low, curve.points))
        drawn = seen or [dense]
        places = [(x(-math.log(point.left)), y(point.mean)) for point in drawn]
        leaving = _leaving([drawn[-1], *curve.points[len(seen) :]], x, y)
        parts.append(path([*places, *leaving], f"curve thin {colour(index)}"))
        for point, place in zip(seen, places, strict=False):
            parts.append(marker(index, *place, 4.5, f"winner {colour(index)}", _tip(curve, point)))
            across = place[0] + 3 * (index - len(curves) / 2)
            low, high = y(min(point.accuracies)), y(max(point.accuracies))
            parts.append(f'<g class="{colour(index)}">{line(across, low, across, high, "once")}</g>')
    return drawing(width, height, label, parts)


def _tip(curve: LeftCurve, point: LeftPoint) -> str:
    weights = f"{percent(point.left, 1)} of the weights ({point.times} fewer)"
    return f"{curve.name}: {percent(point.mean)} with {weights}"


def _leaving(points: Sequence[LeftPoint], x: Scale, y: Scale) -> list[Point]:
    """Where the line from the first of these points to the next crosses the lower edge, if there is a next."""
    if len(points) < 2:
        return []
    first, second = points[:2]
    share = (first.mean - y.low) / (first.mean - second.mean)
    across = -math.log(first.left) + share * (math.log(first.left) - math.log(second.left))
    return [(x(across), y(y.low))]


def _shown(means: Sequence[float], dense: float) -> list[float]:
    """Those that are drawn to scale: at most as far below the dense network as ten times the median."""
    reach = 10 * max(0.002, float(np.median([abs(dense - mean) for mean in means])))
    return [max(mean, dense - reach) for mean in means]


def _cell(point: LeftPoint) -> str:
    if len(point.accuracies) == 1:
        return percent(point.mean)
    return f"{percent(point.mean)} ({100 * min(point.accuracies):.2f} to {100 * max(point.accuracies):.2f})"


def lottery_page(title: str, curves: Sequence[LeftCurve], dense: LeftPoint, spec: Mapping[str, Any]) -> str:
    """A page that needs no network."""
    headings, lines = left_table(curves, dense)
    rows = [row(headings, [*map(stacked, cells)], "dense" if number == 0 else "") for number, cells in enumerate(lines)]
    listed = "".join(f"<li>{swatch(index)}{escape(curve.name)}</li>" for index, curve in enumerate(curves))
    plot = both(lambda width: left_plot(curves, dense, width, 400 if width > 500 else 330))
    seeds = "one seed" if len(dense.accuracies) == 1 else f"{len(dense.accuracies)} seeds"
    caption = (
        f"Test accuracy of {seeds}: means, with bars from the worst seed to the best; dashed is the dense network. All "
        "networks train to the end of the same recipe: new weights from its first step, the others from the step to "
        "which tickets go back."
    )
    written = yaml.safe_dump(dict(spec), sort_keys=False, allow_unicode=True)
    sections = [
        f"<header>\n<h1>{escape(title)}: lottery tickets</h1>\n</header>",
        section("Accuracy against the weights left", caption, f'<ul class="legend">{listed}</ul>{plot}'),
        section("Table", "", table(headings, rows)),
        section("Spec", "", f"<pre>{escape(written)}</pre>"),
    ]
    return page(title, sections)
