"""y = W x for one x with zeros: only the columns of non-zero activations are read, as the processing elements of [EIE].

A column's weights are multiplied in vectors of 16; with shared values the codebook is first scaled by the activation,
so that looking a code up yields the product. The products are added to their rows one by one. Threads take turns at
blocks of columns, each adding into a vector of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from hw.sparse.jit import check_threads, compiled, parallel, signed, use_threads
from hw.sparse.rows import SHARED_VALUES, FloatArray, SparseRows, check_bias, check_input
from hw.sparse.vector import LANES, decode, load, multiply, prefetch, scatter_add, splat, store, widen

#: consecutive columns that one thread takes, so that clustered activations are shared out evenly
_BLOCK = 64
#: non-zero activations that a column's first lines are asked for in advance
_AHEAD = 2
_LINES_AHEAD = 3
_LINE = 32  # uint16 in a cache line


@dataclass(frozen=True, eq=False)
class ColumnMatrix:
    """A matrix by its columns, each filled up to a multiple of 16 entries.

    Attributes:
        shape: (rows, columns).
        starts: int64 (columns + 1,), vectors of 16 entries before each column.
        places: uint16 or int32 (entries,), the row of each; one past the last row for entries that fill up.
        codes: uint8 (entries,) from 0 to 15, empty if values are not shared.
        codebook: float32 (16,), unused if values are not shared.
        values: float32 (entries,), empty if they are shared.
    """

    shape: tuple[int, int]
    starts: NDArray[np.int64]
    places: NDArray[Any]
    codes: NDArray[np.uint8]
    codebook: FloatArray
    values: FloatArray

    @classmethod
    def pack(cls, matrix: SparseRows, *, shared: bool | None = None) -> ColumnMatrix:
        """Lay out a matrix.

        Args:
            matrix: any.
            shared: whether to store 4-bit codes; by default if there are at most 15 different values.

        Raises:
            ValueError: too many values to share.
        """
        rows, columns = matrix.shape
        shared = matrix.codebook is not None if shared is None else shared
        by_column = np.argsort(matrix.indices, kind="stable")
        counts = np.bincount(matrix.indices, minlength=columns)
        starts = np.concatenate([[0], np.cumsum(-(-counts // LANES))]).astype(np.int64)
        first = LANES * starts[:-1] - np.concatenate([[0], np.cumsum(counts)[:-1]]) if columns else starts[:0]
        entry = np.arange(len(by_column)) + np.repeat(first, counts)
        entries = LANES * int(starts[-1])
        places = np.full(entries, rows, np.uint16 if rows < 2**16 else np.int32)
        places[entry] = matrix.rows[by_column]
        nothing = np.zeros(0, np.float32)
        if not shared:
            values = np.zeros(entries, np.float32)
            values[entry] = matrix.values[by_column]
            book = np.zeros(SHARED_VALUES + 1, np.float32)
            return cls(matrix.shape, starts, places, np.zeros(0, np.uint8), book, values)
        book, of_entry = matrix.shared()
        codes = np.zeros(entries, np.uint8)
        codes[entry] = of_entry[by_column]
        return cls(matrix.shape, starts, places, codes, book, nothing)

    @property
    def size_bytes(self) -> int:
        """Bytes of all columns; a multiplication reads those of non-zero activations."""
        arrays = (self.starts, self.places, self.codes, self.codebook, self.values)
        return sum(array.nbytes for array in arrays)

    def matvec(self, x: NDArray[Any], bias: NDArray[Any] | None = None, *, threads: int = 1) -> FloatArray:
        """W x + bias.

        Args:
            x: float32 (columns,).
            bias: float32 (rows,).
            threads: that share the columns.

        Returns:
            float32 (rows,).
        """
        rows, columns = self.shape
        y = np.empty(rows, np.float32)
        _matvec(
            check_threads(threads), self.starts, self.places, self.codes, self.codebook, self.values,
            check_bias(bias, rows), check_input(x, columns), y,
        )  # fmt: skip
        return y


@compiled
def _nonzero_of(thread: int, threads: int, x: FloatArray, found: NDArray[np.int32]) -> int:
    """The columns with a non-zero activation among the blocks of a thread; returns how many were written."""
    count = 0
    for block in range(thread * _BLOCK, len(x), threads * _BLOCK):
        for column in range(block, min(block + _BLOCK, len(x))):
            found[count] = column
            count += x[column] != 0
    return count


@compiled
def _add_columns(
    thread: int, threads: int, starts: NDArray[np.int64], places: NDArray[Any], codes: NDArray[np.uint8],
    codebook: FloatArray, values: FloatArray, x: FloatArray, sums: FloatArray,
) -> None:  # fmt: skip
    """Add the columns of one thread, times their activations, to `sums`."""
    found = np.empty(len(x) // threads + 2 * _BLOCK, np.int32)
    count = _nonzero_of(thread, threads, x, found)
    scaled = np.empty(LANES, np.float32)
    sums[:] = 0
    for index in range(count):
        column = found[index]
        ahead = LANES * starts[found[min(index + _AHEAD, count - 1)]]
        for line in range(_LINES_AHEAD):
            prefetch(places, ahead + line * _LINE)
        if len(values):
            activation = splat(16, x[column])
            for entry in range(LANES * starts[column], LANES * starts[column + 1], LANES):
                scatter_add(sums, places, entry, multiply(load(16, values, entry), activation))
        else:
            prefetch(codes, ahead)
            prefetch(codes, ahead + 2 * _LINE)
            store(scaled, 0, multiply(load(16, codebook, 0), splat(16, x[column])))
            for entry in range(LANES * starts[column], LANES * starts[column + 1], LANES):
                scatter_add(sums, places, entry, decode(scaled, widen(load(16, codes, entry))))


@parallel
def _matvec(
    threads: int, starts: NDArray[np.int64], places: NDArray[Any], codes: NDArray[np.uint8], codebook: FloatArray,
    values: FloatArray, bias: FloatArray, x: FloatArray, y: FloatArray,
) -> None:  # fmt: skip
    sums = np.empty((threads, len(y) + LANES), np.float32)  # rows of their own cache lines, and one for what fills up
    before = use_threads(threads)
    for index in prange(threads):
        thread = signed(index)
        _add_columns(thread, threads, starts, places, codes, codebook, values, x, sums[thread])
    use_threads(before)
    y[:] = bias
    for part in range(threads):
        for row in range(len(y)):
            y[row] += sums[part, row]
