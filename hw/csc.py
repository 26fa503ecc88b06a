"""A sparse matrix by its columns: compressed sparse column form, as scipy and the literature call it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.arrays import checked_array, transposed


@dataclass(frozen=True, eq=False, slots=True)
class CSCMatrix:
    """The non-zeros of a matrix column by column. Damaged input is refused.

    Attributes:
        shape: (rows, columns).
        data: float32 (non-zeros,), finite and not 0.
        indices: int32 (non-zeros,), the row of each; ascending in each column.
        indptr: int32 (columns + 1,), how many non-zeros lie before each column, and at last how many there are.

    Raises:
        ValueError: a type or a shape is wrong, a row is outside the matrix, rows or `indptr` do not ascend.
    """

    shape: tuple[int, int]
    data: NDArray[np.float32]
    indices: NDArray[np.int32]
    indptr: NDArray[np.int32]

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ValueError(f"shape: expected at least one row and one column, got {self.shape}")
        object.__setattr__(self, "data", checked_array(self.data, "data", np.float32, 1))
        object.__setattr__(self, "indices", checked_array(self.indices, "indices", np.int32, 1))
        object.__setattr__(self, "indptr", checked_array(self.indptr, "indptr", np.int32, 1))
        if len(self.data) != len(self.indices):
            raise ValueError(f"expected a row for each value, got {len(self.data)} values, {len(self.indices)} indices")
        if not np.isfinite(self.data).all() or not self.data.all():
            raise ValueError("data: expected finite non-zeros, got NaN, infinity or 0")
        _check_indptr(self.indptr, self.shape[1], len(self.data))
        _check_rows(self.indices, self.indptr, self.shape[0])

    @classmethod
    def from_dense(cls, dense: NDArray[Any]) -> CSCMatrix:
        """The non-zeros of `dense`, float (rows, columns), as float32."""
        if dense.ndim != 2:
            raise ValueError(f"expected a matrix (rows, columns), got the shape {dense.shape}")
        rows, columns = dense.shape
        by_column = transposed(dense.astype(np.float32, copy=False)).reshape(-1)
        positions = np.flatnonzero(by_column != 0)
        return cls(
            (rows, columns),
            by_column[positions],
            (positions % max(rows, 1)).astype(np.int32),
            np.searchsorted(positions, rows * np.arange(columns + 1)).astype(np.int32),
        )

    def to_dense(self) -> NDArray[np.float32]:
        """The whole matrix, float32 (rows, columns)."""
        dense = np.zeros(self.shape, np.float32)
        dense[self.indices, self.columns] = self.data
        return dense

    @property
    def columns(self) -> NDArray[np.int32]:
        """The column of each non-zero, int32 (non-zeros,)."""
        return np.repeat(np.arange(self.shape[1], dtype=np.int32), np.diff(self.indptr))

    @property
    def density(self) -> float:
        """Share of the matrix that is stored."""
        return len(self.data) / (self.shape[0] * self.shape[1])

    @property
    def size_bytes(self) -> int:
        """Bytes of the three arrays."""
        return self.data.nbytes + self.indices.nbytes + self.indptr.nbytes


def _check_indptr(indptr: NDArray[np.int32], columns: int, stored: int) -> None:
    if len(indptr) != columns + 1:
        raise ValueError(f"indptr: expected {columns + 1} numbers for {columns} columns, got {len(indptr)}")
    if indptr[0] != 0 or indptr[-1] != stored:
        raise ValueError(f"indptr: expected it to run from 0 to {stored}, got {indptr[0]} to {indptr[-1]}")
    falls = np.flatnonzero(indptr[1:] < indptr[:-1])
    if len(falls):
        at = falls[0]
        raise ValueError(f"indptr: expected no fall, got {indptr[at]} then {indptr[at + 1]} at column {at}")


def _check_rows(indices: NDArray[np.int32], indptr: NDArray[np.int32], rows: int) -> None:
    if len(indices) == 0:
        return
    if indices.min() < 0 or indices.max() >= rows:
        raise ValueError(f"indices: expected rows from 0 to {rows - 1}, got {indices.min()} to {indices.max()}")
    ascends = np.empty(len(indices), bool)
    ascends[1:] = indices[1:] > indices[:-1]
    ascends[indptr[:-1][indptr[:-1] < len(indices)]] = True  # the first of a column
    if not ascends.all():
        at = int(np.argmin(ascends))
        column = int(np.searchsorted(indptr, at, side="right")) - 1
        raise ValueError(f"column {column}: expected ascending rows, got {indices[at]} after {indices[at - 1]}")
