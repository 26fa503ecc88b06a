"""The compressed form of a matrix in EIE: interleaved rows, relative indices, shared weights ([EIE], section III).

In the part of a column that an element holds, each non-zero is an entry of a code (index into the codebook) and a run
(zeros before it, back to the last entry of this column). A run of more than 15 zeros does not fit 4 bits: for every 16
of them an entry of code 0 and run 15 comes first, which stands for 15 zeros and one more zero weight.

Runs start again at each column, as in the paper's figure 3 and its authors' simulator: a column can be skipped only if
the next one can be read without it. Lecture notes on EIE (MIT 6.S965, lecture 4) show the same pointers with runs that
count on across the borders of columns; their example is encoded both ways in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from hw.arrays import checked_array
from hw.cost import IntArray
from hw.csc import CSCMatrix
from hw.eie.codebook import Codebook
from hw.eie.layout import Layout
from hw.eie.sizes import LONGEST_RUN, StoredSize, entries_of_runs, size_of_counts

_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, eq=False, slots=True)
class EIEMatrix:
    """A matrix in EIE's form. There is one way to store a matrix: whatever is not it is refused as damaged.

    Attributes:
        layout: size of the matrix, and over how many processing elements its rows are dealt out.
        codes: uint8 (entries,), of one element after the other, in each column by column.
        runs: uint8 (entries,), zeros before each entry in its column of its element, 0 to 15.
        pointers: int32 (elements, columns + 1), where each column starts among the entries of its element, and at last
            how many entries the element holds.
        codebook: what the codes stand for.
    """

    layout: Layout
    codes: NDArray[np.uint8]
    runs: NDArray[np.uint8]
    pointers: NDArray[np.int32]
    codebook: Codebook

    def __post_init__(self) -> None:
        object.__setattr__(self, "codes", checked_array(self.codes, "codes", np.uint8, 1))
        object.__setattr__(self, "runs", checked_array(self.runs, "runs", np.uint8, 1))
        object.__setattr__(self, "pointers", checked_array(self.pointers, "pointers", np.int32, 2))
        _check_pointers(self)
        _check_entries(self)
        _check_columns(self)

    @classmethod
    def encode(cls, weights: NDArray[Any], codebook: Codebook, elements: int = 1) -> EIEMatrix:
        """Store weights (rows, columns) that are values of the codebook. See `weight_matrix` for convolutions.

        Raises:
            ValueError: a weight is no value of the codebook.
        """
        codes = codebook.codes(weights)
        nonzero = np.flatnonzero(codes != 0)
        differs = nonzero[codebook.weights(codes.reshape(-1)[nonzero]) != weights.reshape(-1)[nonzero]]
        if len(differs):
            row, column = divmod(int(differs[0]), weights.shape[1])
            raise ValueError(
                f"expected weights of the codebook, got {weights[row, column]} at row {row}, column {column} and "
                f"{len(differs) - 1} more; share them first: codebook.weights(codebook.codes(weights))"
            )
        return cls.from_codes(codes, codebook, elements)

    @classmethod
    def from_codes(cls, codes: NDArray[np.uint8], codebook: Codebook, elements: int = 1) -> EIEMatrix:
        """Store a matrix of codes (rows, columns), 0 for zero weights."""
        layout = Layout.of_shape(codes.shape, elements)
        stored = layout.arrange(codes)
        positions = np.flatnonzero(stored != 0)
        return cls._from_positions(layout, positions, stored[positions], codebook)

    @classmethod
    def from_csc(cls, matrix: CSCMatrix, codebook: Codebook, elements: int = 1) -> EIEMatrix:
        """Store a sparse matrix; its values get the codes of the nearest shared weights."""
        layout = Layout(*matrix.shape, elements)
        positions = layout.positions(matrix.indices, matrix.columns)
        order = np.argsort(positions)
        return cls._from_positions(layout, positions[order], codebook.codes(matrix.data)[order], codebook)

    @classmethod
    def _from_positions(
        cls, layout: Layout, positions: IntArray, codes: NDArray[np.uint8], codebook: Codebook
    ) -> EIEMatrix:
        """Store codes at ascending positions of the layout."""
        zeros = layout.zero_runs(positions)
        ends = np.concatenate([[0], np.cumsum(entries_of_runs(zeros))])
        entry_codes = np.zeros(ends[-1], np.uint8)
        entry_codes[ends[1:] - 1] = codes
        entry_runs = np.full(ends[-1], LONGEST_RUN, np.uint8)
        entry_runs[ends[1:] - 1] = zeros % (LONGEST_RUN + 1)
        starts = ends[layout.column_counts(positions)]
        first = layout.columns * np.arange(layout.elements)[:, None]
        pointers = starts[first + np.arange(layout.columns + 1)] - starts[first]
        return cls(layout, entry_codes, entry_runs, pointers.astype(np.int32), codebook)

    def to_codes(self) -> NDArray[np.uint8]:
        """The codes, uint8 (rows, columns)."""
        return self._spread(self.codes)

    def to_dense(self) -> NDArray[np.float32]:
        """The weights, float32 (rows, columns)."""
        return self._spread(self.codebook.weights(self.codes))

    def _spread(self, values: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """A matrix with a value for each entry in its place, and zeros."""
        rows, columns = self.layout.places(self.positions())
        matrix = np.zeros(self.layout.rows * self.layout.columns, values.dtype)
        matrix[rows * self.layout.columns + columns] = values
        return matrix.reshape(self.layout.rows, self.layout.columns)

    def positions(self) -> IntArray:
        """Where each entry lies in the stored order of the layout, int64 (entries,), ascending."""
        starts = self.column_starts()
        passed = np.cumsum(self.runs + np.int64(1))
        before = np.concatenate([[0], passed])[starts[:-1]]
        offsets = self.layout.local_rows * np.arange(len(before)) - before
        return np.repeat(offsets, np.diff(starts)) + passed - 1

    def column_starts(self) -> IntArray:
        """Where each column of each element starts among all entries, int64 (elements * columns + 1,)."""
        held = self.pointers[:, -1].astype(np.int64)
        first = np.cumsum(held) - held
        return np.append((first[:, None] + self.pointers[:, :-1]).reshape(-1), held.sum())

    @property
    def size(self) -> StoredSize:
        """Bytes as stored."""
        return size_of_counts(
            self.layout,
            int(np.count_nonzero(self.codes)),
            len(self.codes),
            int(self.pointers[:, -1].max()),
            len(self.codebook.values),
        )


def _check_pointers(matrix: EIEMatrix) -> None:
    pointers, layout = matrix.pointers, matrix.layout
    if pointers.shape != (layout.elements, layout.columns + 1):
        raise ValueError(
            f"pointers: expected the shape {(layout.elements, layout.columns + 1)} for {layout.elements} elements and "
            f"{layout.columns} columns, got {pointers.shape}"
        )
    if pointers[:, 0].any():
        element = int(np.argmax(pointers[:, 0] != 0))
        raise ValueError(f"pointers of element {element}: expected 0 first, got {pointers[element, 0]}")
    falls = np.argwhere(pointers[:, 1:] < pointers[:, :-1])
    if len(falls):
        element, column = falls[0]
        raise ValueError(
            f"pointers of element {element}: expected no fall, got {pointers[element, column]} then "
            f"{pointers[element, column + 1]} at column {column}"
        )
    entries = int(pointers[:, -1].sum(dtype=np.int64))
    if not entries == len(matrix.codes) == len(matrix.runs):
        raise ValueError(
            f"expected {entries} entries as the pointers say, got {len(matrix.codes)} codes and {len(matrix.runs)} runs"
        )


def _check_entries(matrix: EIEMatrix) -> None:
    codes, runs, shared = matrix.codes, matrix.runs, len(matrix.codebook.values)
    if len(codes) == 0:
        return
    if codes.max() >= shared:
        raise ValueError(f"entry {np.argmax(codes)}: expected a code below {shared}, got {codes.max()}")
    if runs.max() > LONGEST_RUN:
        raise ValueError(f"entry {np.argmax(runs)}: expected a run of at most {LONGEST_RUN}, got {runs.max()}")
    wrong = np.flatnonzero((codes == 0) & (runs != LONGEST_RUN))
    if len(wrong):
        raise ValueError(
            f"entry {wrong[0]}: expected code 0 only as padding, after {LONGEST_RUN} zeros, got a run of "
            f"{runs[wrong[0]]}"
        )


def _check_columns(matrix: EIEMatrix) -> None:
    """Entries stay within the rows of their element, and none is padding that leads nowhere."""
    layout, starts = matrix.layout, matrix.column_starts()
    passed = np.concatenate([[0], np.cumsum(matrix.runs + np.int64(1))])
    reached = np.diff(passed[starts])
    over = np.flatnonzero(reached > np.repeat(layout.held_rows, layout.columns))
    if len(over):
        element, column = divmod(int(over[0]), layout.columns)
        raise ValueError(
            f"element {element}, column {column}: expected entries for its {layout.held_rows[element]} rows, got "
            f"entries for {reached[over[0]]}"
        )
    held = np.flatnonzero(reached)
    idle = held[matrix.codes[starts[held + 1] - 1] == 0]
    if len(idle):
        element, column = divmod(int(idle[0]), layout.columns)
        raise ValueError(f"element {element}, column {column}: expected a non-zero at the end, got padding")
