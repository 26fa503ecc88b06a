"""Y = X W^T for a batch, turned so that up to 64 samples of one feature lie side by side, and summed in panels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from hw.sparse.jit import check_threads, compiled, parallel, signed, use_threads
from hw.sparse.panels import PANEL, WEIGHTS_PER_TILE, TiledRows, clear, copy, row_bounds, sum_panel, weights_of
from hw.sparse.rows import FloatArray, SparseRows, aligned_empty, check_bias
from hw.sparse.vector import LANES, Address, raw, raw_aligned, transpose

#: columns of a tile in panels of 64: their activations (256 bytes each) fill the first level of the cache, or nearly
_FEWEST_COLUMNS, _MOST_COLUMNS = 96, 128
#: below this density panels are half as wide and tiles have twice the columns: sums are read and written less often
_THIN = 0.06
#: floats of sums that a thread has at a time, so that they stay in the second level of the cache
_SUMS_AT_ONCE = 64 * 1024
#: rows that are turned at a time: as many results of a sample then come together, which the processor foresees
_ROWS_OUT = 256
#: floats of a thread's sums and of the block in which they are turned
_SUMS = _SUMS_AT_ONCE + LANES * _ROWS_OUT


@dataclass(frozen=True, eq=False)
class BatchMatrix:
    """A matrix for batches.

    Attributes:
        matrix: the weights.
        columns_per_tile: in panels of 64 samples, twice as many in panels of 32; None if the density decides.
    """

    matrix: SparseRows
    columns_per_tile: int | None = None
    _packed: dict[int, TiledRows] = field(default_factory=dict, repr=False)

    @classmethod
    def pack(cls, matrix: SparseRows, *, columns_per_tile: int | None = None) -> BatchMatrix:
        """Prepare a matrix; the number of columns in a tile follows from its density unless it is given."""
        return cls(matrix, columns_per_tile)

    @property
    def size_bytes(self) -> int:
        """Bytes that one multiplication reads, without activations, for the sizes of batches seen so far."""
        return max((tiles.size_bytes for tiles in self._packed.values()), default=0)

    def matmul(self, x: NDArray[Any], bias: NDArray[Any] | None = None, *, threads: int = 1) -> FloatArray:
        """X W^T + bias. The first batch takes longer: the weights are laid out.

        Args:
            x: float32 (batch, columns).
            bias: float32 (rows,).
            threads: that share the rows.

        Returns:
            float32 (batch, rows).

        Raises:
            ValueError: activations of another type or shape.
        """
        rows, columns = self.matrix.shape
        if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != columns:
            raise ValueError(f"expected activations float32 (batch, {columns}), got {x.dtype} {x.shape}")
        width = self._width(len(x))
        if width not in self._packed:
            self._packed[width] = self._pack(width)
        y = aligned_empty((len(x), rows))
        _matmul(
            check_threads(threads), tuple(self._packed[width]), check_bias(bias, rows),
            np.ascontiguousarray(x), y, len(x), columns, width,
            np.empty(-(-len(x) // width) * width * columns + LANES, np.float32),
            np.empty(threads * _SUMS + LANES, np.float32),
        )  # fmt: skip
        return y

    def _width(self, batch: int) -> int:
        """Samples in a panel; the last is filled up with zeros."""
        if batch <= LANES:
            return LANES
        return PANEL // 2 if batch <= PANEL // 2 or self.matrix.density < _THIN else PANEL

    def _pack(self, width: int) -> TiledRows:
        columns = self.columns_per_tile
        if columns is None:
            columns = int(np.clip(WEIGHTS_PER_TILE / max(self.matrix.density, 1e-6), _FEWEST_COLUMNS, _MOST_COLUMNS))
        offsets = np.arange(self.matrix.shape[1]) * (width // LANES)
        return TiledRows.pack(self.matrix, columns * PANEL // width, offsets)


@compiled
def _transpose_block(
    source: Address, start: int, pitch: int, height: int, width: int, target: Address, goal: int, step: int,
) -> None:  # fmt: skip
    """Write `height` rows of `width` as columns; 16 by 16 at once where that many are left."""
    for top in range(0, height, LANES):
        for left in range(0, width, LANES):
            if top + LANES <= height and left + LANES <= width:
                transpose(source, start + top * pitch + left, pitch, target, goal + left * step + top, step)
                continue
            for row in range(top, min(top + LANES, height)):
                for column in range(left, min(left + LANES, width)):
                    target[goal + column * step + row] = source[start + row * pitch + column]


@compiled
def _turn_in(thread: int, threads: int, x: Address, batch: int, columns: int, width: int, source: Address) -> None:
    """The columns of one thread, feature-major; samples that fill up a panel are zero."""
    first, last = _share(columns, thread, threads), _share(columns, thread + 1, threads)
    for panel in range(0, batch, width):
        held, origin = min(width, batch - panel), panel * columns
        if held < width:
            clear(source, origin + first * width, origin + last * width)
        _transpose_block(x, panel * columns + first, columns, held, last - first, source, origin + first * width, width)


@compiled
def _share(count: int, thread: int, threads: int) -> int:
    """Where a thread begins if `count` are shared out in whole blocks of 16."""
    return min((count + LANES - 1) // LANES * thread // threads * LANES, count)


@compiled
def _turn_out(sums: Address, start: int, rows: int, width: int, held: int, y: Address, goal: int, pitch: int) -> None:
    """`rows` rows, sample by sample; through a block after the sums, so that a sample's results come together."""
    block = start + _SUMS_AT_ONCE
    for row in range(0, rows, _ROWS_OUT):
        count = min(_ROWS_OUT, rows - row)
        for sample in range(0, held, LANES):
            samples = min(LANES, held - sample)
            _transpose_block(sums, start + row * width + sample, width, count, samples, sums, block, _ROWS_OUT)
            for place in range(samples):
                copy(y, goal + (sample + place) * pitch + row, sums, block + place * _ROWS_OUT, count)


@compiled
def _multiply(
    thread: int, threads: int, tiles: TiledRows, bias: Address, source: Address, sums: Address, y: Address, batch: int,
    columns: int, width: int,
) -> None:  # fmt: skip
    """The rows of one thread, some at a time, each time written back sample by sample."""
    weights, start, at_once = weights_of(tiles), thread * _SUMS, _SUMS_AT_ONCE // width
    first, last = row_bounds(tiles, thread, threads)
    for panel in range(0, batch, width):
        for row in range(first, last, at_once):
            end, held = min(row + at_once, last), min(width, batch - panel)
            sum_panel(width, weights, row, end, source, panel * columns, bias, sums, start - row * width, width)
            _turn_out(sums, start, end - row, width, held, y, panel * tiles.rows + row, tiles.rows)


@parallel
def _matmul(
    threads: int, weights: tuple[Any, ...], bias: FloatArray, x: FloatArray, y: FloatArray, batch: int, columns: int,
    width: int, source: FloatArray, sums: FloatArray,
) -> None:  # fmt: skip
    tiles = TiledRows(*weights)
    before = use_threads(threads)
    for index in prange(threads):
        _turn_in(signed(index), threads, raw(x), batch, columns, width, raw_aligned(source))
    for index in prange(threads):
        _multiply(
            signed(index), threads, tiles, raw(bias), raw_aligned(source), raw_aligned(sums), raw(y), batch, columns,
            width,
        )  # fmt: skip
    use_threads(before)
