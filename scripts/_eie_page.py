"""The plots of `simulate_eie.py` as a page that needs no network, and as image files."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

from search.figures import percent
from search.svg import (
    Frame,
    colour,
    drawing,
    marker,
    number,
    path,
    rectangle,
    text,
    tick_step,
    ticks,
    x_axis,
    y_axis,
)
from search.theme import CSS

_WIDTH, _HEIGHT = 960, 400
_ROW = 22  # of a legend, in pixels

Series = Sequence[tuple[str, Sequence[float]]]


@dataclass(frozen=True)
class Plot:
    """A drawing with its title, and the names of its series in the order of their colours."""

    title: str
    series: tuple[str, ...]
    svg: str


def render(plots: Sequence[Plot]) -> str:
    """The page as HTML."""
    sections = "\n".join(
        f'<section>\n<h2>{html.escape(plot.title)}</h2>\n<ul class="legend">{_legend(plot)}</ul>\n'
        f'<figure class="plot">{plot.svg}</figure>\n</section>'
        for plot in plots
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>EIE, simulated</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{CSS}\n</style>\n</head>\n<body>\n<main>\n<h1>The nine layers of the EIE paper, simulated: "
        f"synthetic weights of their sizes and densities</h1>\n{sections}\n</main>\n</body>\n</html>\n"
    )


def image(plot: Plot) -> str:
    """A plot with its legend as an SVG file of its own, light or dark as its reader is."""
    legend, x, y = [], 64.0, 18
    for index, name in enumerate(plot.series):
        length = 30 + 7.2 * len(name)
        if x + length > _WIDTH:
            x, y = 64.0, y + _ROW
        legend += [marker(index, x, y, 5, f"swatch-mark {colour(index)}"), text(x + 11, y + 4, name)]
        x += length
    height = _HEIGHT + y + 14
    inner = plot.svg.partition(">")[2].rpartition("</svg>")[0]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{html.escape(plot.title)}" '
        f'viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">\n'
        f"<style>\n{CSS}\nsvg {{ font-family: system-ui, sans-serif; background: var(--card); }}\n</style>\n"
        + "\n".join(legend)
        + f'\n<g transform="translate(0 {y + 14})">{inner}</g>\n</svg>\n'
    )


def bars_plot(title: str, unit: str, names: Sequence[str], series: Series, x_name: str = "layer") -> Plot:
    """A group of bars for each name, one bar for each series."""
    frame = Frame(_WIDTH, _HEIGHT, left=64)
    top = 1.05 * max(value for _, values in series for value in values)
    x, y = frame.x(0, len(names)), frame.y(0, top)
    levels = ticks(0, top, 8)
    parts = y_axis(frame, y, levels, [number(level, tick_step(0, top, 8)) for level in levels], unit)
    parts += x_axis(frame, x, [index + 0.5 for index in range(len(names))], names, x_name)
    for place, (name, values) in enumerate(series):
        for index, value in enumerate(values):
            left, right = (x(index + 0.14 + 0.72 * (place + end) / len(series)) for end in (0, 1))
            bar = rectangle(left, y(value), right - left - 1, y(0) - y(value), "bar")
            tip = html.escape(f"{names[index]}, {name}: {value:.1f} {unit}")
            parts.append(f'<g class="column {colour(place)}"><title>{tip}</title>{bar}</g>')
    return Plot(title, tuple(name for name, _ in series), drawing(_WIDTH, _HEIGHT, title, parts))


def curves_plot(
    title: str, x_name: str, y_name: str, places: Sequence[int], series: Series, *, shares: bool = False
) -> Plot:
    """A curve for each series over powers of two; `shares` from 0 to 100 %, else on a logarithmic axis."""
    frame = Frame(_WIDTH, _HEIGHT, left=64)
    x = frame.x(math.log2(places[0]), math.log2(places[-1]))
    if shares:
        y, levels = frame.y(0.0, 1.0), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
        parts = y_axis(frame, y, levels, [percent(level, 0) for level in levels], y_name)
    else:
        highest = math.ceil(math.log2(max(value for _, values in series for value in values)))
        y = frame.y(0.0, highest)
        parts = y_axis(frame, y, range(highest + 1), [str(2**power) for power in range(highest + 1)], y_name)
    parts += x_axis(frame, x, [math.log2(place) for place in places], [str(place) for place in places], x_name)
    for index, (name, values) in enumerate(series):
        points = [(x(math.log2(place)), y(value if shares else math.log2(value)))
                  for place, value in zip(places, values, strict=True)]  # fmt: skip
        parts.append(path(points, f"curve thin {colour(index)}"))
        for place, value, point in zip(places, values, points, strict=True):
            said = percent(value, 1) if shares else f"{value:.1f}"
            parts.append(marker(index, *point, 4.5, f"winner {colour(index)}", f"{name}, {place}: {said}"))
    return Plot(title, tuple(name for name, _ in series), drawing(_WIDTH, _HEIGHT, title, parts))


def _legend(plot: Plot) -> str:
    return "".join(
        f'<li><svg class="swatch" viewBox="0 0 14 14" aria-hidden="true">'
        f"{marker(index, 7, 7, 5, f'swatch-mark {colour(index)}')}</svg>{html.escape(name)}</li>"
        for index, name in enumerate(plot.series)
    )
