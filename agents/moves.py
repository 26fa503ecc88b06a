"""Moves at the budget: a few decisions are widened or narrowed, the others pay by their error curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from agents.allocation import rebalance
from amc_env.problem import PruningProblem, Widths

_REMEMBERED = 4096  # moves


def draw_factors(decisions: int, mean: float, step: float, rng: np.random.Generator) -> dict[int, float]:
    """Log-normal factors for some decisions.

    Args:
        decisions: how many there are.
        mean: how many are drawn on average, geometrically distributed, at least 1.
        step: standard deviation of the logarithm of a factor.
        rng: draws them.
    """
    count = min(decisions, rng.geometric(1.0 / mean))
    chosen = rng.choice(decisions, size=count, replace=False)
    return dict(zip(chosen.tolist(), np.exp(rng.normal(0.0, step, count)).tolist(), strict=True))


class Mover:
    """Makes moves in one search.

    Args:
        problem: under its budgets.
        errors: the error of each choice of each decision, as of `problem.reconstruction_errors`.
    """

    def __init__(self, problem: PruningProblem, errors: Sequence[NDArray[np.float64]]) -> None:
        self._decisions = problem.decisions
        # where choices are few, most moves have been made before
        self._rebalanced = lru_cache(_REMEMBERED)(partial(rebalance, problem, errors))

    def move(self, start: Widths, factors: Mapping[int, float]) -> Widths | None:
        """Multiply the widths of some decisions, and bring the others to the budget where that costs least error.

        Returns:
            Feasible widths; None if the other decisions cannot make them so.
        """
        moved = list(start)
        for index, factor in factors.items():
            moved[index] = _scaled(self._decisions[index].choices, start[index], factor)
        return self._rebalanced(tuple(moved), frozenset(factors))


def _scaled(choices: tuple[int, ...], width: int, factor: float) -> int:
    """The choice nearest to width * factor, at least one step away in that direction if there is one."""
    nearest = min(choices, key=lambda choice: abs(choice - width * factor))
    if nearest == width:
        place = choices.index(width) + (1 if factor > 1.0 else -1)
        return choices[min(max(place, 0), len(choices) - 1)]
    return nearest
