"""The plot of the best reward so far, against evaluations or time, as SVG."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import escape

from search.figures import duration
from search.results import HistoryPoint, Results, TrialRecord
from search.svg import (
    Frame,
    Scale,
    colour,
    drawing,
    empty,
    line,
    listed,
    marker,
    number,
    padded,
    path,
    steps,
    tick_step,
    ticks,
    x_axis,
    y_axis,
)
from search.tables import agents_of, finished_trials

#: of the curves of the agents: all evaluations, those of widths that a trial had not met before, time
Over = Literal["evaluations", "distinct evaluations", "time"]


@dataclass(frozen=True)
class Progress:
    """Best reward so far, over the seeds of one agent; -inf while nothing feasible is found.

    Attributes:
        at: after how many evaluations, or seconds of a trial, ascending.
        middle, low, high: median and range of the seeds there.
    """

    at: tuple[float, ...]
    middle: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True)
class _Curve:
    """What is drawn of an agent: its finished trials together, or one trial that is not finished (`seed`)."""

    agent: str
    progress: Progress
    seed: int | None = None


def progress_of(trials: Iterable[TrialRecord], over: Over = "evaluations") -> Progress | None:
    """Median and range over the trials, once each has begun; one that ended early keeps its last value."""
    curves = [
        (
            [*_positions(points, over)],
            [-math.inf if point.best_reward is None else point.best_reward for point in points],
        )
        for trial in trials
        if (points := _first_met(trial.history) if over == "distinct evaluations" else trial.history)
    ]
    if not curves:
        return None
    begun = max(positions[0] for positions, _ in curves)
    at = sorted({position for positions, _ in curves for position in positions if position >= begun})
    columns = [[_value_at(position, *curve) for curve in curves] for position in at]
    middle = (-math.inf if -math.inf in _middles(column) else statistics.median(column) for column in columns)
    return Progress(tuple(at), tuple(middle), tuple(map(min, columns)), tuple(map(max, columns)))


def _curves(results: Results, over: Over) -> list[_Curve]:
    """All curves with a feasible policy on them, in the order of the agents."""
    curves = []
    for agent in agents_of(results):
        unfinished = [trial for trial in results.trials if trial.agent == agent and trial.status != "finished"]
        groups = [(None, finished_trials(results, agent)), *((trial.seed, [trial]) for trial in unfinished)]
        for seed, trials in groups:
            progress = progress_of(trials, over)
            if progress and max(progress.high) > -math.inf:
                curves.append(_Curve(agent, progress, seed))
    return curves


def _positions(points: Sequence[HistoryPoint], over: Over) -> Iterable[float]:
    if over == "time":
        return (point.seconds or 0.0 for point in points)
    return range(1, len(points) + 1)


def _value_at(position: float, positions: Sequence[float], values: Sequence[float]) -> float:
    return values[bisect.bisect_right(positions, position) - 1]


def progress_plot(results: Results, *, width: int = 960, height: int = 380, over: Over = "evaluations") -> str:
    """Best reward against evaluations or time: the median over the seeds with a band min..max, a colour for each agent.

    A trial that is not finished is a thin line of its own. An agent of one evaluation is a dashed line; one that ended
    before the others has its marker where it did. The axis starts at the lowest median that an agent has after a tenth
    of its evaluations; what is worse lies on the lower edge.
    """
    curves = _curves(results, over)
    label = f"Best reward against {over} of {listed(dict.fromkeys(curve.agent for curve in curves))}"
    if not curves:
        return empty(width, label, "no feasible policy has been found")
    frame = Frame(width, height, left=70)
    longest = _longest(results, curves, over)
    alone = over != "time" and longest == 1
    unit, axis = _time_unit(longest) if over == "time" else (1.0, str(over))
    starts = [_after_a_tenth(curve.progress.middle) for curve in curves]
    ends = [curve.progress.high[-1] for curve in curves]
    low, high = padded([*filter(math.isfinite, starts), *ends], least=1e-4)
    x, y = frame.x(0.5 if alone else 0, longest + (0.5 if alone else 0)), frame.y(low, high)
    y_values, y_step = ticks(low, high, height // 45), tick_step(low, high, height // 45)
    x_values = [1.0] if alone else ticks(0 if over == "time" else 1, longest / unit, width // 85)
    if over != "time":
        x_values = [value for value in x_values if value == int(value)]
    parts = y_axis(frame, y, y_values, [number(value, y_step) for value in y_values], "best reward")
    parts += x_axis(frame, x, [value * unit for value in x_values], [f"{value:,.4g}" for value in x_values], axis)
    agents = agents_of(results)
    for curve in curves:
        draw = _median if curve.seed is None else _single
        parts += draw(frame, x, y, curve, agents.index(curve.agent), over)
    return drawing(width, height, label, parts)


def has_times(results: Results) -> bool:
    """Whether it is known when each evaluation was (older results do not tell) and an agent made several."""
    points = [point for trial in results.trials for point in trial.history]
    several = any(len(trial.history) > 1 for trial in results.trials)
    return several and all(point.seconds is not None for point in points)


def has_repeats(results: Results) -> bool:
    """Whether a trial met widths again, and it is known when (older results do not tell)."""
    known = all(point.widths for trial in results.trials for point in trial.history)
    return known and any(trial.distinct < trial.evaluations for trial in results.trials)


def _longest(results: Results, curves: Sequence[_Curve], over: Over) -> float:
    """Where the axis ends: with the curves, or with the evaluations that a trial that is not finished still has."""
    longest = max(curve.progress.at[-1] for curve in curves)
    planned = results.spec.get("evaluations", 0)
    unfinished = over == "evaluations" and any(curve.seed is not None for curve in curves)
    return max(longest, planned) if unfinished else longest


def _first_met(history: Iterable[HistoryPoint]) -> list[HistoryPoint]:
    met: dict[tuple[int, ...], HistoryPoint] = {}
    for point in history:
        met.setdefault(point.widths, point)
    return list(met.values())


def _time_unit(seconds: float) -> tuple[float, str]:
    """The unit in which so much time is told, in seconds, and the name of the axis."""
    for unit, name in ((3600.0, "hours"), (60.0, "minutes")):
        if seconds > 2 * unit:
            return unit, f"{name} of a trial"
    return 1.0, "seconds of a trial"


def _middles(column: Sequence[float]) -> tuple[float, float]:
    """The two values whose mean is the median (the same one for an odd number)."""
    ordered = sorted(column)
    return ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]


def _after_a_tenth(values: Sequence[float]) -> float:
    """The value after a tenth of the evaluations, or the first finite one if that comes later; -inf if none does."""
    return next((value for value in values[len(values) // 10 :] if math.isfinite(value)), -math.inf)


def _median(frame: Frame, x: Scale, y: Scale, curve: _Curve, index: int, over: Over) -> list[str]:
    progress, css = curve.progress, colour(index)
    if len(progress.middle) == 1:
        level = y(progress.high[0])
        dashed = line(frame.left, level, frame.width - frame.right, level, f"once {css}")
        return [f"<g><title>{escape(curve.agent)}: {progress.high[0]:.4f}, one evaluation</title>{dashed}</g>"]
    last = f"{curve.agent}: {progress.middle[-1]:.4f} after {_length(progress, over)}"
    parts = []
    found = [i for i, value in enumerate(progress.high) if math.isfinite(value)]
    upper = steps([(x(progress.at[i]), y(progress.high[i])) for i in found])
    lower = steps([(x(progress.at[i]), y(progress.low[i])) for i in found])
    if progress.low != progress.high:
        parts.append(path([*upper, *reversed(lower)], f"band {css}", closed=True))
    middle = [(x(at), y(value)) for at, value in zip(progress.at, progress.middle, strict=True) if math.isfinite(value)]
    if middle:
        parts.append(f"<g><title>{escape(last)}</title>{path(steps(middle), f'curve {css}')}</g>")
    if middle and progress.at[-1] < x.high:
        parts.append(marker(index, *middle[-1], 6, f"winner {css}"))
    return parts


def _single(frame: Frame, x: Scale, y: Scale, curve: _Curve, index: int, over: Over) -> list[str]:
    """A trial that is not finished: a thin line, and a small marker where it stands."""
    progress, css = curve.progress, colour(index)
    points = [(x(at), y(value)) for at, value in zip(progress.at, progress.high, strict=True) if math.isfinite(value)]
    said = f"{curve.agent}, seed {curve.seed}: {progress.high[-1]:.4f} after {_length(progress, over)}, not finished"
    head = marker(index, *points[-1], 4, f"winner {css}")
    return [f"<g><title>{escape(said)}</title>{path(steps(points), f'curve thin {css}')}{head}</g>"]


def _length(progress: Progress, over: Over) -> str:
    return duration(progress.at[-1]) if over == "time" else f"{len(progress.at)} {over}"
