"""The non-zeros of a weight matrix row by row: what every kernel's own layout is made from, and what modules save."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

#: non-zero values that a kernel with shared values takes: 4-bit codes, of which code 0 is the value 0
SHARED_VALUES = 15
_CACHE_LINE = 64  # bytes

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SparseRows:
    """A sparse matrix by its rows.

    Attributes:
        shape: (rows, columns).
        values: float32 (non-zeros,), finite.
        indices: int32 (non-zeros,), the column of each; ascending in each row.
        indptr: int64 (rows + 1,), how many non-zeros lie before each row, and at last how many there are.

    Raises:
        ValueError: a type or a shape is wrong, a column is outside the matrix, columns or `indptr` do not ascend.
    """

    shape: tuple[int, int]
    values: FloatArray
    indices: NDArray[np.int32]
    indptr: NDArray[np.int64]

    def __post_init__(self) -> None:
        rows, columns = self.shape
        for name, kind in (("values", np.float32), ("indices", np.int32), ("indptr", np.int64)):
            array = getattr(self, name)
            if array.dtype != kind or array.ndim != 1:
                raise ValueError(f"{name}: expected {np.dtype(kind)} with 1 axis, got {array.dtype} {array.shape}")
        stored = len(self.values)
        if len(self.indptr) != rows + 1 or self.indptr[0] != 0 or self.indptr[-1] != stored:
            raise ValueError(f"indptr: expected {rows + 1} numbers from 0 to {stored}, got {len(self.indptr)} numbers")
        if (np.diff(self.indptr) < 0).any():
            raise ValueError("indptr: expected numbers that do not fall")
        if len(self.indices) != stored:
            raise ValueError(f"expected a column for each value, got {stored} values and {len(self.indices)} columns")
        if stored and not 0 <= self.indices.min() <= self.indices.max() < columns:
            raise ValueError(
                f"indices: expected columns from 0 to {columns - 1}, got {self.indices.min()} to {self.indices.max()}"
            )
        ascends = np.diff(self.indices) > 0
        inner = self.indptr[1:-1]
        ascends[inner[(inner > 0) & (inner < stored)] - 1] = True  # the first of a row
        if not ascends.all():
            raise ValueError("indices: expected columns that ascend in each row")
        if not np.isfinite(self.values).all():
            raise ValueError("values: expected finite numbers, got NaN or infinity")

    @classmethod
    def from_dense(cls, dense: NDArray[Any]) -> SparseRows:
        """The non-zeros of `dense`, float (rows, columns), as float32."""
        if dense.ndim != 2:
            raise ValueError(f"expected a matrix (rows, columns), got the shape {dense.shape}")
        matrix = np.ascontiguousarray(dense, dtype=np.float32)
        rows, columns = matrix.shape
        positions = np.flatnonzero(matrix)
        return cls(
            (rows, columns),
            matrix.reshape(-1)[positions],
            (positions % max(columns, 1)).astype(np.int32),
            np.searchsorted(positions, columns * np.arange(rows + 1)).astype(np.int64),
        )

    def to_dense(self) -> FloatArray:
        """The whole matrix, float32 (rows, columns)."""
        dense = np.zeros(self.shape, np.float32)
        dense[self.rows, self.indices] = self.values
        return dense

    @property
    def counts(self) -> NDArray[np.int64]:
        """Non-zeros of each row, int64 (rows,)."""
        return np.diff(self.indptr)

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of each non-zero, int64 (non-zeros,)."""
        return np.repeat(np.arange(self.shape[0]), self.counts)

    @property
    def density(self) -> float:
        """Share of the matrix that is stored; 0 for a matrix without elements."""
        return len(self.values) / max(self.shape[0] * self.shape[1], 1)

    @cached_property
    def codebook(self) -> FloatArray | None:
        """The shared values, float32 (16,): 0 first, then ascending, unused ones 0; None if there are too many."""
        distinct = np.unique(self.values[:4096])  # tells most matrices without sharing apart at once
        if len(distinct) <= SHARED_VALUES:
            distinct = np.unique(self.values)
        distinct = distinct[distinct != 0]
        if len(distinct) > SHARED_VALUES:
            return None
        book = np.zeros(SHARED_VALUES + 1, np.float32)
        book[1 : len(distinct) + 1] = distinct
        return book

    def shared(self) -> tuple[FloatArray, NDArray[np.uint8]]:
        """The codebook, and the place of each value in it, uint8 (non-zeros,) from 0 to 15.

        Raises:
            ValueError: there are more than 15 different values.
        """
        book = self.codebook
        if book is None:
            raise ValueError(f"expected at most {SHARED_VALUES} different non-zero values, got more; share them first")
        used = book[1 : 1 + np.count_nonzero(book)]
        return book, np.where(self.values != 0, np.searchsorted(used, self.values) + 1, 0).astype(np.uint8)


def aligned_empty(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """An array that begins on a cache line: a vector that crosses a line takes twice as long to load or store."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + _CACHE_LINE, np.uint8)
    first = -memory.__array_interface__["data"][0] % _CACHE_LINE
    return memory[first : first + size].view(dtype).reshape(shape)


def aligned_zeros(count: int, dtype: DTypeLike) -> NDArray[Any]:
    """Zeros (count,) that begin on a cache line."""
    zeros = aligned_empty((count,), dtype)
    zeros.fill(0)
    return zeros


def check_input(x: NDArray[Any], columns: int) -> FloatArray:
    """The vector of activations as contiguous float32 (columns,); copied only if it is not.

    Raises:
        ValueError: another type or shape.
    """
    if x.dtype != np.float32 or x.shape != (columns,):
        raise ValueError(f"expected activations float32 ({columns},), got {x.dtype} {x.shape}")
    return np.ascontiguousarray(x)


def check_bias(bias: NDArray[Any] | None, rows: int) -> FloatArray:
    """The bias as contiguous float32 (rows,), zeros if there is none.

    Raises:
        ValueError: another type or shape.
    """
    if bias is None:
        return np.zeros(rows, np.float32)
    if bias.dtype != np.float32 or bias.shape != (rows,):
        raise ValueError(f"bias: expected float32 ({rows},), got {bias.dtype} {bias.shape}")
    return np.ascontiguousarray(bias)
