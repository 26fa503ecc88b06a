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


def _price(problem: PruningProblem, widths: Sequence[int]) -> float:
    """Costs relative to their limits, summed over the budgets."""
    return sum(problem.cost(budget.cost, widths) / budget.limit for budget in problem.budgets)


def _minimum(
    problem: PruningProblem, errors: Sequence[NDArray[np.float64]], multiplier: float, start: Widths
) -> Widths:
    """Least error + multiplier * price, one decision at a time until none changes."""
    widths = list(start)
    for _ in range(_SWEEPS):
        before = list(widths)
        for index, decision in enumerate(problem.decisions):
            prices = []
            for width in decision.choices:
                widths[index] = width
                prices.append(_price(problem, widths))
            widths[index] = decision.choices[int(np.argmin(errors[index] + multiplier * np.array(prices)))]
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
    price = _price(problem, widths)
    best: Widths | None = None
    best_value = -np.inf
    for index, decision in enumerate(problem.decisions):
        place = decision.choices.index(widths[index])
        other = place - 1 if down else place + 1
        if index in held or not 0 <= other < len(decision.choices):
            continue
        stepped = (*widths[:index], decision.choices[other], *widths[index + 1 :])
        change = errors[index][place] - errors[index][other]  # negative when narrower
        value = change / max(abs(_price(problem, stepped) - price), 1e-12)
        if value > best_value and (down or problem.feasible(stepped)):
            best, best_value = stepped, value
    return best
