"""Which networks to measure so that every layer is met at every pair of its two widths: an orthogonal array.

Two decisions that meet in one layer get different columns of an orthogonal array of strength 2 (R. C. Bose, 1938, from
lines over a prime field), so that q*q networks show every layer at all q*q pairs of levels, however many layers there
are. Decisions that never meet may share a column; a chain of layers needs two, residual sums one or two more. There are
q columns, and 13 at the most: where more decisions all meet each other, as in a DenseNet whose layers each read all
before them without a bottleneck, some of them share a column all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from hw.cost import IntArray

_PRIMES = (3, 5, 7, 11, 13)


def covering_levels(decisions: int, meet: Collection[tuple[int, int]], levels: int) -> IntArray:
    """Levels for each decision in each network, int64 (networks, decisions), from 0 to the number of levels - 1.

    Args:
        decisions: how many.
        meet: pairs of decisions that decide the two widths of one layer.
        levels: at least so many; the next prime that has enough columns is taken, up to 13. If even 13 are too few,
            two decisions that meet and share a column see 13 of the 169 pairs of levels.
    """
    colours = _colours(decisions, meet)
    q = next((prime for prime in _PRIMES if prime >= levels and prime > max(colours, default=0)), _PRIMES[-1])
    first, second = (grid.reshape(-1) for grid in np.mgrid[0:q, 0:q])
    columns = [(first + factor * second) % q for factor in range(q)]
    return np.stack([(columns[colour % q] + index) % q for index, colour in enumerate(colours)], axis=1)


def _colours(decisions: int, meet: Collection[tuple[int, int]]) -> list[int]:
    """A number for each decision, different where two meet; greedy, as small as comes."""
    colours: list[int] = []
    for decision in range(decisions):
        taken = {colours[a] for a, b in _ordered(meet) if b == decision}
        colours.append(next(colour for colour in range(decisions + 1) if colour not in taken))
    return colours


def _ordered(meet: Collection[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(min(pair), max(pair)) for pair in meet if pair[0] != pair[1]]


def level_width(choices: Sequence[int], level: int, levels: int) -> int:
    """The width that a level means: the smallest choice at 0, the largest at the last, evenly between."""
    if len(choices) >= levels:
        return choices[round(level * (len(choices) - 1) / (levels - 1))]
    return choices[level * len(choices) // levels]
