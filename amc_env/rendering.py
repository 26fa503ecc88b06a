"""The decisions of an episode as a picture, in plain numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amc_env.problem import PruningProblem

_HEIGHT, _TOP, _GAP = 240, 24, 12
_PAPER, _TO_COME = (255, 255, 255), (228, 231, 235)
_KEPT, _REMOVED, _MARK = (27, 107, 170), (200, 221, 238), (196, 57, 43)


def draw(problem: PruningProblem, kept: Sequence[int]) -> NDArray[np.uint8]:
    """A bar for each decision, uint8 (240, width, 3): grey to come, dark what it keeps, light what it removes.

    Above them the cost of the network with all later decisions dense, in the dense one's, and the budget as a red mark;
    of several budgets the one that is closest to its limit.

    Args:
        problem: with the budget of the episode.
        kept: by the decisions made so far.
    """
    count = len(problem.decisions)
    bar = max(4, min(24, 640 // count))
    width = count * bar + 2 * _GAP
    picture = np.full((_HEIGHT, width, 3), _PAPER, dtype=np.uint8)
    floor, tallest = _HEIGHT - _GAP, _HEIGHT - _TOP - 3 * _GAP
    for index, decision in enumerate(problem.decisions):
        across = slice(_GAP + index * bar, _GAP + (index + 1) * bar - 1)
        picture[floor - tallest : floor, across] = _REMOVED if index < len(kept) else _TO_COME
        if index < len(kept):
            height = round(tallest * kept[index] / decision.size)
            picture[floor - height : floor, across] = _KEPT
    widths = (*kept, *problem.dense_widths[len(kept) :])
    inner = width - 2 * _GAP
    down = slice(_GAP, _GAP + _TOP)
    picture[down, _GAP : _GAP + inner] = _TO_COME
    if problem.budgets:
        tightest = max(problem.budgets, key=lambda budget: problem.cost(budget.cost, widths) / budget.limit)
        dense = problem.dense_costs[tightest.cost]
        filled = round(inner * min(problem.cost(tightest.cost, widths) / dense, 1.0))
        picture[down, _GAP : _GAP + filled] = _KEPT
        mark = _GAP + round((inner - 2) * min(tightest.limit / dense, 1.0))
        picture[_GAP - 4 : _GAP + _TOP + 4, mark : mark + 2] = _MARK
    return picture
