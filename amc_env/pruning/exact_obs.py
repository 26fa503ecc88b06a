"""Which single weights go first: optimal brain surgeon in every row of a layer, rows merged by what a removal costs.

[OBC] Frantar and Alistarh, Optimal Brain Compression, arXiv 2208.11580, section 4. With H the damped second moments of
a layer's inputs, the removal of weight q from a row w costs w_q^2 / [H^-1]_qq; the weights that stay then move by
-w_q / [H^-1]_qq * H^-1[:, q], which is the row's least-squares fit, and q is eliminated from H^-1.

Differences from the paper: a row's inverse shrinks with its weights, so that all removals of a row of d weights take
d^3 / 6 multiplications instead of d^3; and only what each removal costs is kept, for the weights of each level follow
from the order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from amc_env.pruning.compiled import compiled, compiled_parallel
from amc_env.pruning.graph import IntArray
from amc_env.pruning.least_squares import Consumer

FloatArray = NDArray[np.float64]


def obs_scores(consumers: Sequence[Consumer], ridge: float) -> FloatArray:
    """What the removal of each weight of a layer costs, float64 (rows, columns): the larger, the later it is its turn.

    A row is an output, a column one of its inputs. The next removal is always that of the row in which it costs least;
    a weight that goes right after a costlier one of its row, which hid it, has that one's score, and all are told apart
    by least steps of a float64, so that the order of the scores is the order of the removals.

    Args:
        consumers: of the layer's groups, with as many columns and outputs each, in the order of the outputs.
        ridge: as a fraction of the mean diagonal of the Gram matrix.
    """
    traces = [_trace_rows(*_inverse_and_rows(consumer, ridge)) for consumer in consumers]
    columns = np.concatenate([removed for removed, _ in traces])
    losses = np.concatenate([losses for _, losses in traces])
    due = np.maximum.accumulate(losses, axis=1)
    turns = np.argsort(due, axis=None, kind="stable")
    due.reshape(-1)[turns] = _told_apart(due.reshape(-1)[turns])
    scores = np.empty_like(due)
    np.put_along_axis(scores, columns, due, axis=1)
    return scores


@compiled
def _told_apart(ascending: FloatArray) -> FloatArray:
    """Ascending numbers, each raised as little as makes it larger than the one before."""
    apart = ascending.copy()
    for place in range(1, len(apart)):
        if apart[place] <= apart[place - 1]:
            apart[place] = np.nextafter(apart[place - 1], np.inf)
    return apart


def _inverse_and_rows(consumer: Consumer, ridge: float) -> tuple[FloatArray, FloatArray]:
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(consumer.with_ridge(ridge)))
    return inverse.numpy(), np.ascontiguousarray(consumer.weights.numpy().T)


@compiled_parallel
def _trace_rows(inverse: FloatArray, rows: FloatArray) -> tuple[IntArray, FloatArray]:
    """Greedy removals of every row: the columns as they go, int64 (rows, columns), and what each costs, float64.

    Args:
        inverse: of the damped second moments, (columns, columns).
        rows: dense weights, (rows, columns).
    """
    count, columns = rows.shape
    removed = np.empty((count, columns), np.int64)
    losses = np.empty((count, columns))
    for row in numba.prange(count):
        _trace_row(inverse.copy(), rows[row].copy(), removed[row], losses[row])
    return removed, losses


@compiled
def _trace_row(inverse: FloatArray, weights: FloatArray, removed: IntArray, losses: FloatArray) -> None:
    """As `_trace_rows` for one row; only the lower triangle of `inverse` is kept up, the columns left come first."""
    left = np.arange(len(weights))
    for step in range(len(weights)):
        last = len(weights) - step - 1
        best, least = 0, np.inf
        for column in range(last + 1):
            loss = weights[column] ** 2 / inverse[column, column]
            if loss < least:
                best, least = column, loss
        removed[step], losses[step] = left[best], least
        _swap(inverse, best, last)
        weights[best], weights[last] = weights[last], weights[best]
        left[best] = left[last]
        across = inverse[last]
        scale = 1.0 / across[last]
        for column in range(last):
            factor = across[column] * scale
            weights[column] -= weights[last] * factor
            own = inverse[column]
            for other in range(column + 1):
                own[other] -= factor * across[other]


@compiled
def _swap(lower: FloatArray, first: int, last: int) -> None:
    """Exchange two rows and columns, first <= last, of a symmetric matrix of which the lower triangle is kept."""
    for column in range(first):
        lower[first, column], lower[last, column] = lower[last, column], lower[first, column]
    for between in range(first + 1, last):
        lower[between, first], lower[last, between] = lower[last, between], lower[between, first]
    lower[first, first], lower[last, last] = lower[last, last], lower[first, first]
