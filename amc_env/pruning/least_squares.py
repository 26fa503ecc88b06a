"""Least squares for layers whose inputs lose channels: every width from one Cholesky factor, and the greedy order.

A consumer (a convolution as im2col, or a linear layer) has inputs x with covariance G and dense weights W, so its
dense outputs are x'W and the cross term with them is GW. With the ridge H = G + lambda I, the best weights on the
first d columns minimise tr((W_d - W)' H (W_d - W)), that is ||Y - X W_d||^2 plus a ridge that draws W_d to the dense
weights. With H = LL' they are L_dd^-T (L'W)_d, and what is left of the error is the energy of the other rows of L'W.

[AMC] section 3.2 fits the kept channels by least squares, after He et al., arXiv 1707.06168, equation 4.
[GCV] Golub, Heath and Wahba, Generalized cross-validation as a method for choosing a good ridge parameter, 1979.
[OBS] Hassibi and Stork, Optimal Brain Surgeon, 1993: the loss of a weight is w^2 / (2 [H^-1]_qq); here in blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from amc_env.pruning.graph import IntArray

Bounds = tuple[torch.Tensor, torch.Tensor]  # lower and upper

_NOTHING = 1e-12  # a variance that only rounding makes
_ROWS_PER_COLUMN = 4  # with more, half of the columns err on the rows of their fit at least 3/4 as much as on others
_COLUMNS = 2048  # by which a ridge is chosen; of more so many, evenly spaced: six factorisations cost too much
RIDGE = 1e-4  # of fits to the dense network's inputs, as a fraction of the mean diagonal of the Gram matrix
_RIDGES = (RIDGE, 1e-3, 1e-2, 0.1, 1.0, 10.0)
BOUNDED_STEPS = 2  # more gain nothing on ResNet-56 and MobileNet-V1


@dataclass(frozen=True)
class Consumer:
    """What one layer makes of its inputs.

    Attributes:
        gram: float64 (columns, columns), centred second moments of the inputs, summed over the rows.
        weights: float64 (columns, outputs), dense.
    """

    gram: torch.Tensor
    weights: torch.Tensor

    @property
    def energy(self) -> float:
        """Variance of the dense outputs, summed over rows and outputs; inf if they do not vary: nothing can be lost."""
        energy = float((self.weights * (self.gram @ self.weights)).sum())
        return energy if energy > _NOTHING else math.inf

    def with_ridge(self, ridge: float) -> torch.Tensor:
        """G + ridge * mean(diagonal of G) * I."""
        damping = ridge * float(self.gram.diagonal().mean()) + _NOTHING
        damped: torch.Tensor = self.gram + damping * torch.eye(len(self.gram), dtype=torch.float64)
        return damped


class NestedLeastSquares:
    """The reconstructed weights of a consumer for every prefix of its columns.

    Args:
        consumer: columns in the order in which they are kept.
        ridge: as a fraction of the mean diagonal of the Gram matrix, > 0.
    """

    def __init__(self, consumer: Consumer, ridge: float = 1e-6) -> None:
        damped = consumer.with_ridge(ridge)
        self._damping = float((damped - consumer.gram).diagonal().mean())
        self._factor = torch.linalg.cholesky(damped)
        self._projected = self._factor.mT @ consumer.weights

    def weights(self, columns: int) -> torch.Tensor:
        """Float64 (columns, outputs): the best weights on the first columns alone."""
        upper = self._factor[:columns, :columns].mT
        weights: torch.Tensor = torch.linalg.solve_triangular(upper, self._projected[:columns], upper=True)
        return weights

    def errors(self) -> torch.Tensor:
        """Float64 (columns + 1,): squared error, summed over rows and outputs, when the first d columns stay."""
        energy = self._projected.square().sum(dim=1)
        return torch.cat([energy.flip(0).cumsum(0).flip(0), torch.zeros(1, dtype=torch.float64)])

    def errors_elsewhere(self, rows: int) -> torch.Tensor:
        """As `errors`, but estimated for as many rows that the fit has not seen, and without the ridge's part of it.

        By generalised cross-validation ([GCV] equation 1.4): the squared residual over (1 - df / n)^2 with the degrees
        of freedom df = tr(G_dd H_dd^-1). L^-1 holds that of L_dd in its corner; and with the rows v_i of L^-1 and p_i
        of L'W the weights change by the sum of v_i p_i' over all i >= d, so every d has its figure from two products.

        Args:
            rows: of which the Gram matrix is the sum, less one degree of freedom for the mean.
        """
        identity = torch.eye(len(self._factor), dtype=torch.float64)
        inverse = torch.linalg.solve_triangular(self._factor, identity, upper=False)
        overlaps = inverse @ inverse.mT
        zero = torch.zeros(1, dtype=torch.float64)
        freedom = torch.arange(len(identity) + 1) - self._damping * torch.cat([zero, overlaps.diagonal().cumsum(0)])
        both = overlaps * (self._projected @ self._projected.mT)
        change = torch.cat([both.flip(0, 1).cumsum(0).cumsum(1).diagonal().flip(0), zero])
        residual = (self.errors() - self._damping * change).clamp(min=0.0)
        return residual / (1.0 - freedom / max(rows - 1, 1)).square()


def few_rows(rows: int, columns: int) -> bool:
    """Whether a fit of so many columns on so many rows has to be told, and damped, by cross-validation."""
    return rows < _ROWS_PER_COLUMN * columns


def choose_ridge(consumers: Sequence[Consumer], rows: int) -> float:
    """`RIDGE`; of few rows that of `_RIDGES` with the least error elsewhere, summed over the numbers of columns.

    Args:
        consumers: of the layer's groups; their columns are taken in the order given.
        rows: of which each Gram matrix is the sum.
    """
    columns = len(consumers[0].gram)
    if not few_rows(rows, columns):
        return RIDGE
    some = np.linspace(0, columns - 1, min(columns, _COLUMNS)).astype(np.int64)
    parts = [Consumer(each.gram[some][:, some], each.weights[some]) for each in consumers]

    def elsewhere(ridge: float) -> float:
        return sum(float(NestedLeastSquares(part, ridge).errors_elsewhere(rows).sum()) for part in parts)

    return min(_RIDGES, key=elsewhere)


def solve_subset(consumer: Consumer, columns: IntArray, ridge: float = 1e-6) -> torch.Tensor:
    """The best weights on any subset of the columns, float64 (len(columns), outputs)."""
    damped = consumer.with_ridge(ridge)
    factor = torch.linalg.cholesky(damped[columns][:, columns])
    return torch.cholesky_solve((damped @ consumer.weights)[columns], factor)


def solve_rows(
    inputs: torch.Tensor,
    targets: torch.Tensor,
    prior: torch.Tensor,
    ridge: float,
    *,
    intercept: bool,
    bounds: Bounds | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit weights and intercepts on sampled rows, for each of g independent groups of a layer.

    With bounds, a target beyond one of them is met by any fit beyond it. Each of a few steps, all on one factor, moves
    such targets to what the fit before it gave, which never raises the error so counted (majorisation by a quadratic).

    Args:
        inputs: (g, rows, columns), float32, or float64 for weights exact to 1e-5.
        targets: (g, rows, outputs), like all that follow of the dtype of the inputs.
        prior: (g, columns, outputs), to which the ridge draws the weights.
        ridge: as a fraction of the mean diagonal of the Gram matrix.
        intercept: whether one is fitted; it is 0 otherwise.
        bounds: lower and upper, each (g, rows or 1, outputs).

    Returns:
        Weights, (g, columns, outputs), and intercepts, (g, outputs).
    """
    mean_in = inputs.mean(dim=1, keepdim=True) if intercept else torch.zeros_like(inputs[:, :1])
    centred = inputs - mean_in
    gram = (centred.mT @ centred).double()
    start = prior.double()
    known = gram @ start
    diagonal = gram.diagonal(dim1=1, dim2=2)
    diagonal += ridge * diagonal.mean(dim=1, keepdim=True) + 1e-12
    factor = torch.linalg.cholesky(gram)

    def fit(wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean_out = wanted.mean(dim=1, keepdim=True) if intercept else torch.zeros_like(wanted[:, :1])
        residual = (centred.mT @ (wanted - mean_out)).double() - known
        weights = (start + torch.cholesky_solve(residual, factor)).to(inputs.dtype)
        return weights, mean_out - mean_in @ weights

    weights, intercepts = fit(targets)
    if bounds is not None:
        low, high = bounds
        # what meets a target: itself, or all that lies beyond the bound that it lies beyond
        least = torch.where(targets < low, -torch.inf, torch.minimum(targets, high))
        most = torch.where(targets > high, torch.inf, torch.maximum(targets, low))
        for _ in range(BOUNDED_STEPS):
            fitted = torch.baddbmm(intercepts, inputs, weights)
            weights, intercepts = fit(fitted.clamp(least, most))
    return weights, intercepts.squeeze(1)


def output_energy(consumers: Sequence[tuple[Consumer, IntArray]]) -> torch.Tensor:
    """Of each unit, the variance that its inputs alone bring to the outputs, relative to all and summed: (units,).

    Args:
        consumers: each with the columns of every unit, int64 (units, columns per unit).
    """
    total = torch.zeros(len(consumers[0][1]), dtype=torch.float64)
    for consumer, blocks in consumers:
        index = torch.as_tensor(blocks)
        own = consumer.gram[index.unsqueeze(2), index.unsqueeze(1)]
        weights = consumer.weights[index]
        total += (weights * (own @ weights)).sum(dim=(1, 2)) / consumer.energy
    return total


def greedy_order(consumers: Sequence[tuple[Consumer, IntArray]], ridge: float = 1e-6) -> IntArray:
    """Units from the last to the first removed, when each time that unit goes whose loss is least.

    The loss of a unit is the growth of the reconstruction error of all consumers, relative to their energy, with the
    remaining weights fitted anew after each removal ([OBS] in blocks: one unit is all its columns).

    Args:
        consumers: as of `output_energy`.
        ridge: as of `NestedLeastSquares`.
    """
    states = [_Surgeon(consumer, torch.as_tensor(blocks), ridge) for consumer, blocks in consumers]
    units = torch.arange(len(consumers[0][1]))
    gone = torch.zeros_like(units, dtype=torch.bool)
    removed: list[int] = []
    while len(removed) < len(consumers[0][1]):
        losses = torch.stack([state.losses() for state in states]).sum(dim=0)
        losses[gone] = torch.inf
        place = int(losses.argmin())
        removed.append(int(units[place]))
        gone[place] = True
        for state in states:
            state.remove(place)
        if 4 * int(gone.sum()) > len(units):  # smaller matrices are faster
            for state in states:
                state.forget(gone)
            units, gone = units[~gone], gone[~gone]
    return torch.tensor(removed[::-1]).numpy()


class _Surgeon:
    """Inverse Hessian and weights of one consumer while units are removed."""

    def __init__(self, consumer: Consumer, blocks: torch.Tensor, ridge: float) -> None:
        self._blocks = blocks
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(consumer.with_ridge(ridge)))
        self._weights = consumer.weights.clone()
        self._energy = consumer.energy

    def losses(self) -> torch.Tensor:
        """Growth of the relative error by each unit's removal, (units,); of removed units 0."""
        own = self._inverse[self._blocks.unsqueeze(2), self._blocks.unsqueeze(1)]
        weights = self._weights[self._blocks]
        losses: torch.Tensor = (weights * torch.linalg.solve(own, weights)).sum(dim=(1, 2)) / self._energy
        return losses

    def remove(self, unit: int) -> None:
        columns = self._blocks[unit]
        across = self._inverse[:, columns]
        own = across[columns]
        self._weights.addmm_(across, torch.linalg.solve(own, self._weights[columns]), alpha=-1.0)
        self._inverse.addmm_(across, torch.linalg.solve(own, across.mT), alpha=-1.0)
        self._weights[columns] = 0.0
        self._inverse[columns] = 0.0
        self._inverse[:, columns] = 0.0
        self._inverse[columns, columns] = 1.0

    def forget(self, gone: torch.Tensor) -> None:
        """Leave these removed units out from now on; the others move up."""
        stays = torch.ones(len(self._weights), dtype=torch.bool)
        stays[self._blocks[gone].reshape(-1)] = False
        self._inverse, self._weights = self._inverse[stays][:, stays], self._weights[stays]
        self._blocks = (stays.cumsum(0) - 1)[self._blocks[~gone]]
