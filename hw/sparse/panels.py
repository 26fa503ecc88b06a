"""Y = W X for many columns of X: each weight times a run of consecutive values of X, the sums held in registers.

The work is the same for a batch of vectors and for a convolution, if their inputs are laid out as a `source` in which
every weight of a row finds its values at one offset from the position of the result:

    target[row, position] = bias[row] + sum over the row's weights of value * source[offset + position]

Up to 64 positions of four rows are summed up at a time, in registers: the four take turns, one weight each, so that no
sum waits for itself. All offsets are multiples of a vector: a load that crosses a cache line costs twice as much, and
four offsets fit into one word. The weights are sorted by tiles, in a tile by rows, so that the part of `source` that is
in use stays in the first level of the cache. Among some rows of a tile, those with more weights come first: the four
rows then have about equally many, and the processor foresees the end of the loop.

What bounds it, on a processor with two 512-bit loads and two 512-bit multiply-adds a cycle: 64 positions of a weight
are four multiply-adds and 5 1/4 loads, 2.6 cycles; 3.0 are measured if the tile is in the first level of the cache, 6
if it is in the second. To that come, for each row and tile, about 13 cycles in which its sums go to the second level
and back.

A zero that fills a row up is multiplied by a value that does not belong to the row: with infinite or undefined
activations the result can differ from the dense one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hw.sparse.jit import compiled
from hw.sparse.rows import FloatArray, SparseRows, aligned_zeros
from hw.sparse.vector import LANES, Address, at, load, load_like, multiply_add, raw, splat, splat_like, store

#: most positions that are summed up at a time, in registers
PANEL = 64
#: weights that a row should have in a tile, for its sums are read and written for each tile
WEIGHTS_PER_TILE = 24
#: rows that are summed up together
_TOGETHER = 4
#: rows that are sorted by their weights, and that one thread takes whole: an eighth of all, within these
_SMALLEST_BLOCK, _LARGEST_BLOCK = 16, 128
#: vectors that 16 bits can tell apart
LARGEST_OFFSET = 2**16 - 1


class TiledRows(NamedTuple):
    """Weights sorted by tiles of columns, in a tile by rows, four rows together; zeros fill up the shorter ones.

    Compiled code takes it as a plain tuple: numba needs 100 us to find out the type of a named one.

    Attributes:
        rows: of the matrix.
        lines: int32 (tiles * lines of a tile,), the row of each line; every block of lines holds the same rows in each
            tile. Lines that make a tile's a multiple of four have no weights, and the row of the first of their four.
        starts: int64 (tiles * lines of a tile / 4 + 1,), steps before each four lines.
        bases: int64 (tiles,), the smallest offset of each tile, in floats.
        words: int64 (steps,), where the four weights of a step find their values: 16 bits each, in vectors of 16
            floats from the tile's base.
        values: float32 (steps * 4,).
        work: int64 (blocks + 1,), steps before each block in all tiles together, to share out among threads.
        block: lines in a block; the last may have fewer.
    """

    rows: int
    lines: NDArray[np.int32]
    starts: NDArray[np.int64]
    bases: NDArray[np.int64]
    words: NDArray[np.int64]
    values: FloatArray
    work: NDArray[np.int64]
    block: int

    @classmethod
    def pack(cls, matrix: SparseRows, columns_per_tile: int, offsets: NDArray[np.int64]) -> TiledRows:
        """Lay out a matrix.

        Args:
            matrix: any.
            columns_per_tile: at least 1.
            offsets: int64 (columns,), the offset of each column in the source, in vectors of 16 floats; a tile's
                first column has its smallest.

        Raises:
            ValueError: the offsets of a tile are further apart than 16 bits can tell.
        """
        rows, columns = matrix.shape
        height = -(-rows // _TOGETHER) * _TOGETHER
        block = int(np.clip(2 ** int(np.log2(max(rows // 8, 1))), _SMALLEST_BLOCK, _LARGEST_BLOCK))
        tiles = max(-(-columns // columns_per_tile), 1)
        bases = np.concatenate([offsets[::columns_per_tile], np.zeros(tiles - -(-columns // columns_per_tile))])
        bases = bases.astype(np.int64)
        apart = offsets - bases[np.arange(columns) // columns_per_tile]
        if columns and apart.max() > LARGEST_OFFSET:
            raise ValueError(f"expected offsets up to {LARGEST_OFFSET} in a tile, got {apart.max()}; use smaller tiles")
        part = matrix.indices // columns_per_tile * height + matrix.rows
        counts = np.bincount(part, minlength=tiles * height)
        line = np.arange(tiles * height)
        lines = np.lexsort((-counts, line % max(height, 1) // block, line // max(height, 1)))
        steps = counts[lines].reshape(-1, _TOGETHER).max(axis=1, initial=0)
        starts = np.concatenate([[0], np.cumsum(steps)]).astype(np.int64)
        place = np.empty_like(line)
        place[lines] = line
        order = np.argsort(place[part], kind="stable")
        of_line, counts = place[part][order], counts[lines]
        step = starts[of_line // _TOGETHER] + np.arange(len(order)) - (np.cumsum(counts) - counts)[of_line]
        entry = _TOGETHER * step + of_line % _TOGETHER
        values = aligned_zeros(_TOGETHER * int(starts[-1]), np.float32)
        found = aligned_zeros(_TOGETHER * int(starts[-1]), np.uint16)
        values[entry] = matrix.values[order]
        found[entry] = apart[matrix.indices[order]]
        row_of = (lines % max(height, 1)).reshape(-1, _TOGETHER)
        row_of = np.where(row_of < rows, row_of, row_of[:, :1])
        blocks = np.arange(0, height // _TOGETHER, block // _TOGETHER)
        per_block = np.add.reduceat(steps.reshape(tiles, -1).sum(axis=0), blocks) if rows else blocks
        return cls(
            rows, row_of.reshape(-1).astype(np.int32), starts, LANES * bases, found.view(np.int64), values,
            np.concatenate([[0], per_block.cumsum()]).astype(np.int64), block,
        )  # fmt: skip

    @property
    def size_bytes(self) -> int:
        """Bytes that one multiplication reads, without activations."""
        return self.lines.nbytes + self.starts.nbytes + self.words.nbytes + self.values.nbytes


class Weights(NamedTuple):
    """`TiledRows` for inner loops: addresses instead of arrays.

    Attributes:
        rows, tiles: how many.
        height: lines of a tile.
        lines, starts, bases, words, values: as there.
    """

    rows: int
    tiles: int
    height: int
    lines: Address
    starts: Address
    bases: Address
    words: Address
    values: Address


@compiled
def weights_of(tiles: TiledRows) -> Weights:
    """The addresses; good as long as the caller holds the arrays."""
    count = len(tiles.bases)
    return Weights(
        tiles.rows, count, len(tiles.lines) // count, raw(tiles.lines), raw(tiles.starts), raw(tiles.bases),
        raw(tiles.words), raw(tiles.values),
    )  # fmt: skip


@compiled
def row_bounds(tiles: TiledRows, thread: int, threads: int) -> tuple[int, int]:
    """The rows of a thread: whole blocks, about equally many weights for each."""
    work, blocks = tiles.work, len(tiles.work) - 1
    first = 0 if thread == 0 else np.searchsorted(work, work[-1] * thread // threads)
    last = blocks if thread == threads - 1 else np.searchsorted(work, work[-1] * (thread + 1) // threads)
    return min(first * tiles.block, tiles.rows), min(last * tiles.block, tiles.rows)


@compiled
def _sum_lines(
    zero: Any, weights: Weights, tile: int, first: int, last: int, source: Address, origin: int, bias: Address,
    target: Address, goal: int, pitch: int,
) -> None:  # fmt: skip
    """Lines `first` to `last` of one tile, as many positions as `zero` has lanes.

    The first of four lines is stored last: a line without a row of its own has the row of the first.
    """
    lines, values, near = weights.lines, weights.values, origin + int(at(weights.bases, tile))
    for four in range(first // 4, last // 4):
        row_a, row_b = int(at(lines, 4 * four)), int(at(lines, 4 * four + 1))
        row_c, row_d = int(at(lines, 4 * four + 2)), int(at(lines, 4 * four + 3))
        to_a, to_b, to_c, to_d = goal + row_a * pitch, goal + row_b * pitch, goal + row_c * pitch, goal + row_d * pitch
        if tile == 0:
            a, b = splat_like(zero, at(bias, row_a)), splat_like(zero, at(bias, row_b))
            c, d = splat_like(zero, at(bias, row_c)), splat_like(zero, at(bias, row_d))
        else:
            a, b = load_like(zero, target, to_a), load_like(zero, target, to_b)
            c, d = load_like(zero, target, to_c), load_like(zero, target, to_d)
        for step in range(at(weights.starts, four), at(weights.starts, four + 1)):
            word = at(weights.words, step)
            from_a, from_b = near + LANES * (word & 0xFFFF), near + LANES * (word >> 16 & 0xFFFF)
            from_c, from_d = near + LANES * (word >> 32 & 0xFFFF), near + LANES * (word >> 48 & 0xFFFF)
            a = multiply_add(splat_like(zero, at(values, 4 * step)), load_like(zero, source, from_a), a)
            b = multiply_add(splat_like(zero, at(values, 4 * step + 1)), load_like(zero, source, from_b), b)
            c = multiply_add(splat_like(zero, at(values, 4 * step + 2)), load_like(zero, source, from_c), c)
            d = multiply_add(splat_like(zero, at(values, 4 * step + 3)), load_like(zero, source, from_d), d)
        store(target, to_d, d)
        store(target, to_c, c)
        store(target, to_b, b)
        store(target, to_a, a)


@compiled
def _sum_rows(
    zero: Any, weights: Weights, first: int, last: int, source: Address, origin: int, bias: Address, target: Address,
    goal: int, pitch: int,
) -> None:  # fmt: skip
    """Some rows, tile by tile."""
    for tile in range(weights.tiles):
        line, end = tile * weights.height + first, tile * weights.height + (last + 3) // 4 * 4
        _sum_lines(zero, weights, tile, line, end, source, origin, bias, target, goal, pitch)


@compiled
def sum_panel(
    width: int, weights: Weights, first: int, last: int, source: Address, origin: int, bias: Address, target: Address,
    goal: int, pitch: int,
) -> None:  # fmt: skip
    """`width` positions of some rows.

    Args:
        width: 16, 32 or 64.
        weights: of the matrix.
        first, last: rows; multiples of the weights' block, but for the last of all.
        source: as the module says; `origin` is the place of the first position at offset 0.
        bias: float32 (rows,).
        target: float32; the sums of row r go to `goal + r * pitch` and after.
    """
    if width == 64:
        _sum_rows(splat(64, 0.0), weights, first, last, source, origin, bias, target, goal, pitch)
    elif width == 32:
        _sum_rows(splat(32, 0.0), weights, first, last, source, origin, bias, target, goal, pitch)
    else:
        _sum_rows(splat(16, 0.0), weights, first, last, source, origin, bias, target, goal, pitch)


@compiled
def copy(target: Address, goal: int, source: Address, start: int, count: int) -> None:
    """Copy a few floats. What is left after the whole vectors is copied by one that overlaps them."""
    if count >= LANES:
        for place in range(0, count - LANES, LANES):
            store(target, goal + place, load(16, source, start + place))
        store(target, goal + count - LANES, load(16, source, start + count - LANES))
    elif count >= LANES // 4:
        for place in range(0, count - LANES // 4, LANES // 4):
            store(target, goal + place, load(4, source, start + place))
        store(target, goal + count - LANES // 4, load(4, source, start + count - LANES // 4))
    else:
        for place in range(count):
            target[goal + place] = at(source, start + place)


@compiled
def clear(target: Address, first: int, last: int) -> None:
    """Zeros from `first` to `last`, and up to 15 more; the first 16 by themselves, as LLVM makes the loop a call."""
    if first < last:
        store(target, first, splat(16, 0.0))
    for place in range(first + LANES, last, LANES):
        store(target, place, splat(16, 0.0))
