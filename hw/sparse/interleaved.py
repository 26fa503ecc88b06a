"""y = W x straight from the bytes of [EIE]: 4 bits for a run of zeros, 4 for a code, rows dealt out to elements.

The reference, and the smallest in memory; not the fastest, because the row of an entry is known only after the entry
before it. Entries and pointers are those of [EIE], section III: within an element and a column, an entry's row is the
previous entry's plus its run of zeros plus one, counted from before the first row; a run longer than 15 is broken by
entries of code 0, whose value is 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from hw.sparse.jit import check_threads, compiled, parallel, signed, use_threads
from hw.sparse.rows import FloatArray, check_bias, check_input


def interleaved_matvec(
    entries: NDArray[np.uint8],
    starts: NDArray[np.int64],
    codebook: FloatArray,
    shape: tuple[int, int],
    x: NDArray[Any],
    bias: NDArray[Any] | None = None,
    *,
    threads: int = 1,
) -> FloatArray:
    """W x + bias.

    Args:
        entries: uint8 (entries,), 16 * zeros before it + code, element by element and column by column.
        starts: int64 (elements * columns + 1,), entries before each column of each element, and at last all of them.
        codebook: float32 (16,), the value of each code, the first 0.
        shape: (rows, columns); row i belongs to element i mod elements.
        x: float32 (columns,).
        bias: float32 (rows,).
        threads: that share the elements.

    Returns:
        float32 (rows,).

    Raises:
        ValueError: arrays of another type or shape.
    """
    rows, columns = shape
    if entries.dtype != np.uint8 or entries.ndim != 1:
        raise ValueError(f"entries: expected uint8 with 1 axis, got {entries.dtype} {entries.shape}")
    if starts.dtype != np.int64 or starts.ndim != 1 or len(starts) <= columns or (len(starts) - 1) % columns:
        raise ValueError(f"starts: expected int64 (elements * {columns} + 1,), got {starts.dtype} {starts.shape}")
    if starts[0] != 0 or starts[-1] != len(entries) or (np.diff(starts) < 0).any():
        raise ValueError(
            f"starts: expected numbers that rise from 0 to {len(entries)}, got {starts[0]} to {starts[-1]}"
        )
    if codebook.dtype != np.float32 or codebook.shape != (16,) or codebook[0] != 0:
        raise ValueError(f"codebook: expected float32 (16,) that begins with 0, got {codebook.dtype} {codebook.shape}")
    y = np.empty(rows, np.float32)
    _matvec(
        check_threads(threads), np.ascontiguousarray(entries), np.ascontiguousarray(starts),
        np.ascontiguousarray(codebook), check_bias(bias, rows), check_input(x, columns), y,
    )  # fmt: skip
    return y


@compiled
def _element(
    element: int, elements: int, entries: NDArray[np.uint8], starts: NDArray[np.int64], codebook: FloatArray,
    bias: FloatArray, x: FloatArray, y: FloatArray,
) -> None:  # fmt: skip
    """The rows of one element; entries that would lead past its last row are left out."""
    held = (len(y) - element + elements - 1) // elements
    sums = np.zeros(held, np.float32)
    for column in range(len(x)):
        if x[column] != 0:
            row = -1
            first = element * len(x) + column
            for place in range(starts[first], starts[first + 1]):
                entry = entries[place]
                row += (entry >> 4) + 1
                if row < held:
                    sums[row] += codebook[entry & 15] * x[column]
    for row in range(held):
        y[row * elements + element] = sums[row] + bias[row * elements + element]


@parallel
def _matvec(
    threads: int, entries: NDArray[np.uint8], starts: NDArray[np.int64], codebook: FloatArray, bias: FloatArray,
    x: FloatArray, y: FloatArray,
) -> None:  # fmt: skip
    elements = (len(starts) - 1) // len(x)
    before = use_threads(threads)
    for index in prange(threads):
        thread = signed(index)
        for element in range(thread, min(elements, len(y)), threads):
            _element(element, elements, entries, starts, codebook, bias, x, y)
    use_threads(before)
