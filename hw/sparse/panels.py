"""Y = W X for many columns of X: each weight times a run of consecutive values of X, the sums held in registers.

The work is the same for a batch of vectors and for a convolution, if their inputs are laid out as a `source` in which
every weight of a row finds its values at one offset from the position of the result:

    target[row, position] = bias[row] + sum over the row's weights of value * source[offset * scale + position]

64 positions are summed up at a time, in registers. The weights are sorted by tiles, in a tile by rows, so that the part
of `source` that is in use stays in the cache. Among some rows of a tile, those with more weights come first: the length
of the inner loop then seldom changes, and the processor foresees its end.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hw.sparse.jit import compiled
from hw.sparse.rows import FloatArray, SparseRows, aligned_zeros
from hw.sparse.vector import LANES, add, at, load, load_like, multiply_add, splat, splat_like, store

#: positions that are summed up at a time, in registers
PANEL = 64
#: weights that a row should have in a tile, for its sums are read and written for each tile
WEIGHTS_PER_TILE = 24
#: rows that are sorted by their weights, and that one thread takes whole; fewer if there are few rows
_BLOCK, _SMALL_BLOCK, _FEW_ROWS = 64, 16, 256
#: rows that go through all tiles before the next, so that their sums stay in the second level of the cache
_ROWS_AT_ONCE = 1024
#: a source must be readable this many floats past the last position of its last offset
SLACK = PANEL


class TiledRows(NamedTuple):
    """Weights sorted by tiles of columns, in a tile by rows; an odd number in a row is made even by a zero.

    Compiled code takes it as a plain tuple: numba needs 100 us to find out the type of a named one.

    Attributes:
        rows, columns: of the matrix.
        lines: int32 (tiles * rows,), the row of each line; every block of lines holds the same rows in each tile.
        starts: int64 (tiles * rows + 1,), weights before each line.
        offsets: int32 (weights,), where each finds its values in the source, in units of `scale`.
        values: float32 (weights,).
        work: int64 (blocks + 1,), weights before each block in all tiles together, to share out among threads.
        block: lines in a block; the last may have fewer.
    """

    rows: int
    columns: int
    lines: NDArray[np.int32]
    starts: NDArray[np.int64]
    offsets: NDArray[np.int32]
    values: FloatArray
    work: NDArray[np.int64]
    block: int

    @classmethod
    def pack(cls, matrix: SparseRows, columns_per_tile: int, offsets: NDArray[np.int32]) -> TiledRows:
        """Lay out a matrix.

        Args:
            matrix: any.
            columns_per_tile: at least 1.
            offsets: int32 (columns,), the offset of each column in the source.
        """
        rows, columns = matrix.shape
        tiles = max(-(-columns // columns_per_tile), 1)
        part = matrix.indices // columns_per_tile * rows + matrix.rows
        counts = np.bincount(part, minlength=tiles * rows)
        block = _BLOCK if rows >= _FEW_ROWS else _SMALL_BLOCK
        line_of = np.arange(tiles * rows)
        lines = np.lexsort((line_of, -counts, line_of % max(rows, 1) // block, line_of // max(rows, 1)))
        line_of[lines] = np.arange(tiles * rows)
        order = np.argsort(line_of[part], kind="stable")
        counts = counts[lines]
        even = counts + counts % 2
        starts = np.concatenate([[0], np.cumsum(even)]).astype(np.int64)
        place = np.arange(len(order)) + np.repeat(starts[:-1] - (np.cumsum(counts) - counts), counts)
        values, found = aligned_zeros(int(starts[-1]), np.float32), aligned_zeros(int(starts[-1]), np.int32)
        values[place] = matrix.values[order]
        found[place] = offsets[matrix.indices[order]]
        filled = (starts[1:] - 1)[counts % 2 == 1]
        found[filled] = found[filled - 1]
        per_row = even.reshape(tiles, rows).sum(axis=0)
        work = np.concatenate([[0], np.add.reduceat(per_row, np.arange(0, rows, block)).cumsum() if rows else []])
        return cls(
            rows, columns, (lines % max(rows, 1)).astype(np.int32), starts, found, values, work.astype(np.int64), block
        )

    @property
    def size_bytes(self) -> int:
        """Bytes that one multiplication reads, without activations."""
        return self.lines.nbytes + self.starts.nbytes + self.offsets.nbytes + self.values.nbytes


@compiled
def row_bounds(tiles: TiledRows, thread: int, threads: int) -> tuple[int, int]:
    """The rows of a thread: whole blocks, about equally many weights for each."""
    work, blocks = tiles.work, len(tiles.work) - 1
    first = 0 if thread == 0 else np.searchsorted(work, work[-1] * thread // threads)
    last = blocks if thread == threads - 1 else np.searchsorted(work, work[-1] * (thread + 1) // threads)
    return min(first * tiles.block, tiles.rows), min(last * tiles.block, tiles.rows)


@compiled
def _sum_lines(
    zero: Any, tiles: TiledRows, tile: int, first: int, last: int, source: FloatArray, origin: int, scale: int,
    bias: FloatArray, target: FloatArray, goal: int, pitch: int,
) -> None:  # fmt: skip
    """Some rows of one tile, as many positions as `zero` has lanes. Two sums, because one would wait for itself."""
    starts, offsets, values = tiles.starts, tiles.offsets, tiles.values
    for line in range(tile * tiles.rows + first, tile * tiles.rows + last):
        row = int(at(tiles.lines, line))
        place = goal + row * pitch
        a = splat_like(zero, at(bias, row)) if tile == 0 else load_like(zero, target, place)
        b = zero
        for weight in range(at(starts, line), at(starts, line + 1), 2):
            near, far = origin + scale * int(at(offsets, weight)), origin + scale * int(at(offsets, weight + 1))
            a = multiply_add(splat_like(zero, at(values, weight)), load_like(zero, source, near), a)
            b = multiply_add(splat_like(zero, at(values, weight + 1)), load_like(zero, source, far), b)
        store(target, place, add(a, b))


@compiled
def _sum_rows(
    zero: Any, tiles: TiledRows, first: int, last: int, source: FloatArray, origin: int, scale: int,
    bias: FloatArray, target: FloatArray, goal: int, pitch: int,
) -> None:  # fmt: skip
    """Some rows, a few blocks after the other."""
    for start in range(first, last, _ROWS_AT_ONCE):
        end = min(start + _ROWS_AT_ONCE, last)
        for tile in range((len(tiles.starts) - 1) // tiles.rows):
            _sum_lines(zero, tiles, tile, start, end, source, origin, scale, bias, target, goal, pitch)


@compiled
def sum_panel(
    width: int, tiles: TiledRows, first: int, last: int, source: FloatArray, origin: int, scale: int,
    bias: FloatArray, target: FloatArray, goal: int, pitch: int,
) -> None:  # fmt: skip
    """`width` positions of some rows.

    Args:
        width: 16, 32 or 64.
        tiles: the weights.
        first, last: rows, as `row_bounds` gives them.
        source: as the module says; `origin` is the place of the first position at offset 0.
        scale: floats in a unit of the offsets.
        bias: float32 (rows,).
        target: float32; the sums of row r go to `goal + r * pitch` and after.
    """
    if width == 64:
        _sum_rows(splat(64, 0.0), tiles, first, last, source, origin, scale, bias, target, goal, pitch)
    elif width == 32:
        _sum_rows(splat(32, 0.0), tiles, first, last, source, origin, scale, bias, target, goal, pitch)
    else:
        _sum_rows(splat(16, 0.0), tiles, first, last, source, origin, scale, bias, target, goal, pitch)


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


@compiled
def copy(target: FloatArray, goal: int, source: FloatArray, start: int, count: int) -> None:
    """Copy floats from one array to another; few of them, so that a call of the system's function would cost more."""
    for place in range(0, count - LANES + 1, LANES):
        store(target, goal + place, load(16, source, start + place))
    for place in range(count // LANES * LANES, count):
        target[goal + place] = at(source, start + place)
