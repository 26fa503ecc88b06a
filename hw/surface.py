"""A function of two widths from scattered measurements: piecewise bilinear, and never falling along either width."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw.cost import IntArray

FloatArray = NDArray[np.float64]
_STEPS = (1, 8, 16)
_MOST_KNOTS = 8  # per width, where both vary
_SMOOTHING = 1e-3  # weight of a second difference against a measurement, both relative


@dataclass(frozen=True, eq=False)
class Surface:
    """Values at the knots of a grid.

    Attributes:
        knots_in, knots_out: widths, ascending, int64; the range in which the surface is known.
        values: float64 (knots_in, knots_out), never falling along either.
        step: widths count as the next multiple of this: what a runtime that works on blocks of channels does.
    """

    knots_in: IntArray
    knots_out: IntArray
    values: FloatArray
    step: int = 1

    @classmethod
    def fit(cls, widths: IntArray, values: FloatArray) -> Surface:
        """The surface nearest to measurements in relative least squares.

        Args:
            widths: int64 (points, 2), input and output channels of each measurement.
            values: float64 (points,), more than 0.
        """
        ins, outs = np.unique(widths[:, 0]), np.unique(widths[:, 1])
        if len(ins) == 1 or len(outs) == 1 or (widths[:, 0] * outs[-1] == widths[:, 1] * ins[-1]).all():
            return cls._along(widths, values, ins, outs)
        candidates = [cls._over_both(widths, values, step) for step in _STEPS]
        return min(candidates, key=lambda surface: surface._misfit(widths, values))

    @classmethod
    def _over_both(cls, widths: IntArray, values: FloatArray, step: int) -> Surface:
        """Both widths vary by themselves."""
        rounded = _rounded_up(widths, step)
        ins, outs = _thinned(np.unique(rounded[:, 0])), _thinned(np.unique(rounded[:, 1]))
        hats = (_hats(ins, rounded[:, 0])[:, :, None] * _hats(outs, rounded[:, 1])[:, None, :]).reshape(len(values), -1)
        rows = [hats / values[:, None], _SMOOTHING**0.5 * _bends(ins, outs) / values.mean()]
        target = np.concatenate([np.ones(len(values)), np.zeros(len(rows[1]))])
        fitted = np.linalg.lstsq(np.concatenate(rows), target, rcond=None)[0]
        return cls(ins, outs, _ascending(fitted.reshape(len(ins), len(outs))), step)

    @classmethod
    def _along(cls, widths: IntArray, values: FloatArray, ins: IntArray, outs: IntArray) -> Surface:
        """One width varies, or both as one."""
        axis = 1 if len(outs) >= len(ins) else 0
        knots = outs if axis else ins
        means = np.array([values[widths[:, axis] == knot].mean() for knot in knots])
        weights = np.array([(widths[:, axis] == knot).sum() for knot in knots], dtype=np.float64)
        fitted = isotonic(means, weights)
        if axis:
            return cls(ins[[0, -1]] if len(ins) > 1 else ins, outs, np.tile(fitted, (min(len(ins), 2), 1)))
        return cls(ins, outs, fitted[:, None])

    def _misfit(self, widths: IntArray, values: FloatArray) -> float:
        fitted = np.array([self(int(ins), int(outs)) for ins, outs in widths])
        return float(np.square(fitted / values - 1.0).mean())

    def __call__(self, kept_in: int, kept_out: int) -> float:
        """The value at widths within the knots."""
        kept_in, kept_out = _rounded_up(np.array([kept_in, kept_out]), self.step).tolist()
        along = [np.interp(kept_out, self.knots_out, row) for row in self.values]
        return float(np.interp(kept_in, self.knots_in, along))


def isotonic(values: FloatArray, weights: FloatArray) -> FloatArray:
    """The nearest sequence that never falls, in weighted least squares (pool adjacent violators)."""
    means: list[float] = []
    totals: list[float] = []
    sizes: list[int] = []
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        means.append(value)
        totals.append(weight)
        sizes.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            mean, total, size = means.pop(), totals.pop(), sizes.pop()
            means[-1] = (means[-1] * totals[-1] + mean * total) / (totals[-1] + total)
            totals[-1] += total
            sizes[-1] += size
    return np.repeat(means, sizes)


def _rounded_up(widths: IntArray, step: int) -> IntArray:
    """The next multiples of the step."""
    return -(-widths // step) * step


def _thinned(knots: IntArray) -> IntArray:
    """At most so many of them, evenly, the ends among them."""
    if len(knots) <= _MOST_KNOTS:
        return knots
    evenly = np.linspace(knots[0], knots[-1], _MOST_KNOTS)
    return np.unique(knots[np.abs(knots[None, :] - evenly[:, None]).argmin(axis=1)])


def _hats(knots: IntArray, widths: IntArray) -> FloatArray:
    """Weights of linear interpolation, float64 (points, knots)."""
    return np.stack([np.interp(widths, knots, unit) for unit in np.eye(len(knots))], axis=1)


def _bends(ins: IntArray, outs: IntArray) -> FloatArray:
    """How much a grid of values bends at each inner knot, as a matrix that is applied to the flat grid."""
    rows = []
    grid = np.arange(len(ins) * len(outs)).reshape(len(ins), len(outs))
    for knots, lines in ((ins, grid.T), (outs, grid)):
        for before, here, after in zip(range(len(knots)), range(1, len(knots)), range(2, len(knots)), strict=False):
            share = (knots[here] - knots[before]) / (knots[after] - knots[before])
            for line in lines:
                row = np.zeros(grid.size)
                row[line[[before, here, after]]] = share - 1.0, 1.0, -share
                rows.append(row)
    return np.array(rows).reshape(-1, grid.size)


def _ascending(grid: FloatArray) -> FloatArray:
    """A grid near this one that never falls along either axis."""
    equal = np.ones(max(grid.shape))
    for _ in range(20):
        grid = np.stack([isotonic(row, equal[: len(row)]) for row in grid])
        grid = np.stack([isotonic(column, equal[: len(column)]) for column in grid.T], axis=1)
        if (np.diff(grid, axis=1) >= 0).all():
            return grid
    return np.maximum.accumulate(np.maximum.accumulate(grid, axis=0), axis=1)
