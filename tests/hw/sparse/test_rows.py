from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hw.sparse import SparseRows

weights = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
    elements=st.sampled_from([0.0, 0.0, 0.5, -2.0]),
)


@given(weights)
def test_round_trip(dense: Any) -> None:
    matrix = SparseRows.from_dense(dense)
    assert np.array_equal(matrix.to_dense(), dense)
    assert matrix.density == pytest.approx(np.count_nonzero(dense) / max(dense.size, 1))


@given(weights)
def test_codes_stand_for_the_values(dense: Any) -> None:
    matrix = SparseRows.from_dense(dense)
    book, codes = matrix.shared()
    assert book[0] == 0
    assert np.array_equal(book[codes], matrix.values)


def test_sixteen_different_values_are_too_many() -> None:
    fifteen = np.arange(1, 16, dtype=np.float32)[None]
    assert SparseRows.from_dense(fifteen).codebook is not None
    assert SparseRows.from_dense(np.append(fifteen, [[16]], axis=1)).codebook is None


def test_a_value_that_comes_late_is_counted() -> None:
    dense = np.ones((2, 5000), np.float32)
    dense[1, -16:] = np.arange(2, 18)
    assert SparseRows.from_dense(dense).codebook is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.zeros(3)}, r"values: expected float32 with 1 axis, got float64 \(3,\)"),
        ({"values": np.zeros(2, np.float32)}, "indptr: expected 3 numbers from 0 to 2, got 3 numbers"),
        ({"indptr": np.array([0, 3])}, "indptr: expected 3 numbers from 0 to 3, got 2 numbers"),
        ({"indptr": np.array([0, 4, 3])}, "indptr: expected numbers that do not fall"),
        ({"indices": np.zeros(2, np.int32)}, "expected a column for each value, got 3 values and 2 columns"),
        ({"indices": np.array([0, 4, 1], np.int32)}, "indices: expected columns from 0 to 3, got 0 to 4"),
        ({"indices": np.array([1, 1, 0], np.int32)}, "indices: expected columns that ascend in each row"),
        ({"values": np.array([1, np.nan, 1], np.float32)}, "values: expected finite numbers, got NaN or infinity"),
    ],
)
def test_damaged_arrays_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "shape": (2, 4),
        "values": np.ones(3, np.float32),
        "indices": np.array([0, 3, 1], np.int32),
        "indptr": np.array([0, 2, 3]),
    }
    assert SparseRows(**arguments).to_dense().tolist() == [[1, 0, 0, 1], [0, 1, 0, 0]]
    with pytest.raises(ValueError, match=message):
        SparseRows(**(arguments | change))


def test_a_matrix_has_two_axes() -> None:
    with pytest.raises(ValueError, match=r"expected a matrix \(rows, columns\), got the shape \(2, 3, 4\)"):
        SparseRows.from_dense(np.zeros((2, 3, 4)))
