"""The machine: by hand, against one that is stepped through cycle by cycle, and what must hold of every run."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hw.cost import IntArray
from hw.csc import CSCMatrix
from hw.eie.codebook import Codebook
from hw.eie.format import EIEMatrix
from hw.eie.simulator import (
    ColumnWork,
    LayerRun,
    simulate,
    simulate_network,
    sweep_elements,
    sweep_queue_depths,
)
from tests.hw.eie.matrices import BOOK, code_matrices


@st.composite
def workloads(draw: st.DrawFn) -> tuple[ColumnWork, NDArray[np.float64]]:
    """Entries of 1 to 5 elements in up to 30 columns, uneven between elements, and activations."""
    elements, columns = draw(st.integers(1, 5)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    nonzeros = rng.poisson(rng.choice([0.1, 1.0, 4.0], (elements, columns)))
    padding = np.where(nonzeros > 0, rng.integers(0, 3, nonzeros.shape), 0)
    activations = rng.random(columns) * (rng.random(columns) < draw(st.sampled_from([0.0, 0.3, 1.0])))
    return ColumnWork(nonzeros, padding), activations


def stepped(busy: IntArray, activations: NDArray[np.float64], places: int) -> int:
    """The machine cycle by cycle: every part decides on what it saw at the beginning of the cycle.

    Args:
        busy: cycles that each element spends on each column, int64 (elements, columns).
        activations: (columns,).
        places: of each queue; as a ring buffer tells full from empty by one place that stays free.

    Returns:
        The cycle after the last in which an element works or the scan goes on.
    """
    elements, columns = busy.shape
    queues: list[deque[int]] = [deque() for _ in range(elements)]
    left = [0] * elements
    pack, place = 0, 0
    cycle = 1  # the first pack is there
    while pack * elements < columns or any(queues) or any(left):
        full = any(len(queue) == places - 1 for queue in queues)
        for element, queue in enumerate(queues):
            left[element] = max(left[element] - 1, 0)
            if left[element] == 0 and queue:
                left[element] = int(busy[element, queue.popleft()])
        ends = min((pack + 1) * elements, columns)
        found = next((at for at in range(pack * elements + place, ends) if activations[at]), None)
        if found is None:
            pack, place = pack + 1, 0
        elif not full:
            place = found + 1 - pack * elements
            for queue in queues:
                queue.append(found)
            if place == elements:
                pack, place = pack + 1, 0
        cycle += 1
    return cycle


@given(workloads(), st.integers(2, 6))
def test_equals_the_machine_stepped_through(case: tuple[ColumnWork, NDArray[np.float64]], depth: int) -> None:
    work, activations = case
    busy = np.maximum(work.nonzeros + work.padding, 1)
    run = simulate(work, activations, depth)
    assert run.cycles == stepped(busy, activations, depth) + 5


@given(workloads(), st.integers(2, 6))
def test_every_cycle_of_every_element_is_accounted_for(
    case: tuple[ColumnWork, NDArray[np.float64]], depth: int
) -> None:
    work, activations = case
    run = simulate(work, activations, depth)
    active = activations != 0
    assert run.nonzeros == work.nonzeros[:, active].sum()
    assert run.padding == work.padding[:, active].sum()
    assert run.broadcasts == active.sum()
    assert run.nonzeros + run.padding + run.empty <= run.elements * run.cycles
    assert run.efficiency == pytest.approx(run.load_balance * run.real_work)
    assert run.ideal_cycles <= run.cycles


@given(workloads())
def test_a_deeper_queue_is_never_slower_and_a_deep_one_never_stalls(
    case: tuple[ColumnWork, NDArray[np.float64]],
) -> None:
    work, activations = case
    runs = sweep_queue_depths(work, activations, (2, 3, 4, 8, 64))
    cycles = [run.cycles for run in runs]
    assert cycles == sorted(cycles, reverse=True)
    assert [run.queue_depth for run in runs] == [2, 3, 4, 8, 64]
    assert runs[-1].stalls == 0


def test_one_element_by_hand() -> None:
    """Columns of 3, none and 2 entries on one element, a pack of one activation each: the scan sees one a cycle.

    Broadcasts in cycles 1, 3 and 4 (column 1 has no activation). Column 0 starts in cycle 3 and ends in 6; the empty
    column 2 takes 6 to 7; column 3 takes 7 to 9; the last sum is written 5 later.
    """
    work = ColumnWork(np.array([[2, 9, 0, 2]]), np.array([[1, 0, 0, 0]]))
    run = simulate(work, np.array([0.5, 0.0, 1.0, 0.1]))
    assert run == LayerRun(
        elements=1, queue_depth=8, cycles=14, broadcasts=3, stalls=0, nonzeros=4, padding=1, empty=1
    )  # fmt: skip
    assert (run.real_work, run.ideal_cycles) == (0.8, 5.0)
    assert (run.load_balance, run.efficiency) == (5 / 14, 4 / 14)


def test_a_full_queue_stalls_the_broadcast_by_hand() -> None:
    """Two elements, two places of which one is used: a broadcast waits until both have taken the last column out.

    The scan alone would broadcast in cycles 1, 2 and 4. Column 1 waits until 3, when column 0 is taken out; column 2
    until 8, when element 0 is through with the 5 entries of column 0 and takes column 1.
    """
    work = ColumnWork(np.array([[5, 1, 1], [1, 1, 1]]), np.zeros((2, 3), np.int64))
    run = simulate(work, np.ones(3), queue_depth=2)
    assert run.stalls == (3 - 2) + (8 - 4)
    assert run.cycles == 8 + 2 + 1 + 5


def test_work_counts_what_each_element_holds_in_each_column() -> None:
    codes = np.zeros((80, 2), np.uint8)
    codes[[2, 70, 5], [0, 0, 1]] = [1, 2, 3]  # element 0: local rows 1 and 35; element 1: local row 2
    work = ColumnWork.of_matrix(EIEMatrix.from_codes(codes, BOOK, elements=2))
    assert work.nonzeros.tolist() == [[2, 0], [0, 1]]
    assert work.padding.tolist() == [[2, 0], [0, 0]]


@given(code_matrices())
def test_work_is_the_same_from_the_encoded_and_from_the_sparse_matrix(
    case: tuple[NDArray[np.uint8], Codebook, int],
) -> None:
    codes, book, elements = case
    encoded = EIEMatrix.from_codes(codes, book, elements)
    first, second = (
        ColumnWork.of_matrix(encoded), ColumnWork.of_csc(CSCMatrix.from_dense(encoded.to_dense()), elements)
    )  # fmt: skip
    assert np.array_equal(first.nonzeros, second.nonzeros)
    assert np.array_equal(first.padding, second.padding)
    assert np.array_equal(first.nonzeros + first.padding, np.diff(encoded.pointers))


def test_more_elements_share_the_work_and_need_less_padding() -> None:
    rng = np.random.default_rng(0)
    matrix = CSCMatrix.from_dense(rng.random((512, 64)) * (rng.random((512, 64)) < 0.05))
    runs = sweep_elements(matrix, np.ones(64), (1, 4, 16))
    assert [run.elements for run in runs] == [1, 4, 16]
    assert len({run.nonzeros for run in runs}) == 1
    assert runs[0].cycles > runs[1].cycles > runs[2].cycles
    assert runs[0].real_work < runs[1].real_work < runs[2].real_work
    assert runs[0].load_balance > runs[1].load_balance > runs[2].load_balance


def test_a_network_hands_the_output_of_each_layer_to_the_next() -> None:
    """W1 x + b1 = (0.5 + 1, -0.5 + 0.25) gives (1.5, 0): of the second layer only column 0 and the bias are read."""
    book = Codebook(np.array([0.0, 1.0, -1.0, 0.25, 0.5], np.float32))
    first = EIEMatrix.encode(np.array([[1.0, 0.0, 1.0], [-1.0, 1.0, 0.25]]), book)
    second = EIEMatrix.encode(np.array([[1.0, 1.0, 0.5], [0.0, 1.0, 0.5], [1.0, 1.0, 0.0]]), book)
    runs = simulate_network([first, second], np.array([0.5, 0.0]), bias=True)
    assert [run.broadcasts for run in runs] == [2, 2]
    assert [run.nonzeros for run in runs] == [4, 4]
    alone = simulate(ColumnWork.of_matrix(second), np.array([1.5, 0.0, 1.0]))
    assert runs[1] == alone
    assert replace(alone, queue_depth=4) == simulate_network([second], np.array([1.5, 0.0, 1.0]), 4)[0]


def test_zeros_alone_are_scanned() -> None:
    run = simulate(ColumnWork(np.ones((2, 7), np.int64), np.zeros((2, 7), np.int64)), np.zeros(7))
    assert (run.cycles, run.broadcasts, run.real_work, run.load_balance) == (5 + 5, 0, 1.0, 0.0)


def test_what_does_not_fit_is_refused() -> None:
    work = ColumnWork(np.ones((2, 3), np.int64), np.zeros((2, 3), np.int64))
    said = r"^expected 3 activations, one for each column, got the shape \(4,\)$"
    with pytest.raises(ValueError, match=said):
        simulate(work, np.ones(4))
    with pytest.raises(ValueError, match=r"^expected a queue of at least 2 places, of which one stays free, got 1$"):
        simulate(work, np.ones(3), 1)
