"""y = W x for one x: 16 rows side by side, their activations looked up in a window of 32 columns.

A slice is 16 rows, one per lane, of about equal counts (the rows are sorted by them). Each step has a base column;
every lane whose next non-zero lies in the 32 columns from there takes it, the others take a zero. So a step is two
loads of activations, a permutation of them, the weights (with shared values another permutation, of the codebook) and
a multiply-add: no gather and no branch. With shared values a weight is 9 bits: 5 say where in the window, 4 say which
value; three steps share 16 words of 32 bits.

A zero that fills a lane is multiplied by an activation that does not belong to the row: with infinite or undefined
activations the result can differ from the dense one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import prange
from numpy.typing import NDArray

from hw.sparse.jit import check_threads, compiled, parallel, signed, use_threads
from hw.sparse.rows import SHARED_VALUES, FloatArray, SparseRows, aligned_zeros, check_bias, check_input
from hw.sparse.vector import (
    LANES,
    WINDOW,
    add,
    at,
    decode,
    load,
    multiply_add,
    prefetch,
    shift_right,
    splat,
    store,
    window,
)

#: base columns are multiples of this many: a finer step fills more lanes, a coarser one crosses fewer cache lines
BASE_STEP = 8
#: columns in the unit in which bases are stored: 8 bytes, which an address can be scaled by at no cost
_BASE_UNIT = 2
_PLACE_BITS, _CODE_BITS = 5, 4
#: steps whose places (and codes) share 16 words
_CODED_STEPS = 32 // (_PLACE_BITS + _CODE_BITS)
_FLOAT_STEPS = 32 // _PLACE_BITS
#: steps in one turn of the loop; the last is filled up
_GROUP = 6
#: words that are asked for in advance: a page, which the processor's own prefetching does not look beyond
_WORDS_AHEAD = 1024
_LARGEST_COLUMN = _BASE_UNIT * 2**16


@dataclass(frozen=True, eq=False)
class LaneMatrix:
    """A matrix in the layout that the module describes.

    Attributes:
        shape: (rows, columns).
        starts: int64 (slices + 1,), groups of six steps before each slice.
        words: uint32, six steps of places in 16 words, or three of places and codes if values are shared.
        bases: uint16 (steps,), in units of 2 columns.
        order: int32 (slices * 16,), the row of each lane.
        codebook: float32 (16,), unused if values are not shared.
        values: float32 (steps * 16,), empty if they are shared.
    """

    shape: tuple[int, int]
    starts: NDArray[np.int64]
    words: NDArray[np.uint32]
    bases: NDArray[np.uint16]
    order: NDArray[np.int32]
    codebook: FloatArray
    values: FloatArray

    @classmethod
    def pack(cls, matrix: SparseRows, *, shared: bool | None = None) -> LaneMatrix:
        """Lay out a matrix.

        Args:
            matrix: of at most 131072 columns.
            shared: whether to store 4-bit codes; by default if there are at most 15 different values.

        Raises:
            ValueError: too many columns, or too many values to share.
        """
        rows, columns = matrix.shape
        if columns > _LARGEST_COLUMN:
            raise ValueError(f"expected at most {_LARGEST_COLUMN} columns, got {columns}")
        shared = matrix.codebook is not None if shared is None else shared
        order = np.argsort(-matrix.counts, kind="stable").astype(np.int32)
        slices = -(-rows // LANES)
        starts = np.zeros(slices + 1, np.int64)
        nothing = np.zeros((0, LANES), np.int32)
        _schedule(matrix.indptr, matrix.indices, order, False, starts, np.zeros(0, np.uint16), nothing)
        steps = _GROUP * int(starts[-1])
        bases, taken = aligned_zeros(steps, np.uint16), np.full((steps, LANES), -1, np.int32)
        _schedule(matrix.indptr, matrix.indices, order, True, starts, bases, taken)
        order = np.concatenate([order, np.full(slices * LANES - rows, -1, np.int32)])
        idle = taken < 0
        places = _picked(matrix.indices, taken) - _BASE_UNIT * bases[:, None].astype(np.int32)
        places = np.where(idle, 0, places)
        if not shared:
            words = _in_words(places, _FLOAT_STEPS, _PLACE_BITS)
            values = aligned_zeros(LANES * steps, np.float32)
            values[:] = np.where(idle, np.float32(0), _picked(matrix.values, taken)).reshape(-1)
            return cls(matrix.shape, starts, words, bases, order, np.zeros(SHARED_VALUES + 1, np.float32), values)
        book, codes = matrix.shared()
        entries = places | np.where(idle, 0, _picked(codes, taken)).astype(np.int32) << _PLACE_BITS
        words = _in_words(entries, _CODED_STEPS, _PLACE_BITS + _CODE_BITS)
        return cls(matrix.shape, starts, words, bases, order, book, np.zeros(0, np.float32))

    @property
    def size_bytes(self) -> int:
        """Bytes that one multiplication reads, without activations."""
        arrays = (self.starts, self.words, self.bases, self.order, self.codebook, self.values)
        return sum(array.nbytes for array in arrays)

    def matvec(self, x: NDArray[Any], bias: NDArray[Any] | None = None, *, threads: int = 1) -> FloatArray:
        """W x + bias.

        Args:
            x: float32 (columns,).
            bias: float32 (rows,).
            threads: that share the rows.

        Returns:
            float32 (rows,).
        """
        rows, columns = self.shape
        y = np.empty(rows, np.float32)
        _matvec(
            check_threads(threads), self.starts, self.words, self.bases, self.codebook, self.values, self.order,
            check_bias(bias, rows), check_input(x, columns), y,
        )  # fmt: skip
        return y


def _picked(array: NDArray[Any], taken: NDArray[np.int32]) -> NDArray[Any]:
    """Elements by their place; anything where the place is -1."""
    return array[taken] if len(array) else np.zeros(taken.shape, array.dtype)


def _in_words(entries: NDArray[Any], steps: int, bits: int) -> NDArray[np.uint32]:
    """Entries of few bits (n * steps, 16) as words uint32 (n * 16,); the first step has the lowest bits."""
    grouped = entries.astype(np.uint32).reshape(-1, steps, LANES)
    words = aligned_zeros(len(grouped) * LANES, np.uint32)
    for step in range(steps):
        words |= (grouped[:, step] << np.uint32(bits * step)).reshape(-1)
    return words


@compiled
def _first_needed(
    ahead: NDArray[np.int64], ends: NDArray[np.int64], lanes: int, indices: NDArray[np.int32], columns: int
) -> int:
    """The first column that any lane still needs; `columns` if none does."""
    first = columns
    for lane in range(lanes):
        if ahead[lane] < ends[lane]:
            first = min(first, int(indices[ahead[lane]]))
    return first


@compiled
def _schedule(
    indptr: NDArray[np.int64], indices: NDArray[np.int32], order: NDArray[np.int32], fill: bool,
    starts: NDArray[np.int64], bases: NDArray[np.uint16], taken: NDArray[np.int32],
) -> None:  # fmt: skip
    """Which non-zero each lane takes in each step; without `fill`, only how many groups of steps each slice needs.

    The base is the first column that any lane still needs, rounded down, so that lane always advances.
    """
    ahead, ends = np.zeros(LANES, np.int64), np.zeros(LANES, np.int64)
    for part in range(len(starts) - 1):
        lanes = min(LANES, len(order) - LANES * part)
        for lane in range(lanes):
            row = order[LANES * part + lane]
            ahead[lane], ends[lane] = indptr[row], indptr[row + 1]
        step = _GROUP * starts[part]
        first = _first_needed(ahead, ends, lanes, indices, _LARGEST_COLUMN)
        while first < _LARGEST_COLUMN:
            base = first // BASE_STEP * BASE_STEP
            for lane in range(lanes):
                if ahead[lane] < ends[lane] and indices[ahead[lane]] < base + WINDOW:
                    if fill:
                        taken[step, lane], bases[step] = ahead[lane], base // _BASE_UNIT
                    ahead[lane] += 1
            step += 1
            first = _first_needed(ahead, ends, lanes, indices, _LARGEST_COLUMN)
        if not fill:
            starts[part + 1] = (step + _GROUP - 1) // _GROUP


@compiled
def _padded(x: FloatArray) -> FloatArray:
    """A copy that begins on a cache line, with zeros after it as far as a window can reach."""
    buffer = np.empty(len(x) + WINDOW + LANES, np.float32)
    shift = (-(buffer.ctypes.data // 4)) % LANES
    copy = buffer[shift : shift + len(x) + WINDOW]
    copy[: len(x)] = x
    copy[len(x) :] = 0
    return copy


@compiled
def _bounds(starts: NDArray[np.int64], thread: int, threads: int) -> tuple[int, int]:
    """The slices of a thread: about equally many groups for each."""
    total = starts[-1]
    first = 0 if thread == 0 else np.searchsorted(starts, total * thread // threads)
    last = len(starts) - 1 if thread == threads - 1 else np.searchsorted(starts, total * (thread + 1) // threads)
    return first, last


@compiled
def _write(part: int, sums: FloatArray, order: NDArray[np.int32], bias: FloatArray, y: FloatArray) -> None:
    for lane in range(min(LANES, len(y) - LANES * part)):
        row = at(order, LANES * part + lane)
        y[row] = sums[lane] + bias[row]


@compiled
def _coded(
    first: int, last: int, starts: NDArray[np.int64], words: NDArray[np.uint32], bases: NDArray[np.uint16],
    codebook: FloatArray, order: NDArray[np.int32], bias: FloatArray, x: FloatArray, y: FloatArray,
) -> None:  # fmt: skip
    """Some slices of a matrix with shared values. Three sums, because one would wait for itself."""
    sums = np.empty(LANES, np.float32)
    for part in range(first, last):
        a, b, c = splat(16, 0.0), splat(16, 0.0), splat(16, 0.0)
        for group in range(2 * starts[part], 2 * starts[part + 1], 2):
            for half in (group, group + 1):
                word, step = load(16, words, LANES * half), 3 * half
                prefetch(words, LANES * half + _WORDS_AHEAD)
                a = multiply_add(decode(codebook, shift_right(word, 5)), window(x, 2 * at(bases, step), word), a)
                word = shift_right(word, 9)
                b = multiply_add(decode(codebook, shift_right(word, 5)), window(x, 2 * at(bases, step + 1), word), b)
                word = shift_right(word, 9)
                c = multiply_add(decode(codebook, shift_right(word, 5)), window(x, 2 * at(bases, step + 2), word), c)
        store(sums, 0, add(add(a, b), c))
        _write(part, sums, order, bias, y)


@compiled
def _uncoded(
    first: int, last: int, starts: NDArray[np.int64], words: NDArray[np.uint32], bases: NDArray[np.uint16],
    values: FloatArray, order: NDArray[np.int32], bias: FloatArray, x: FloatArray, y: FloatArray,
) -> None:  # fmt: skip
    """Some slices of a matrix with a value for each weight."""
    sums = np.empty(LANES, np.float32)
    for part in range(first, last):
        a, b = splat(16, 0.0), splat(16, 0.0)
        for group in range(starts[part], starts[part + 1]):
            word = load(16, words, LANES * group)
            prefetch(words, LANES * group + _WORDS_AHEAD // 6)
            for step in range(6 * group, 6 * group + 6, 2):
                prefetch(values, LANES * step + _WORDS_AHEAD)
                a = multiply_add(load(16, values, LANES * step), window(x, 2 * at(bases, step), word), a)
                word = shift_right(word, 5)
                place = LANES * (step + 1)
                b = multiply_add(load(16, values, place), window(x, 2 * at(bases, step + 1), word), b)
                word = shift_right(word, 5)
        store(sums, 0, add(a, b))
        _write(part, sums, order, bias, y)


@compiled
def _span(
    first: int, last: int, starts: NDArray[np.int64], words: NDArray[np.uint32], bases: NDArray[np.uint16],
    codebook: FloatArray, values: FloatArray, order: NDArray[np.int32], bias: FloatArray, x: FloatArray, y: FloatArray,
) -> None:  # fmt: skip
    if len(values):
        _uncoded(first, last, starts, words, bases, values, order, bias, x, y)
    else:
        _coded(first, last, starts, words, bases, codebook, order, bias, x, y)


@parallel
def _matvec(
    threads: int, starts: NDArray[np.int64], words: NDArray[np.uint32], bases: NDArray[np.uint16],
    codebook: FloatArray, values: FloatArray, order: NDArray[np.int32], bias: FloatArray, x: FloatArray, y: FloatArray,
) -> None:  # fmt: skip
    padded = _padded(x)
    before = use_threads(threads)
    for index in prange(threads):
        thread = signed(index)
        first, last = _bounds(starts, thread, threads)
        _span(first, last, starts, words, bases, codebook, values, order, bias, padded, y)
    use_threads(before)
