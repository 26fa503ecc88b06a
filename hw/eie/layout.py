"""Where the weights of a matrix lie when its rows are dealt out to processing elements ([EIE], section III-C)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hw.arrays import transposed
from hw.cost import IntArray

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Layout:
    """A matrix over several elements: row i belongs to element i mod `elements`, as its local row i // `elements`.

    The stored order goes through the elements, in each through the columns, in each through the local rows. A
    position in it is (element * columns + column) * local_rows + local row; where the rows do not divide evenly, the
    positions of the rows that are missing stay unused.
    """

    rows: int
    columns: int
    elements: int = 1

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.elements) < 1:
            raise ValueError(
                f"expected at least one row, column and element, got {self.rows} rows, {self.columns} columns, "
                f"{self.elements} elements"
            )

    @classmethod
    def of_shape(cls, shape: tuple[int, ...], elements: int) -> Layout:
        """Of a matrix of this shape."""
        if len(shape) != 2:
            raise ValueError(f"expected a matrix (rows, columns), got the shape {shape}")
        return cls(*shape, elements)

    @property
    def local_rows(self) -> int:
        """Rows of the element that holds most."""
        return -(-self.rows // self.elements)

    @property
    def held_rows(self) -> IntArray:
        """Rows of each element, int64 (elements,)."""
        held: IntArray = (self.rows - 1 - np.arange(self.elements)) // self.elements + 1
        return held

    def arrange(self, matrix: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """The matrix (rows, columns) in stored order (elements * columns * local_rows,); unused positions are zero."""
        if self.rows % self.elements:
            whole = np.zeros((self.local_rows * self.elements, self.columns), matrix.dtype)
            whole[: self.rows] = matrix
            matrix = whole
        return transposed(matrix.reshape(self.local_rows, self.elements * self.columns)).reshape(-1)

    def positions(self, rows: NDArray[Any], columns: NDArray[Any]) -> IntArray:
        """Positions of weights, int64, in the order given."""
        local = rows.astype(np.int64) // self.elements
        element = rows - local * self.elements
        positions: IntArray = (element * self.columns + columns) * self.local_rows + local
        return positions

    def places(self, positions: IntArray) -> tuple[IntArray, IntArray]:
        """Row and column of each position, the reverse of `positions`."""
        column = positions // self.local_rows  # divmod is several times slower
        local = positions - column * self.local_rows
        element = column // self.columns
        return local * self.elements + element, column - element * self.columns

    def zero_runs(self, positions: IntArray) -> IntArray:
        """Zeros before each of some ascending positions, back to the one before it or to the start of its column."""
        nearest = np.zeros_like(positions)
        nearest[1:] = positions[:-1] + 1
        return positions - np.maximum(nearest, positions // self.local_rows * self.local_rows)

    def column_counts(self, positions: IntArray) -> IntArray:
        """Number of some ascending positions before each column of each element, int64 (elements * columns + 1,)."""
        starts = self.local_rows * np.arange(self.elements * self.columns + 1)
        return np.searchsorted(positions, starts).astype(np.int64)


def weight_matrix(weights: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """Weights of a layer as a matrix (out, inputs per output).

    A linear layer (out, in) stays as it is. A convolution (out, in, height, width) becomes (out, in * height * width)
    with column (i * height + y) * width + x: the order in which torch's `unfold` lays out the patches it multiplies.
    In a grouped convolution `in` counts the inputs of one group.
    """
    if weights.ndim not in (2, 4):
        raise ValueError(f"expected weights (out, in) or (out, in, height, width), got the shape {weights.shape}")
    return weights.reshape(len(weights), -1)
