"""Y = X W^T for a batch, turned so that 64 samples of one feature lie side by side, and summed in panels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from hw.sparse.jit import check_threads, compiled, parallel, signed, use_threads
from hw.sparse.panels import PANEL, SLACK, WEIGHTS_PER_TILE, TiledRows, aligned, row_bounds, sum_panel, widest
from hw.sparse.rows import FloatArray, SparseRows, check_bias
from hw.sparse.vector import LANES, transpose

#: columns of a tile: their activations (256 bytes each for 64 samples) stay in the first or second level of the cache
_FEWEST_COLUMNS, _MOST_COLUMNS = 96, 640


@dataclass(frozen=True, eq=False)
class BatchMatrix:
    """A matrix for batches.

    Attributes:
        tiles: the weights; an offset is a column.
    """

    tiles: TiledRows

    @classmethod
    def pack(cls, matrix: SparseRows, *, columns_per_tile: int | None = None) -> BatchMatrix:
        """Lay out a matrix; the number of columns in a tile follows from its density unless it is given."""
        columns = matrix.shape[1]
        if columns_per_tile is None:
            wanted = WEIGHTS_PER_TILE / max(matrix.density, 1e-6)
            columns_per_tile = int(np.clip(wanted, _FEWEST_COLUMNS, _MOST_COLUMNS))
        return cls(TiledRows.pack(matrix, columns_per_tile, np.arange(columns, dtype=np.int32)))

    @property
    def size_bytes(self) -> int:
        """Bytes that one multiplication reads, without activations."""
        return self.tiles.size_bytes

    def matmul(self, x: NDArray[Any], bias: NDArray[Any] | None = None, *, threads: int = 1) -> FloatArray:
        """X W^T + bias.

        Args:
            x: float32 (batch, columns).
            bias: float32 (rows,).
            threads: that share the rows.

        Returns:
            float32 (batch, rows).

        Raises:
            ValueError: activations of another type or shape.
        """
        rows, columns = self.tiles.rows, self.tiles.columns
        if x.dtype != np.float32 or x.ndim != 2 or x.shape[1] != columns:
            raise ValueError(f"expected activations float32 (batch, {columns}), got {x.dtype} {x.shape}")
        y = np.empty((len(x), rows), np.float32)
        _matmul(
            check_threads(threads), tuple(self.tiles), check_bias(bias, rows), np.ascontiguousarray(x).reshape(-1),
            y.reshape(-1), len(x),
        )  # fmt: skip
        return y


@compiled
def _transpose_block(
    source: FloatArray, start: int, pitch: int, height: int, width: int, target: FloatArray, goal: int, step: int,
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
def _turn_in(thread: int, threads: int, x: FloatArray, batch: int, columns: int, source: FloatArray) -> None:
    """The columns of one thread, feature-major; samples that fill up a panel are zero."""
    first, last = _share(columns, thread, threads), _share(columns, thread + 1, threads)
    for panel in range(0, batch, PANEL):
        width, held = widest(batch - panel), min(PANEL, batch - panel)
        origin = panel * columns
        if held < width:
            source[origin + first * width : origin + last * width] = 0
        _transpose_block(x, panel * columns + first, columns, held, last - first, source, origin + first * width, width)


@compiled
def _share(count: int, thread: int, threads: int) -> int:
    """Where a thread begins if `count` are shared out in whole blocks of 16."""
    return min((count + LANES - 1) // LANES * thread // threads * LANES, count)


@compiled
def _multiply(
    thread: int, threads: int, tiles: TiledRows, bias: FloatArray, source: FloatArray, target: FloatArray,
    y: FloatArray, batch: int,
) -> None:  # fmt: skip
    """The rows of one thread, written back sample by sample."""
    first, last = row_bounds(tiles, thread, threads)
    for panel in range(0, batch, PANEL):
        width, held = widest(batch - panel), min(PANEL, batch - panel)
        sum_panel(width, tiles, first, last, source, panel * tiles.columns, width, bias, target, 0, width)
        _transpose_block(target, first * width, width, last - first, held, y, panel * tiles.rows + first, tiles.rows)


@compiled
def _filled(batch: int) -> int:
    """Samples with those that fill up the last panel."""
    rest = batch % PANEL
    return batch - rest + widest(rest) if rest else batch


@parallel
def _matmul(threads: int, weights: tuple[Any, ...], bias: FloatArray, x: FloatArray, y: FloatArray, batch: int) -> None:
    tiles = TiledRows(*weights)
    source, target = aligned(tiles.columns * _filled(batch) + SLACK), aligned(tiles.rows * PANEL)
    before = use_threads(threads)
    for index in prange(threads):
        thread = signed(index)
        _turn_in(thread, threads, x, batch, tiles.columns, source)
    for index in prange(threads):
        thread = signed(index)
        _multiply(thread, threads, tiles, bias, source, target, y, batch)
    use_threads(before)
