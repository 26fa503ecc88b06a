"""Two plots of a report as SVG: ratios per layer, and accuracy (or error) against cost.

Pure functions of `Results`. Colours come from `theme.CSS`, which the page holds once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

from search.figures import cost_label, error_text, human, objective_label, percent
from search.results import DenseRecord, HistoryPoint, PolicyRecord, Results, SeriesRecord
from search.svg import (
    Frame,
    Point,
    Scale,
    colour,
    dots,
    drawing,
    empty,
    line,
    listed,
    marker,
    number,
    padded,
    path,
    rectangle,
    shortened,
    steps,
    text,
    tick_step,
    ticks,
    x_axis,
    y_axis,
)
from search.tables import agents_of, finished_trials, objective_of, unit_of, units_of, winner


def ratios_plot(results: Results, *, width: int = 960, panel: int = 92) -> str:
    """The ratios of each agent's winner, one panel of bars for each agent, decisions in forward order.

    Of an agent without a finished trial it is the best policy so far, and the panel says so.
    """
    policies = _best_widths(results)
    label = f"Ratio removed of each decision, best policies of {listed(policies)}"
    names = [shortened(decision.name) for decision in results.decisions]
    if not policies:
        return empty(width, label, "no feasible policy has been found")
    bottom = 16 + 5.7 * max(map(len, names))
    height = len(policies) * panel + bottom + 8
    agents = agents_of(results)
    parts: list[str] = []
    for row, (agent, (widths, title)) in enumerate(policies.items()):
        frame = Frame(width, (row + 1) * panel, top=row * panel + 30, bottom=6)
        parts += _panel(frame, results, widths, title, colour(agents.index(agent)))
    slot = (width - 70) / len(names)
    every = math.ceil(12 / slot)
    base = len(policies) * panel
    for index, name in list(enumerate(names))[::every]:
        parts.append(text(56 + (index + 0.5) * slot + 3.5, base + 4, name, "name", "end", turn=-90))
    return drawing(width, math.ceil(height), label, parts)


def cost_plot(results: Results, cost: str, *, width: int = 960, height: int = 400) -> str:
    """Accuracy on the search split (the error if the network does not classify) against one cost, relative to dense.

    All whole evaluations that were scored as faint points, winners as bold markers, the budget, the dense network and
    the Pareto front. The axis goes up to the dense network's cost only if the evaluations come near it.
    """
    dense, level = results.dense.costs[cost], height_of(results, results.dense) or 0.0
    clouds = {agent: _cloud(results, agent, cost) for agent in agents_of(results)}
    points = [point for cloud in clouds.values() for point in cloud]
    label = f"{score_name(results)} on the search split against {cost_label(cost)}"
    if not points:
        return empty(width, label, "no evaluation was within the budgets")
    limit = next((budget.limit / dense for budget in results.budgets if budget.cost == cost), None)
    frame = Frame(width, height, left=76, top=30, bottom=64)
    x = cost_scale(frame, [share for share, _ in points], limit)
    y = height_scale(results, frame, [y for _, y in points] + [level])
    parts = height_axis(results, frame, y) + cost_axis(results, cost, frame, x)
    parts += references(frame, x, y, limit, level, f"dense {height_text(results, level, 1)}")
    for index, cloud in enumerate(clouds.values()):
        parts.append(dots(sorted({(x(cost), y(score)) for cost, score in cloud}), f"cloud {colour(index)}"))
    sign = 1.0 if classifies(results) else -1.0
    front = [(x(cost), y(sign * score)) for cost, score in pareto_front((cost, sign * score) for cost, score in points)]
    parts.append(path([*steps(front), (frame.width - frame.right, front[-1][1])], "front"))
    for agent, policy in _winners(results).items():
        index = list(clouds).index(agent)
        seen = height_of(results, policy)
        if seen is None:
            continue
        place = (x(policy.costs[cost] / dense), y(seen))
        test = policy.test_accuracy if classifies(results) else policy.test_error
        tip = f"{agent}: {height_text(results, seen)} search, {height_text(results, test)} test, "
        tip += f"{percent(policy.costs[cost] / dense, 1)} of the {cost_label(cost)}"
        parts.append(marker(index, *place, 7, f"winner {colour(index)}", tip))
    return drawing(width, height, label, parts)


def pareto_front(points: Iterable[Point]) -> list[Point]:
    """The points (cost, accuracy or negative error) that no other point beats, by ascending cost. O(n log n)."""
    front: list[Point] = []
    for cost, accuracy in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def _winners(results: Results) -> dict[str, PolicyRecord]:
    found = {agent: winner(finished_trials(results, agent)) for agent in agents_of(results)}
    return {agent: pair[1] for agent, pair in found.items() if pair}


def _best_widths(results: Results) -> dict[str, tuple[tuple[int, ...], str]]:
    """By agent the widths of its best policy, and the title of their panel."""
    winners = _winners(results)
    found = {}
    for agent in agents_of(results):
        if agent in winners:
            found[agent] = (winners[agent].widths, agent)
            continue
        points = [point for trial in results.trials if trial.agent == agent for point in trial.history]
        scored = [(point.reward, point.widths) for point in points if point.reward is not None and point.widths]
        if scored:
            found[agent] = (max(scored, key=lambda pair: pair[0])[1], f"{agent}, best so far")
    return found


def _cloud(results: Results, agent: str, cost: str) -> list[Point]:
    dense = results.dense.costs[cost]
    heights = [
        (point.costs[cost] / dense, height_of(results, point))
        for trial in results.trials
        if trial.agent == agent
        for point in trial.history
        if point.reward is not None and not point.stopped_early
    ]
    return [(x, y) for x, y in heights if y is not None]


def score_name(results: Results) -> str:
    """What the y axis of a cost plot shows: accuracy where the network classifies, else the objective's error."""
    return "Accuracy" if classifies(results) else objective_label(objective_of(results))


def classifies(results: Results) -> bool:
    """Whether the network does, so that there are accuracies."""
    return results.dense.search_accuracy is not None


def height_of(results: Results, scored: HistoryPoint | PolicyRecord | SeriesRecord | DenseRecord) -> float | None:
    """What a plot against a cost shows of it: the accuracy on the search split, or the error."""
    if isinstance(scored, HistoryPoint):
        return scored.accuracy if classifies(results) else scored.error
    return scored.search_accuracy if classifies(results) else scored.search_error


def height_text(results: Results, height: float | None, digits: int = 2) -> str:
    """The same as people read it."""
    return percent(height, digits) if classifies(results) else error_text(objective_of(results), height)


def height_scale(results: Results, frame: Frame, heights: Sequence[float]) -> Scale:
    """Room for all these heights, and for no accuracy above 100 %."""
    if not classifies(results):
        return frame.y(*padded(heights, share=0.08))
    low, high = padded(heights, share=0.08, least=0.01)
    return frame.y(low, min(high, 1.04))


def height_axis(results: Results, frame: Frame, y: Scale) -> list[str]:
    """The axis of accuracy or error on the search split."""
    percents = classifies(results)
    factor, count = 100 if percents else 1, int(frame.height // 45)
    values, step = ticks(factor * y.low, factor * y.high, count), tick_step(factor * y.low, factor * y.high, count)
    values = [value for value in values if not percents or value <= 100]
    labels = [number(value, step) + (" %" if percents else "") for value in values]
    name = "accuracy" if percents else score_name(results)
    return y_axis(frame, y, [value / factor for value in values], labels, f"{name}, search split")


def _panel(frame: Frame, results: Results, widths: Sequence[int], title: str, css: str) -> list[str]:
    y = frame.y(0, 1)
    parts = y_axis(frame, y, [0, 0.5, 1], ["0", "50 %", "100 %"], "")
    parts.append(text(frame.left, frame.top - 10, title, "panel"))
    slot = (frame.width - frame.left - frame.right) / len(results.decisions)
    gap = min(0.22 * slot, 6)
    for index, (decision, kept) in enumerate(zip(results.decisions, widths, strict=True)):
        ratio = 1.0 - kept / decision.channels
        left, top = frame.left + index * slot, y(ratio)
        tip = f"{decision.name}: {kept} of {decision.channels} {units_of(results)} kept, {percent(ratio, 1)} removed"
        slot_box = rectangle(left, frame.top, slot, y(0) - frame.top, "slot")
        bar = rectangle(left + gap / 2, top, slot - gap, y(0) - top, "bar")
        parts.append(f'<g class="column {css}"><title>{escape(tip)}</title>{slot_box}{bar}</g>')
    return [*parts, line(frame.left, y(0), frame.width - frame.right, y(0), "base")]


def cost_scale(frame: Frame, shares: Sequence[float], limit: float | None) -> Scale:
    """Room for these shares of the dense cost and the budget, and for the dense network only if they come near it."""
    low, high = padded([*shares] + ([] if limit is None else [limit]), least=0.02)
    if 1.0 - high < high - low:
        high = 1.0 + 0.04 * (1.0 - low)
    return frame.x(low, high)


def cost_axis(results: Results, cost: str, frame: Frame, x: Scale) -> list[str]:
    """The axis of one cost, as a share of the dense network's and in its unit."""
    count = int(frame.width // 85)
    values, step = ticks(100 * x.low, 100 * x.high, count), tick_step(100 * x.low, 100 * x.high, count)
    dense, unit = results.dense.costs[cost], unit_of(results, cost)
    absolute = [human(value / 100 * dense, unit if unit == "bytes" else "") for value in values]
    labels = [f"{number(value, step)} %\n{amount}" for value, amount in zip(values, absolute, strict=True)]
    name = f"{cost_label(cost)} of dense" if unit in ("MACs", "bytes", "") else f"{cost_label(cost)} ({unit}), of dense"
    return x_axis(frame, x, [value / 100 for value in values], labels, name)


def references(frame: Frame, x: Scale, y: Scale, limit: float | None, height: float, said: str) -> list[str]:
    """The height of the dense network as a dashed line, and the budget, if there is one, as a dotted line."""
    level = y(height)
    parts = [
        line(frame.left, level, frame.width - frame.right, level, "dense"),
        text(frame.left + 6, level - 6, said, "note"),
    ]
    if x.high >= 1.0:
        parts.append(f'<circle class="dense" cx="{x(1.0):g}" cy="{level:g}" r="5"/>')
    if limit is not None:
        place = x(limit)
        anchor = "end" if place > frame.width * 0.75 else "middle" if place > frame.width * 0.25 else "start"
        parts.append(line(place, frame.top, place, frame.height - frame.bottom, "limit"))
        parts.append(text(place, frame.top - 10, f"budget {percent(limit, 1)}", "note", anchor))
    return parts
