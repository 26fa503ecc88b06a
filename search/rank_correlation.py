"""Whether two columns of figures order the same things alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation in [-1, 1]; nan if all of one side are equal, or if there is none.

    Args:
        first, second: figures of the same things in the same order, of any unit; equal ones share the mean of their
            ranks.

    Raises:
        ValueError: the sides differ in length.
    """
    if len(first) != len(second):
        raise ValueError(f"expected as many figures on both sides, got {len(first)} and {len(second)}")
    ranks = [_ranks(values) for values in (first, second)]
    if not all(len(np.unique(each)) > 1 for each in ranks):
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, place, count = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(count) - (count - 1) / 2)[place]
    return ranks
