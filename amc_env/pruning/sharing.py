"""Shared weights of a pruned layer: a codebook by k-means, then the values that serve the layer's outputs best."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from amc_env.pruning.least_squares import Consumer
from hw.eie import fit_codebook

FloatArray = NDArray[np.float64]


def share(weights: FloatArray, entries: int, consumers: Sequence[Consumer] = ()) -> FloatArray:
    """The same weights with at most `entries` - 1 distinct values beside 0, each exact in float32.

    k-means says which weights share a value ([Deep Compression], section 3); with consumers the values are then fitted
    to the layer's dense outputs, by least squares in as many unknowns as there are values.

    Args:
        weights: float64 (rows, columns), 0 where they are removed.
        entries: size of the codebook, 0.0 included.
        consumers: of the layer's groups, with their dense weights; none: the values stay the means of their clusters.
    """
    codebook = fit_codebook(weights, entries)
    codes = codebook.codes(weights)
    values = codebook.values
    if consumers:
        fitted = _fit_values(codes, len(values), consumers).astype(np.float32)
        values = np.where(fitted != 0, fitted, values)
    shared: FloatArray = values[codes].astype(np.float64)
    return shared


def _fit_values(codes: NDArray[np.uint8], entries: int, consumers: Sequence[Consumer]) -> FloatArray:
    """Value of each code, float64 (entries,), of the least error of the outputs; 0 for codes without weights.

    With H the second moments, w the dense weights of a row and A its codes as indicators, all rows together minimise
    the sum of (Ac - w)' H (Ac - w): the normal equations (sum of A'HA) c = sum of A'Hw.
    """
    square, wanted = np.zeros((entries, entries)), np.zeros(entries)
    for consumer, group in zip(consumers, np.split(codes, len(consumers)), strict=True):
        targets = (consumer.gram @ consumer.weights).mT.contiguous()
        _add_rows(group, consumer.gram.numpy(), targets.numpy(), square, wanted)
    values = np.zeros(entries)
    used = np.unique(codes[codes > 0])
    if len(used):
        normal = torch.from_numpy(square[np.ix_(used, used)])
        normal += 1e-9 * normal.diagonal().mean() * torch.eye(len(used), dtype=torch.float64)
        factor = torch.linalg.cholesky(normal)
        values[used] = torch.cholesky_solve(torch.from_numpy(wanted[used, None]), factor)[:, 0].numpy()
    return values


@numba.njit(cache=True)
def _add_rows(
    codes: NDArray[np.uint8], gram: FloatArray, targets: FloatArray, square: FloatArray, wanted: FloatArray
) -> None:
    """Add A'HA and A'Hw of every row to `square` and `wanted`; codes and targets Hw are (rows, columns)."""
    for row in range(len(codes)):
        kept = np.flatnonzero(codes[row])
        for first in kept:
            code = codes[row, first]
            wanted[code] += targets[row, first]
            for second in kept:
                square[code, codes[row, second]] += gram[first, second]
