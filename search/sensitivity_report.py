"""How sensitivity curves are shown: a small plot for each layer, a page of their own, a section of a job's report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from hw.files import write_atomically
from search.figures import duration, error_text, is_top_k, objective_label, percent
from search.page_parts import both, escape, page, section, table
from search.results import Results, TrialRecord
from search.sensitivity import Curve, CurvePoint, SensitivityRecord, curves_table, figure, make_curves
from search.svg import (
    Frame,
    Scale,
    colour,
    drawing,
    line,
    marker,
    number,
    padded,
    path,
    shortened,
    text,
    tick_step,
    ticks,
)
from search.tables import agents_of, objective_of, units_of

_SHARED = {"channels": ", with all that share its channels,", "weights": ""}
_CAPTION = (
    "Each panel prunes one layer{} and leaves the rest dense; all have the same axes. "
    "Dots are measured, the line is their running maximum, the thin dashed line is the dense network."
)


@dataclass(frozen=True)
class _Grid:
    """Where the panels lie, in pixels: `columns` of them beside each other in a drawing of this width."""

    width: float
    columns: int
    left: float
    gap: float
    title: float
    panel: float

    def frame(self, index: int) -> Frame:
        """The plot area of a panel."""
        row, column = divmod(index, self.columns)
        size = (self.width - self.left - 6 - self.gap * (self.columns - 1)) / self.columns
        start = self.left + column * (size + self.gap)
        top = row * (self.title + self.panel + 8) + self.title
        return Frame(start + size, top + self.panel, left=start, right=0, top=top, bottom=0)


_WIDE = _Grid(960, columns=5, left=46, gap=16, title=26, panel=84)
_NARROW = _Grid(360, columns=3, left=36, gap=9, title=22, panel=58)


def write_page(record: SensitivityRecord, place: Path) -> None:
    """Write the page whole or not at all."""
    write_atomically(place, sensitivity_page(record))


def sensitivity_page(record: SensitivityRecord) -> str:
    """A page that needs no network; everything that a user or a network named is escaped."""
    units = record.curves[0].units
    points = sum(len(curve.points) - 1 for curve in record.curves) + 1
    facts = f"{len(record.curves)} layers · {points} measurements · {duration(record.seconds)}"
    said, rows = curves_table(record)
    conditions = yaml.safe_dump(record.conditions | {"versions": record.versions}, sort_keys=False, allow_unicode=True)
    sections = [
        f'<header>\n<h1>{escape(record.name)}</h1>\n<p class="verdict">{escape(_verdict(record))}</p>\n'
        f'<p class="facts">{escape(facts)}</p>\n</header>',
        section(
            f"{_capital(objective_label(record.objective))} against the share of {units} removed",
            _CAPTION.format(_SHARED[units]),
            _figures(record.curves, record.objective),
        ),
        section("The same in figures", f"{_capital(said)}.", _table(record, rows)),
        section("Provenance", "", f"<pre>{escape(conditions)}</pre>"),
    ]
    return page(f"{record.name}: sensitivity", sections)


def sensitivity_sections(results: Results) -> str:
    """The curves that a job's sensitivity trials measured, a section for each; "" if there are none."""
    return "".join(_trial_section(results, trial) for trial in results.trials if trial.kind == "sensitivity")


def _trial_section(results: Results, trial: TrialRecord) -> str:
    layers = {decision.name: decision.channels for decision in results.decisions}
    whole = [point for point in trial.history if len(point.widths) == len(layers) and not point.stopped_early]
    if tuple(layers.values()) not in [point.widths for point in whole]:
        return ""
    units = units_of(results)
    curves = make_curves(layers, whole, units)
    chosen = {} if trial.best is None else trial.best.ratios
    said = " The vertical line is the ratio that the trial came to." if chosen else ""
    return section(
        f"Sensitivity of each layer, measured by {trial.agent}",
        f"{_capital(objective_label(objective_of(results)))} on the search split against the share of {units} "
        f"removed. {_CAPTION.format(_SHARED[units])}{said}",
        _figures(curves, objective_of(results), chosen, colour(agents_of(results).index(trial.agent))),
    )


def curves_plot(
    curves: Sequence[Curve],
    objective: str,
    chosen: Mapping[str, float] | None = None,
    css: str = "c0",
    *,
    narrow: bool = False,
) -> str:
    """A panel for each curve, error over ratio removed, all with the same axes.

    Args:
        curves: in the order of the panels.
        objective: what the errors are of.
        chosen: name -> ratio to mark.
        css: class of the colour.
        narrow: for a phone.
    """
    grid = _NARROW if narrow else _WIDE
    points = [point for curve in curves for point in curve.points]
    low, high = padded([point.error for point in points], share=0.06, least=1e-6)
    furthest = max(max(point.ratio for point in points), 0.1)
    parts: list[str] = []
    for index, curve in enumerate(curves):
        frame = grid.frame(index)
        x, y = frame.x(0, furthest * 1.04), frame.y(low, high)
        parts += _axes(grid, frame, y, objective, first=index % grid.columns == 0)
        if index + grid.columns >= len(curves):
            parts += _ratio_labels(frame, x, furthest)
        parts += _panel(frame, x, y, curve, objective, (chosen or {}).get(curve.name), css)
    height = grid.frame(len(curves) - 1).height + 38
    label = f"{objective_label(objective)} of {len(curves)} layers, each pruned alone, against the ratio removed"
    parts.append(text(grid.width / 2, height - 4, f"share of the layer's {curves[0].units} removed", "axis", "middle"))
    return drawing(grid.width, height, label, parts)


def _panel(frame: Frame, x: Scale, y: Scale, curve: Curve, objective: str, chosen: float | None, css: str) -> list[str]:
    dense = y(curve.points[0].error)
    heights = [(x(point.ratio), y(point.envelope)) for point in curve.points]
    area = path([(heights[0][0], dense), *heights, (heights[-1][0], dense)], f"band {css}", closed=True)
    room = int((frame.width - frame.left) / 6.1)
    parts = [
        f"<g><title>{escape(curve.name)}: {curve.channels} {curve.units}</title>",
        text(frame.left, frame.top - 7, shortened(curve.name, room), "name"),
        "</g>",
        line(frame.left, dense, frame.width, dense, "dense"),
        area,
        path(heights, f"curve thin {css}"),
    ]
    if chosen is not None:
        parts.append(line(x(chosen), frame.top, x(chosen), frame.height, "limit"))
    for point in curve.points[1:]:
        parts.append(marker(0, x(point.ratio), y(point.error), 2.9, f"winner {css}", _tip(curve, point, objective)))
    return parts


def _axes(grid: _Grid, frame: Frame, y: Scale, objective: str, *, first: bool) -> list[str]:
    """Horizontal grid lines; in the first column with their labels."""
    factor, sign = (100, " %") if is_top_k(objective) else (1, "")
    count = 3 if grid is _WIDE else 2
    low, high = factor * y.low, factor * y.high
    parts = [line(frame.left, frame.height, frame.width, frame.height, "base")]
    for value in ticks(low, high, count):
        level = y(value / factor)
        parts.append(line(frame.left, level, frame.width, level, "grid"))
        if first:
            label = f"{number(value, tick_step(low, high, count))}{sign}"
            parts.append(text(frame.left - 6, level + 4, label, "faint", "end"))
    return parts


def _ratio_labels(frame: Frame, x: Scale, furthest: float) -> list[str]:
    """Tick labels below a panel that has none beneath it."""
    parts = []
    for value in ticks(0, 100 * furthest, 2):
        place = x(value / 100)
        parts.append(line(place, frame.height, place, frame.height + 4, "base"))
        parts.append(text(place, frame.height + 16, f"{value:.0f} %", "faint", "middle" if value else "start"))
    return parts


def _tip(curve: Curve, point: CurvePoint, objective: str) -> str:
    figure = f"{objective_label(objective)} {error_text(objective, point.error)}"
    kept = f"{point.kept} of {curve.channels} {curve.units} kept"
    return f"{curve.name}: {kept}, {percent(point.ratio, 1)} removed, {figure}"


def _figures(
    curves: Sequence[Curve], objective: str, chosen: Mapping[str, float] | None = None, css: str = "c0"
) -> str:
    return both(lambda width: curves_plot(curves, objective, chosen, css, narrow=width < _WIDE.width))


def _verdict(record: SensitivityRecord) -> str:
    """Which layer suffers most and which least at the middle ratio, in a sentence."""
    ratio = record.ratios[len(record.ratios) // 2]
    at = sorted(record.curves, key=lambda curve: curve.at(ratio).error)
    least, most = at[0], at[-1]
    said = "top-1 accuracy" if record.shows_accuracy else objective_label(record.objective)
    worst, mildest = (figure(record, curve.at(ratio)) for curve in (most, least))
    others = f", {least.name} least, {mildest}" if least is not most else ""
    return (
        f"{most.name} suffers most: {said} {worst} without {percent(ratio, 0)} of its {most.units}{others}; the dense "
        f"network has {figure(record, record.dense)}."
    )


def _table(record: SensitivityRecord, rows: Sequence[Sequence[str]]) -> str:
    """The figures, the darker the more is lost."""
    dense = record.dense.error
    most = max(point.error for curve in record.curves for point in curve.points) - dense
    body = []
    for curve, row in zip(record.curves, rows[1:], strict=True):
        cells = [f'<td class="text layer">{escape(row[0])}</td><td>{row[1]}</td>']
        for ratio, cell in zip(record.ratios, row[2:], strict=True):
            share = max(curve.at(ratio).error - dense, 0.0) / most if most > 0 else 0.0
            tint = f"color-mix(in srgb, var(--c1) {45 * math.sqrt(share):.0f}%, transparent)"
            cells.append(f'<td class="heat" style="background: {tint}">{escape(cell)}</td>')
        body.append(f"<tr>{''.join(cells)}</tr>")
    return table(rows[0], body, "layers")


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
