"""The agents over their seeds, as SVG: interquartile means on the test split, their intervals, and every seed."""

from __future__ import annotations

from collections.abc import Sequence

from search.figures import error_text, percent
from search.plots import score_name
from search.ranking import Entrant, ranked
from search.results import Results
from search.statistics import Estimate, estimate_mean
from search.svg import (
    Frame,
    Scale,
    colour,
    dots,
    drawing,
    line,
    marker,
    number,
    padded,
    rectangle,
    text,
    tick_step,
    ticks,
    x_axis,
)
from search.tables import agents_of, objective_of

_BAR = 14


def interval_plot(results: Results, *, width: int = 960) -> str:
    """A line for each agent, in the order of the rewards on the search split; the axis spans all seeds.

    The bar is the 95 % interval of the interquartile mean, which is the marker; the dots are the seeds. The dense
    network is a dashed line if it lies near. Names and figures stand beside the bars, above them where it is narrow.
    """
    order = ranked(results.trials)
    label = f"{score_name(results)} on the test split over the seeds, by agent"
    if not order:
        return drawing(width, 48, label, [text(width / 2, 28, "no feasible policy was found", "axis", "middle")])
    beside = width > 500
    row, side = (38, 190) if beside else (54, 12)
    frame = Frame(width, 26 + row * len(order) + 50, left=side, right=side, top=26)
    x = frame.x(*_span(results, order))
    parts = _axis(results, frame, x)
    agents = agents_of(results)
    for place, entrant in enumerate(order):
        middle = frame.top + (place + (0.5 if beside else 0.66)) * row
        estimate, base = estimate_mean(entrant.scores), middle + 4 if beside else middle - 16
        parts += _bar(x, middle, entrant, estimate, agents.index(entrant.name))
        parts.append(text(0 if beside else side, base, entrant.name, "panel"))
        parts.append(text(width - (0 if beside else side), base, _figure(results, estimate), "figure", "end"))
    return drawing(width, frame.height, label, parts)


def _bar(x: Scale, y: float, entrant: Entrant, estimate: Estimate, index: int) -> list[str]:
    parts = []
    if estimate.interval is not None:
        low, high = map(x, estimate.interval)
        parts.append(f'<g class="{colour(index)}">{rectangle(low, y - _BAR / 2, high - low, _BAR, "interval")}</g>')
    if len(entrant.scores.values) > 1:
        parts.append(dots([(x(value), y) for value in sorted(entrant.scores.values)], f"seed {colour(index)}"))
    return [*parts, marker(index, x(estimate.value), y, 6.5, f"winner {colour(index)}", entrant.name)]


def _axis(results: Results, frame: Frame, x: Scale) -> list[str]:
    dense = _dense(results)
    factor, unit = (1, "") if results.dense.test_accuracy is None else (100, " %")
    ends = factor * x.low, factor * x.high, int((x.end - x.start) // 85)
    values, step = ticks(*ends), tick_step(*ends)
    labels = [f"{number(value, step)}{unit}" for value in values]
    places = [value / factor for value in values]
    bottom = frame.height - frame.bottom
    parts = [line(x(place), frame.top, x(place), bottom, "grid") for place in places]
    parts += x_axis(frame, x, places, labels, f"{'accuracy' if unit else score_name(results)}, test split")
    if x.low <= dense <= x.high:
        anchor = "end" if x(dense) > 0.75 * frame.width else "middle"
        parts.append(line(x(dense), frame.top - 6, x(dense), bottom, "dense"))
        parts.append(text(x(dense), frame.top - 12, f"dense {_text(results, dense)}", "note", anchor))
    return parts


def _span(results: Results, order: Sequence[Entrant]) -> tuple[float, float]:
    """The range of all seeds, and of the dense network if that makes it at most twice as wide."""
    least = 1e-6 if results.dense.test_accuracy is None else 0.002
    scores = [value for entrant in order for value in entrant.scores.values]
    low, high = padded(scores, least=least)
    wider = padded([*scores, _dense(results)], least=least)
    return wider if wider[1] - wider[0] <= 2 * (high - low) else (low, high)


def _dense(results: Results) -> float:
    dense = results.dense
    return dense.test_error if dense.test_accuracy is None else dense.test_accuracy


def _figure(results: Results, estimate: Estimate) -> str:
    if estimate.interval is None:
        return _text(results, estimate.value)
    low, high = (_text(results, end).removesuffix(" %") for end in estimate.interval)
    return f"{_text(results, estimate.value)}  ({low} to {high})"


def _text(results: Results, score: float) -> str:
    if results.dense.test_accuracy is not None:
        return percent(score)
    return error_text(objective_of(results), score)
