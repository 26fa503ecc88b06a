"""Widths that lose least by additive error curves under a budget: a Lagrangian, without any evaluation.

The curves say what each width of each decision costs by itself, all else dense. Shoham and Gersho, Efficient bit
allocation for an arbitrary set of quantizers, 1988, for the Lagrangian of such sums; the cost of a width here depends
on the others (a layer's MACs are a product of both its widths), so the minimum is found by coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amc_env.problem import PruningProblem, Widths

_SWEEPS = 20


def allocate(problem: PruningProblem, errors: Sequence[NDArray[np.float64]]) -> Widths:
    """Feasible widths of small total error.

    Args:
        problem: with at least one budget.
        errors: for each decision the error of each of its choices, ascending in width.
    """
    if problem.feasible(problem.dense_widths):
        return problem.dense_widths
    low, high = 0.0, 1.0
    widths = _minimum(problem, errors, high, problem.dense_widths)
    while not problem.feasible(widths) and widths != problem.smallest_widths:
        low, high = high, high * 4
        widths = _minimum(problem, errors, high, widths)
    best = widths if problem.feasible(widths) else problem.smallest_widths
    for _ in range(30):
        middle = (low + high) / 2
        widths = _minimum(problem, errors, middle, best)
        if problem.feasible(widths):
            high, best = middle, widths
        else:
            low = middle
    return _widen(problem, errors, best)


def _prices(problem: PruningProblem, plans: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """For each plan, int64 (plans, decisions), its costs relative to their limits, summed; and whether all hold."""
    prices, holds = np.zeros(len(plans)), np.ones(len(plans), dtype=np.bool_)
    for budget in problem.budgets:
        costs = problem.costs_of_plans(budget.cost, plans)
        prices += costs / budget.limit
        holds &= costs <= budget.limit
    return prices, holds


def _minimum(
    problem: PruningProblem, errors: Sequence[NDArray[np.float64]], multiplier: float, start: Widths
) -> Widths:
    """Least error + multiplier * price, one decision at a time until none changes."""
    widths = list(start)
    for _ in range(_SWEEPS):
        before = list(widths)
        for index, decision in enumerate(problem.decisions):
            plans = np.tile(np.array(widths), (len(decision.choices), 1))
            plans[:, index] = decision.choices
            prices, _ = _prices(problem, plans)
            widths[index] = decision.choices[int(np.argmin(errors[index] + multiplier * prices))]
        if widths == before:
            break
    return tuple(widths)


def rebalance(
    problem: PruningProblem, errors: Sequence[NDArray[np.float64]], start: Sequence[int], held: frozenset[int]
) -> Widths | None:
    """Bring widths to the budget by the other decisions: narrow them where it costs least error per price, then widen.

    Args:
        held: decisions that stay as they are.

    Returns:
        Feasible widths; None if the decisions that may move cannot make them so.
    """
    widths = tuple(start)
    if not problem.budgets:
        return widths
    while not problem.feasible(widths):
        narrower = _best_step(problem, errors, widths, held, down=True)
        if narrower is None:
            return None
        widths = narrower
    return _widen(problem, errors, widths, held)


def _widen(
    problem: PruningProblem,
    errors: Sequence[NDArray[np.float64]],
    start: Widths,
    held: frozenset[int] = frozenset(),
) -> Widths:
    """Spend what is left of the budget on the largest gains of error per price, one step at a time."""
    widths = start
    while (wider := _best_step(problem, errors, widths, held, down=False)) is not None:
        widths = wider
    return widths


def _best_step(
    problem: PruningProblem,
    errors: Sequence[NDArray[np.float64]],
    widths: Widths,
    held: frozenset[int],
    *,
    down: bool,
) -> Widths | None:
    """One decision one choice narrower (least error per price saved) or wider (most, and still feasible)."""
    moves = []
    for index, decision in enumerate(problem.decisions):
        place = decision.choices.index(widths[index])
        other = place - 1 if down else place + 1
        if index not in held and 0 <= other < len(decision.choices):
            gain = errors[index][place] - errors[index][other]  # negative when narrower
            moves.append((index, decision.choices[other], gain))
    if not moves:
        return None
    moving, moved, gains = zip(*moves, strict=True)
    plans = np.tile(np.array(widths), (len(moves) + 1, 1))  # the last one stays as it is
    plans[np.arange(len(moves)), moving] = moved
    prices, holds = _prices(problem, plans)
    values = np.array(gains) / np.maximum(np.abs(prices[:-1] - prices[-1]), 1e-12)
    if not down:
        values[~holds[:-1]] = -np.inf
    best = int(np.argmax(values))
    if values[best] == -np.inf:
        return None
    return (*widths[: moving[best]], moved[best], *widths[moving[best] + 1 :])
