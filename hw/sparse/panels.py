"""Y = W X for many columns of X: each weight times a run of consecutive values of X, the sums held in registers.

The work is the same for a batch of vectors and for a convolution, if their inputs are laid out as a `source` in which
every weight of a row finds its values at one offset from the position of the result:

    target[row, position] = bias[row] + sum over the row's weights of value * source[offset * scale + position]

64 positions are summed up at a time, in registers. The weights are sorted by tiles of `source` that fit into the first
level of the cache together with the sums that are carried from tile to tile, and in a tile by rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.sparse.jit import compiled
from hw.sparse.rows import FloatArray, SparseRows
from hw.sparse.vector import add, at, load_like, multiply_add, splat, splat_like, store

#: positions that are summed up at a time, in registers
PANEL = 64
#: a source must be readable this many floats past the last position of its last offset
SLACK = PANEL


@dataclass(frozen=True, eq=False)
class TiledRows:
    """Weights sorted by tiles of columns, in a tile by rows; an odd number in a row is made even by a zero.

    Attributes:
        shape: (rows, columns).
        starts: int64 (tiles * rows + 1,), weights before each row of each tile.
        offsets: uint16 or int32 (weights,), where each finds its values in the source, in units of `scale`.
        values: float32 (weights,).
        work: int64 (rows + 1,), weights before each row in all tiles together, to share rows out among threads.
    """

    shape: tuple[int, int]
    starts: NDArray[np.int64]
    offsets: NDArray[Any]
    values: FloatArray
    work: NDArray[np.int64]

    @classmethod
    def pack(cls, matrix: SparseRows, columns_per_tile: int, offsets: NDArray[Any]) -> TiledRows:
        """Lay out a matrix.

        Args:
            matrix: any.
            columns_per_tile: at least 1.
            offsets: int32 or uint16 (columns,), the offset of each column in the source.
        """
        rows, columns = matrix.shape
        tiles = max(-(-columns // columns_per_tile), 1)
        part = matrix.indices // columns_per_tile * rows + matrix.rows
        order = np.argsort(part, kind="stable")
        counts = np.bincount(part, minlength=tiles * rows)
        even = counts + counts % 2
        starts = np.concatenate([[0], np.cumsum(even)]).astype(np.int64)
        place = np.arange(len(order)) + np.repeat(starts[:-1] - (np.cumsum(counts) - counts), counts)
        values, found = np.zeros(starts[-1], np.float32), np.zeros(starts[-1], offsets.dtype)
        values[place] = matrix.values[order]
        found[place] = offsets[matrix.indices[order]]
        filled = (starts[1:] - 1)[counts % 2 == 1]
        found[filled] = found[filled - 1]
        work = np.concatenate([[0], np.cumsum(even.reshape(tiles, rows).sum(axis=0))]).astype(np.int64)
        return cls(matrix.shape, starts, found, values, work)

    @property
    def size_bytes(self) -> int:
        """Bytes that one multiplication reads, without activations."""
        return self.starts.nbytes + self.offsets.nbytes + self.values.nbytes


@compiled
def row_bounds(work: NDArray[np.int64], thread: int, threads: int) -> tuple[int, int]:
    """The rows of a thread: about equally many weights for each."""
    first = 0 if thread == 0 else np.searchsorted(work, work[-1] * thread // threads)
    last = len(work) - 1 if thread == threads - 1 else np.searchsorted(work, work[-1] * (thread + 1) // threads)
    return first, last


@compiled
def _panel(
    zero: Any, tile: int, first: int, last: int, starts: NDArray[np.int64], offsets: NDArray[Any], values: FloatArray,
    source: FloatArray, origin: int, scale: int, bias: FloatArray, target: FloatArray, goal: int, pitch: int,
) -> None:  # fmt: skip
    """Some rows of one tile, as many positions as `zero` has lanes. Two sums, because one would wait for itself."""
    rows = len(bias)
    for row in range(first, last):
        place = goal + row * pitch
        a = splat_like(zero, bias[row]) if tile == 0 else load_like(zero, target, place)
        b = zero
        for weight in range(starts[tile * rows + row], starts[tile * rows + row + 1], 2):
            near = origin + scale * np.int64(at(offsets, weight))
            a = multiply_add(splat_like(zero, at(values, weight)), load_like(zero, source, near), a)
            far = origin + scale * np.int64(at(offsets, weight + 1))
            b = multiply_add(splat_like(zero, at(values, weight + 1)), load_like(zero, source, far), b)
        store(target, place, add(a, b))


@compiled
def sum_panel(
    width: int, first: int, last: int, starts: NDArray[np.int64], offsets: NDArray[Any], values: FloatArray,
    source: FloatArray, origin: int, scale: int, bias: FloatArray, target: FloatArray, goal: int, pitch: int,
) -> None:  # fmt: skip
    """`width` positions (16, 32 or 64) of some rows.

    Args:
        width: positions.
        first, last: rows.
        starts, offsets, values: of `TiledRows`.
        source: as the module says; `origin` is the place of the first position at offset 0.
        scale: floats in a unit of the offsets.
        bias: float32 (rows,).
        target: float32; the sums of row r go to `goal + r * pitch` and after.
    """
    if len(bias) == 0:
        return
    for tile in range((len(starts) - 1) // len(bias)):
        if width == 64:
            zero = splat(64, 0.0)
            _panel(zero, tile, first, last, starts, offsets, values, source, origin, scale, bias, target, goal, pitch)
        elif width == 32:
            half = splat(32, 0.0)
            _panel(half, tile, first, last, starts, offsets, values, source, origin, scale, bias, target, goal, pitch)
        else:
            quarter = splat(16, 0.0)
            _panel(
                quarter, tile, first, last, starts, offsets, values, source, origin, scale, bias, target, goal, pitch
            )


@compiled
def widest(positions: int) -> int:
    """The width of the next panel when so many positions are left."""
    if positions > 32:
        return 64
    return 32 if positions > 16 else 16


@compiled
def aligned(count: int) -> FloatArray:
    """Memory for so many floats that begins on a cache line."""
    buffer = np.empty(count + 16, np.float32)
    shift = (-(buffer.ctypes.data // 4)) % 16
    return buffer[shift : shift + count]
