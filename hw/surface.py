"""A function of two widths from scattered measurements: piecewise bilinear, and not falling along either width.

Latency is a staircase: a runtime that works on blocks of channels takes as long for 20 as for 32. And it may fall
once: onnxruntime leaves its blocked layout where a layer has fewer channels than a block, so that 12 take longer than
16. Both are tried, and taken if they explain the measurements clearly better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw.cost import IntArray

FloatArray = NDArray[np.float64]
#: steps of the staircase, and the width below which it does not hold and from which the function may fall
_STAIRCASES = ((1, 1), (8, 1), (16, 1), (8, 8), (16, 16))
_CLEARLY = 0.7  # of the squared error of the simpler one
_FEWEST = 12  # measurements, with which noise is not taken for a staircase
_MOST_KNOTS = 8  # per width, where both vary
_SMOOTHING = 1e-3  # weight of a second difference against a measurement, both relative


@dataclass(frozen=True, eq=False)
class Surface:
    """Values at the knots of a grid.

    Attributes:
        knots_in, knots_out: widths, ascending, int64; the range in which the surface is known.
        values: float64 (knots_in, knots_out), not falling along either but at `block`.
        step: widths from `block` on count as the next multiple of this.
        block: there the function may fall.
    """

    knots_in: IntArray
    knots_out: IntArray
    values: FloatArray
    step: int = 1
    block: int = 1

    @classmethod
    def fit(cls, widths: IntArray, values: FloatArray) -> Surface:
        """The surface nearest to measurements in relative least squares.

        Args:
            widths: int64 (points, 2), input and output channels of each measurement.
            values: float64 (points,), more than 0.
        """
        best = None
        for step, block in _STAIRCASES if len(values) >= _FEWEST else _STAIRCASES[:1]:
            surface = cls._fit(widths, values, step, block)
            misfit = surface._misfit(widths, values)
            if best is None or misfit < _CLEARLY * best[0]:
                best = (misfit, surface)
        if best is None:
            raise ValueError("a surface needs at least one measurement")
        return best[1]

    @classmethod
    def _fit(cls, widths: IntArray, values: FloatArray, step: int, block: int) -> Surface:
        rounded = _counted(widths, step, block)
        ins, outs = np.unique(rounded[:, 0]), np.unique(rounded[:, 1])
        if len(ins) == 1 or len(outs) == 1 or (widths[:, 0] * widths[0, 1] == widths[:, 1] * widths[0, 0]).all():
            return cls._along(rounded, values, step, block)
        ins, outs = _thinned(ins), _thinned(outs)
        hats = (_hats(ins, rounded[:, 0])[:, :, None] * _hats(outs, rounded[:, 1])[:, None, :]).reshape(len(values), -1)
        rows = [hats / values[:, None], _SMOOTHING**0.5 * _bends(ins, outs) / values.mean()]
        target = np.concatenate([np.ones(len(values)), np.zeros(len(rows[1]))])
        fitted = np.linalg.lstsq(np.concatenate(rows), target, rcond=None)[0].reshape(len(ins), len(outs))
        for part_in in _parts(ins, block):
            for part_out in _parts(outs, block):
                fitted[part_in, part_out] = _ascending(fitted[part_in, part_out])
        return cls(ins, outs, fitted, step, block)

    @classmethod
    def _along(cls, rounded: IntArray, values: FloatArray, step: int, block: int) -> Surface:
        """One width varies, or both as one."""
        ins, outs = np.unique(rounded[:, 0]), np.unique(rounded[:, 1])
        axis = 1 if len(outs) >= len(ins) else 0
        knots = outs if axis else ins
        members = rounded[:, axis][None, :] == knots[:, None]
        counts = members.sum(axis=1).astype(np.float64)
        fitted = (members @ values) / counts
        for part in _parts(knots, block):
            fitted[part] = isotonic(fitted[part], counts[part])
        if axis:
            ins = ins[[0, -1]] if len(ins) > 1 else ins
            return cls(ins, outs, np.tile(fitted, (len(ins), 1)), step, block)
        outs = outs[[0, -1]] if len(outs) > 1 else outs
        return cls(ins, outs, np.tile(fitted[:, None], (1, len(outs))), step, block)

    def counted(self, widths: IntArray) -> IntArray:
        """The widths as the staircase counts them."""
        return _counted(widths, self.step, self.block)

    def _misfit(self, widths: IntArray, values: FloatArray) -> float:
        fitted = np.array([self(int(ins), int(outs)) for ins, outs in widths])
        return float(np.square(fitted / values - 1.0).mean())

    def __call__(self, kept_in: int, kept_out: int) -> float:
        """The value at widths within the knots."""
        kept_in, kept_out = _counted(np.array([kept_in, kept_out]), self.step, self.block).tolist()
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


def _counted(widths: IntArray, step: int, block: int) -> IntArray:
    """The widths as the staircase counts them."""
    return np.where(widths < block, widths, -(-widths // step) * step)


def _parts(knots: IntArray, block: int) -> list[slice]:
    """The knots below the block and the others, within each of which nothing falls."""
    below = int((knots < block).sum())
    return [part for part in (slice(0, below), slice(below, len(knots))) if part.start < part.stop]


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
