"""How many cycles EIE needs for a layer, and what it does in them ([EIE], sections IV and VI-C).

The machine, as the authors' own simulator builds it: input activations are scanned in packs of as many as there are
elements; each cycle the next non-zero one is broadcast to the queues of all elements, unless one of them is full. Each
element takes the head of its queue, reads the two pointers of the column and then one entry each cycle; a column in
which it holds nothing still costs a cycle.

No cycle is stepped through. With B the cycle of the j-th broadcast, S and F those in which element p starts it and is
done with it, n its entries and Q the places of a queue (a ring buffer, of which one place stays free):

    B_j = max(B_(j-1) + 1 + packs begun since, max over p of S_(j-Q+1, p))
    S_jp = max(F_(j-1, p), B_j + 2)        into the queue and out of it
    F_jp = S_jp + max(n_jp, 1)

which is one step over all elements for each broadcast. On the real layer that comes with the authors' simulator
(AlexNet's FC8) the cycles are the same as theirs at every queue depth tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.cost import IntArray
from hw.csc import CSCMatrix
from hw.eie.format import EIEMatrix
from hw.eie.layout import Layout
from hw.eie.sizes import entries_of_runs

#: places of a queue in the paper's design (section VI-C)
QUEUE_DEPTH = 8
#: elements in the paper's design
ELEMENTS = 64
#: clock of the paper's design
CLOCK_MHZ = 800.0

_INTO_QUEUE_AND_OUT = 2
_READ_TO_WRITTEN = 5  # cycles from the end of a column to its last sum written: matrix, decode, multiply, add, write


@dataclass(frozen=True, eq=False, slots=True)
class ColumnWork:
    """What each element finds in each column.

    Attributes:
        nonzeros, padding: entries of either kind, int64 (elements, columns).
    """

    nonzeros: IntArray
    padding: IntArray

    @classmethod
    def of_matrix(cls, matrix: EIEMatrix) -> ColumnWork:
        """Of an encoded matrix."""
        return cls._of_positions(matrix.layout, matrix.positions()[matrix.codes != 0])

    @classmethod
    def of_csc(cls, matrix: CSCMatrix, elements: int = ELEMENTS) -> ColumnWork:
        """Of a sparse matrix whose rows are dealt out to so many elements."""
        layout = Layout(*matrix.shape, elements)
        return cls._of_positions(layout, np.sort(layout.positions(matrix.indices, matrix.columns)))

    @classmethod
    def _of_positions(cls, layout: Layout, positions: IntArray) -> ColumnWork:
        entries = np.concatenate([[0], np.cumsum(entries_of_runs(layout.zero_runs(positions)))])
        counts = layout.column_counts(positions)
        shape = (layout.elements, layout.columns)
        nonzeros = np.diff(counts).reshape(shape)
        return cls(nonzeros, np.diff(entries[counts]).reshape(shape) - nonzeros)


@dataclass(frozen=True, slots=True)
class LayerRun:
    """One layer on the machine.

    Attributes:
        elements: processing elements.
        queue_depth: places of the queue of each.
        cycles: from the first activation read to the last sum written, or the last activation scanned.
        broadcasts: non-zero activations.
        stalls: cycles in which a broadcast waited because a queue was full.
        nonzeros: multiplications of a weight that is not padding, over all elements.
        padding: cycles that elements spent on padding.
        empty: cycles that elements spent on columns in which they hold nothing.
    """

    elements: int
    queue_depth: int
    cycles: int
    broadcasts: int
    stalls: int
    nonzeros: int
    padding: int
    empty: int

    @property
    def load_balance(self) -> float:
        """Share of the elements' cycles in which the multiplier has an entry to work on: 1 - bubbles / cycles."""
        return (self.nonzeros + self.padding) / (self.elements * self.cycles)

    @property
    def real_work(self) -> float:
        """Non-zeros / entries: what is left when padding is taken away; 1 where there is nothing to do."""
        entries = self.nonzeros + self.padding
        return self.nonzeros / entries if entries else 1.0

    @property
    def efficiency(self) -> float:
        """Share of the elements' cycles that multiply a non-zero: load balance * real work."""
        return self.nonzeros / (self.elements * self.cycles)

    @property
    def ideal_cycles(self) -> float:
        """Cycles if all elements worked all the time, padding included: the paper's theoretical time."""
        return (self.nonzeros + self.padding) / self.elements


def simulate(work: ColumnWork, activations: NDArray[Any], queue_depth: int = QUEUE_DEPTH) -> LayerRun:
    """Run one layer.

    Args:
        work: what the elements hold.
        activations: (columns,); only whether one is zero counts. A bias is one more column with the activation 1.
        queue_depth: places of each queue, at least 2.
    """
    elements, columns = work.nonzeros.shape
    if activations.shape != (columns,):
        raise ValueError(f"expected {columns} activations, one for each column, got the shape {activations.shape}")
    if queue_depth < 2:
        raise ValueError(f"expected a queue of at least 2 places, of which one stays free, got {queue_depth}")
    active = np.flatnonzero(activations)
    nonzeros, padding = work.nonzeros[:, active], work.padding[:, active]
    entries = nonzeros + padding
    gaps = _scan_gaps(np.append(active, -(-columns // elements) * elements), elements)
    cycles, stalls = _cycles(np.maximum(entries, 1).T, gaps, queue_depth - 1)
    return LayerRun(
        elements=elements,
        queue_depth=queue_depth,
        cycles=cycles + _READ_TO_WRITTEN,
        broadcasts=len(active),
        stalls=stalls,
        nonzeros=int(nonzeros.sum()),
        padding=int(padding.sum()),
        empty=int(np.count_nonzero(entries == 0)),
    )


def _scan_gaps(found: IntArray, elements: int) -> IntArray:
    """Cycles from each activation found to the next if no queue is full; the first counts from the start.

    To go on to the next pack costs a cycle, unless the last activation of the old one was the one found before.
    """
    pack, place = np.divmod(found, elements)
    gaps = 1 + np.diff(pack, prepend=0)
    gaps[1:] -= place[:-1] == elements - 1
    return gaps


def _cycles(busy: IntArray, gaps: IntArray, waiting: int) -> tuple[int, int]:
    """Cycle in which elements and scan are done, and cycles in which a full queue held a broadcast up.

    Args:
        busy: cycles of each column at each element, int64 (broadcasts, elements).
        gaps: cycles between broadcasts if nothing holds them up, and at last to the end of the scan,
            int64 (broadcasts + 1,).
        waiting: columns that fit a queue.
    """
    ends = np.zeros(busy.shape[1], np.int64)
    starts: list[int] = []  # of each broadcast, in the element that starts it last
    broadcast = stalls = 0
    for index, (gap, column) in enumerate(zip(gaps[:-1].tolist(), np.ascontiguousarray(busy), strict=True)):
        scanned = broadcast + gap
        broadcast = max(scanned, starts[index - waiting]) if index >= waiting else scanned
        stalls += broadcast - scanned
        begun = np.maximum(ends, broadcast + _INTO_QUEUE_AND_OUT)
        starts.append(int(begun.max()))
        ends = begun + column
    return max(int(ends.max()), broadcast + int(gaps[-1])), stalls


def sweep_queue_depths(work: ColumnWork, activations: NDArray[Any], depths: Iterable[int]) -> list[LayerRun]:
    """The layer with queues of several depths, as in the paper's figure 8."""
    return [simulate(work, activations, depth) for depth in depths]


def sweep_elements(
    matrix: CSCMatrix, activations: NDArray[Any], elements: Iterable[int], queue_depth: int = QUEUE_DEPTH
) -> list[LayerRun]:
    """The layer on several numbers of elements, as in the paper's figures 11 to 13."""
    return [simulate(ColumnWork.of_csc(matrix, count), activations, queue_depth) for count in elements]


def simulate_network(
    matrices: Sequence[EIEMatrix], activations: NDArray[Any], queue_depth: int = QUEUE_DEPTH, *, bias: bool = False
) -> tuple[LayerRun, ...]:
    """Run layers one after the other, each on the output of the one before: y = max(W x, 0).

    Args:
        matrices: weights of the layers; with `bias` their last column is the bias, whose activation is 1.
        activations: input of the first, float (columns,), without the 1 of a bias.
        queue_depth: places of each queue.
        bias: whether the layers have one.
    """
    runs = []
    for matrix in matrices:
        inputs = np.append(activations, 1.0) if bias else activations
        runs.append(simulate(ColumnWork.of_matrix(matrix), inputs, queue_depth))
        activations = np.maximum(matrix.to_dense() @ inputs, 0.0)
    return tuple(runs)
