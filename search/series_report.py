"""What is said and drawn of the networks on the way of a search: a table of them, and a plot against a cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from search.figures import cost_label, error_text, objective_label, percent
from search.plots import (
    classifies,
    cost_axis,
    cost_scale,
    height_axis,
    height_of,
    height_scale,
    height_text,
    references,
    score_name,
)
from search.results import Results, SeriesRecord, TrialRecord
from search.svg import Frame, Point, colour, drawing, marker, path, text
from search.tables import agents_of, objective_of

_APART = 20.0  # pixels between two numbers, so that they can be read


def with_series(results: Results) -> list[TrialRecord]:
    """The trials that kept networks of their way."""
    return [trial for trial in results.trials if trial.series]


def series_table(results: Results, trial: TrialRecord) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: number, costs as shares of dense, errors, accuracies, and the budget it holds."""
    series, objective = trial.series, objective_of(results)
    front = any(network.budget is not None for network in series)  # then they are tested too
    columns = {"step": [str(step) for step in range(1, len(series) + 1)]}
    for cost, dense in results.dense.costs.items():
        columns[f"{cost_label(cost)} of dense"] = [percent(network.costs[cost] / dense, 1) for network in series]
    if objective != "top1" or not classifies(results):
        columns[f"search {objective_label(objective)}"] = [
            error_text(objective, network.search_error) for network in series
        ]
        if front:
            columns[f"test {objective_label(objective)}"] = [
                error_text(objective, network.test_error) for network in series
            ]
    if classifies(results):
        columns["search accuracy"] = [percent(network.search_accuracy) for network in series]
        if front:
            columns["test accuracy"] = [percent(network.test_accuracy) for network in series]
    if front:
        columns["budget"] = [percent(network.budget, 1) for network in series]
    elif results.budgets:
        columns["budget"] = ["within" if network.feasible else "over" for network in series]
    return list(columns), [list(line) for line in zip(*columns.values(), strict=True)]


def series_plot(results: Results, trial: TrialRecord, cost: str, width: int = 960) -> str:
    """Accuracy on the search split (the error without classes) against one cost, numbered as in the table.

    Networks over a budget are hollow. Of numbers that would lie on one another, that of the smaller network is shown.
    """
    dense, level = results.dense.costs[cost], height_of(results, results.dense) or 0.0
    limit = next((budget.fraction for budget in results.budgets if budget.cost == cost), None)
    points = [(network.costs[cost] / dense, height_of(results, network) or 0.0) for network in trial.series]
    frame = Frame(width, 400 if width > 500 else 330, left=76, top=30, bottom=64)
    x = cost_scale(frame, [share for share, _ in points], limit)
    y = height_scale(results, frame, [seen for _, seen in points] + [level])
    parts = height_axis(results, frame, y) + cost_axis(results, cost, frame, x)
    parts += references(frame, x, y, limit, level, f"dense {height_text(results, level, 1)}")
    places = [(x(share), y(seen)) for share, seen in points]
    index = agents_of(results).index(trial.agent)
    parts.append(path(places, f"curve {colour(index)}"))
    for step, (network, place) in enumerate(zip(trial.series, places, strict=True), start=1):
        css = f"{'winner' if network.feasible else 'over'} {colour(index)}"
        tip = f"{step}: {_described(results, network, cost)}"
        parts.append(marker(index, *place, 5.5 if width > 500 else 4.5, css, tip))
    label = f"{score_name(results)} of the networks on the way of {trial.agent}, seed {trial.seed}"
    return drawing(width, frame.height, f"{label}, against {cost_label(cost)}", parts + _numbers(places))


def _described(results: Results, network: SeriesRecord, cost: str) -> str:
    share = percent(network.costs[cost] / results.dense.costs[cost], 1)
    over = "" if network.feasible else ", over the budget"
    return f"{height_text(results, height_of(results, network))} at {share} of the {cost_label(cost)}{over}"


def _numbers(places: Sequence[Point]) -> list[str]:
    """The numbers of the points from 1, from the last on back, as many as stand apart."""
    parts: list[str] = []
    latest = (math.inf, math.inf)
    for step in range(len(places), 0, -1):
        x, y = places[step - 1]
        if math.dist(latest, (x, y)) >= _APART:
            parts.append(text(x - 6, y - 9, str(step), "step", "middle"))
            latest = (x, y)
    return parts
