"""What a sparsity pattern takes when it is stored in EIE's form, counted without encoding it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.eie.layout import Layout

#: the longest run of zeros that the 4 bits of an entry hold
LONGEST_RUN = 15
_RUN_BITS = 4


@dataclass(frozen=True, slots=True)
class StoredSize:
    """What is stored of a matrix: exactly the arrays of its file; the file's own headers are not counted.

    Attributes:
        nonzeros: entries that hold a weight.
        padding: entries that only bridge 16 zeros.
        entry_bytes: codes and runs: one byte an entry with codes of 4 bits, one and a half with codes of 8.
        pointer_bytes: one pointer for each column of each element and one more for each element, of 2 bytes as in
            the paper, or of 4 where an element holds more than 65,535 entries.
        codebook_bytes: shared values, float32.
    """

    nonzeros: int
    padding: int
    entry_bytes: int
    pointer_bytes: int
    codebook_bytes: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.entry_bytes + self.pointer_bytes + self.codebook_bytes


def stored_bytes(mask: NDArray[Any], elements: int = 1, codebook_entries: int = 16) -> StoredSize:
    """The size of storing a matrix with this pattern.

    Args:
        mask: bool (rows, columns), or weights of which the non-zeros count.
        elements: over which the rows are dealt out.
        codebook_entries: shared values, 0.0 included; up to 16 of them make codes of 4 bits, more make 8.
    """
    layout = Layout.of_shape(mask.shape, elements)
    positions = np.flatnonzero(layout.arrange(mask != 0))
    ends = np.concatenate([[0], np.cumsum(entries_of_runs(layout.zero_runs(positions)))])
    held = np.diff(ends[layout.column_counts(positions)[:: layout.columns]])
    return size_of_counts(layout, len(positions), int(ends[-1]), int(held.max()), codebook_entries)


def size_of_counts(layout: Layout, nonzeros: int, entries: int, most: int, codebook_entries: int) -> StoredSize:
    """The size of so many non-zeros in so many entries, of which the fullest element holds `most`."""
    code_bits = 4 if codebook_entries <= 16 else 8
    return StoredSize(
        nonzeros=nonzeros,
        padding=entries - nonzeros,
        entry_bytes=-(-entries * (code_bits + _RUN_BITS) // 8),
        pointer_bytes=layout.elements * (layout.columns + 1) * np.dtype(pointer_type(most)).itemsize,
        codebook_bytes=4 * codebook_entries,
    )


def entries_of_runs(zero_runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Entries that each non-zero takes after its run of zeros: itself, and padding for every 16 zeros."""
    return 1 + zero_runs // (LONGEST_RUN + 1)


def pointer_type(most: int) -> type[np.unsignedinteger[Any]]:
    """The type that holds the pointers of elements with at most so many entries."""
    return np.uint16 if most <= np.iinfo(np.uint16).max else np.uint32
