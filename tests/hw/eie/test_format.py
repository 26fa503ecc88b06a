"""EIE's form: the paper's and the lecture's examples by hand, round trips, and damage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hw.csc import CSCMatrix
from hw.eie.codebook import Codebook
from hw.eie.format import EIEMatrix
from hw.eie.layout import Layout
from tests.hw.eie.matrices import BOOK, code_matrices

Codes = NDArray[np.uint8]


def codes_of(*rows: str) -> Codes:
    """A matrix of codes written as text, one digit each, "." for zero."""
    return np.array([[int(digit.replace(".", "0")) for digit in row] for row in rows], np.uint8)


def test_the_papers_column() -> None:
    """Section III-B: [0, 0, 1, 2, 18 zeros, 3] is stored as v = [1, 2, 0, 3] and z = [2, 0, 15, 2]."""
    column = np.array([0, 0, 1, 2, *[0] * 18, 3], np.float32)[:, None]
    matrix = EIEMatrix.encode(column, Codebook.of_values(column))
    assert matrix.codebook.weights(matrix.codes).tolist() == [1.0, 2.0, 0.0, 3.0]
    assert matrix.runs.tolist() == [2, 0, 15, 2]
    assert matrix.pointers.tolist() == [[0, 4]]


def test_the_papers_figure_3() -> None:
    """The rows of figure 2 that element 0 of 4 holds; relative rows and column pointers as figure 3 prints them."""
    codes = np.zeros((16, 8), np.uint8)
    codes[::4] = codes_of("1.1.111.", ".1..1...", "1......1", "1.1..1.1")
    matrix = EIEMatrix.from_codes(codes, BOOK, elements=4)
    assert matrix.runs.tolist() == [0, 1, 0, 1, 0, 2, 0, 0, 0, 2, 0, 2, 0]
    assert matrix.pointers[0].tolist() == [0, 3, 4, 6, 6, 8, 10, 11, 13]
    assert not matrix.pointers[1:].any()


LECTURE = codes_of("12.3", "..4.", ".5.6", "....", "..78", "9...", "...1", ".2..")


def test_the_lectures_example_with_runs_that_start_again_at_each_column() -> None:
    """MIT 6.S965, lecture 4: element 0 of 4 holds w00, w01, w42, w03, w43; the column pointers are the lecture's."""
    matrix = EIEMatrix.from_codes(LECTURE, BOOK, elements=4)
    assert matrix.codes[:5].tolist() == [1, 2, 7, 3, 8]
    assert matrix.runs[:5].tolist() == [0, 0, 1, 0, 0]
    assert matrix.pointers[0].tolist() == [0, 1, 2, 3, 5]
    assert np.array_equal(matrix.to_codes(), LECTURE)


def test_the_lectures_own_reading_counts_across_the_borders_of_columns() -> None:
    """Its relative indices 0 1 2 0 0 are the runs if all columns of an element are one: none can be skipped then."""
    layout = Layout.of_shape(LECTURE.shape, 4)
    element = layout.arrange(LECTURE)[: layout.columns * layout.local_rows]
    assert EIEMatrix.from_codes(element[:, None], BOOK).runs.tolist() == [0, 1, 2, 0, 0]


@pytest.mark.parametrize(
    ("zeros", "runs"), [(0, [0]), (15, [15]), (16, [15, 0]), (31, [15, 15]), (32, [15, 15, 0]), (40, [15, 15, 8])]
)
def test_runs_beyond_fifteen_get_padding(zeros: int, runs: list[int]) -> None:
    column = np.array([*[0] * zeros, 7, 0], np.uint8)[:, None]
    matrix = EIEMatrix.from_codes(column, BOOK)
    assert matrix.runs.tolist() == runs
    assert matrix.codes.tolist() == [*[0] * (len(runs) - 1), 7]
    assert np.array_equal(matrix.to_codes(), column)
    assert (matrix.size.nonzeros, matrix.size.padding) == (1, len(runs) - 1)


@given(code_matrices())
def test_codes_and_weights_return_exactly(case: tuple[Codes, Codebook, int]) -> None:
    codes, book, elements = case
    matrix = EIEMatrix.from_codes(codes, book, elements)
    assert np.array_equal(matrix.to_codes(), codes)
    assert np.array_equal(matrix.to_dense(), book.weights(codes))
    again = EIEMatrix.encode(matrix.to_dense(), book, elements)
    sparse = EIEMatrix.from_csc(CSCMatrix.from_dense(matrix.to_dense()), book, elements)
    for other in (again, sparse):
        assert np.array_equal(other.codes, matrix.codes)
        assert np.array_equal(other.runs, matrix.runs)
        assert np.array_equal(other.pointers, matrix.pointers)


@given(code_matrices(), st.data())
def test_each_column_of_each_element_reads_alone(case: tuple[Codes, Codebook, int], data: st.DataObject) -> None:
    """As the machine reads it: from one pointer to the next, adding up runs."""
    codes, book, elements = case
    matrix = EIEMatrix.from_codes(codes, book, elements)
    element = data.draw(st.integers(0, elements - 1))
    column = data.draw(st.integers(0, codes.shape[1] - 1))
    first = int(matrix.pointers[:element, -1].sum())
    expected, row = np.zeros(len(codes), np.uint8), element
    for entry in range(first + matrix.pointers[element, column], first + matrix.pointers[element, column + 1]):
        row += int(matrix.runs[entry]) * elements
        expected[row] = matrix.codes[entry]
        row += elements
    assert np.array_equal(expected[element::elements], codes[element::elements, column])


def test_weights_that_are_not_shared_are_refused() -> None:
    weights = np.array([[0.0, 0.5], [0.25, 0.3]])
    said = (
        r"^expected weights of the codebook, got 0.25 at row 1, column 0 and 1 more; share them first: "
        r"codebook.weights\(codebook.codes\(weights\)\)$"
    )
    with pytest.raises(ValueError, match=said):
        EIEMatrix.encode(weights, Codebook(np.array([0.0, 0.5], np.float32)))


def test_a_vector_is_no_matrix() -> None:
    with pytest.raises(ValueError, match=r"^expected a matrix \(rows, columns\), got the shape \(3,\)$"):
        EIEMatrix.from_codes(np.ones(3, np.uint8), BOOK)


def small(**changes: Any) -> EIEMatrix:
    """20 rows on 2 elements, 2 columns. Element 0 holds nothing, and local row 3; element 1 rows 8, and 0."""
    parts: dict[str, Any] = {
        "layout": Layout(20, 2, 2),
        "codes": np.array([5, 6, 7], np.uint8),
        "runs": np.array([3, 8, 0], np.uint8),
        "pointers": np.array([[0, 0, 1], [0, 1, 2]], np.int32),
        "codebook": BOOK,
    }
    return EIEMatrix(**parts | changes)


def test_the_small_matrix_by_hand() -> None:
    expected = np.zeros((20, 2), np.uint8)
    expected[6, 1], expected[17, 0], expected[1, 1] = 5, 6, 7
    assert np.array_equal(small().to_codes(), expected)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codes": np.array([5, 6, 7])}, r"codes: expected an array of uint8 with 1 axes, got int64 \(3,\)"),
        ({"codes": np.array([5, 6], np.uint8)}, "expected 3 entries as the pointers say, got 2 codes and 3 runs"),
        ({"runs": np.zeros(4, np.uint8)}, "expected 3 entries as the pointers say, got 3 codes and 4 runs"),
        (
            {"pointers": np.zeros((2, 2), np.int32)},
            r"pointers: expected the shape \(2, 3\) for 2 elements and 2 columns, got \(2, 2\)",
        ),
        (
            {"pointers": np.array([[0, 0, 1], [1, 1, 2]], np.int32)},
            "pointers of element 1: expected 0 first, got 1",
        ),
        (
            {"pointers": np.array([[0, 2, 1], [0, 1, 2]], np.int32)},
            "pointers of element 0: expected no fall, got 2 then 1 at column 1",
        ),
        ({"codes": np.array([5, 16, 7], np.uint8)}, "entry 1: expected a code below 16, got 16"),
        ({"runs": np.array([3, 8, 16], np.uint8)}, "entry 2: expected a run of at most 15, got 16"),
        (
            {"codes": np.array([5, 0, 7], np.uint8)},
            "entry 1: expected code 0 only as padding, after 15 zeros, got a run of 8",
        ),
        (
            {"runs": np.array([3, 10, 0], np.uint8)},
            "element 1, column 0: expected entries for its 10 rows, got entries for 11",
        ),
        (
            {
                "layout": Layout(40, 2, 2),
                "codes": np.array([5, 0, 7], np.uint8),
                "runs": np.array([3, 15, 0], np.uint8),
            },
            "element 1, column 0: expected a non-zero at the end, got padding",
        ),
    ],
)
def test_damage_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        small(**changes)


def test_more_elements_than_rows_hold_nothing() -> None:
    matrix = EIEMatrix.from_codes(codes_of("12", ".3"), BOOK, elements=5)
    assert matrix.pointers.tolist() == [[0, 1, 2], [0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert np.array_equal(matrix.to_codes(), codes_of("12", ".3"))
