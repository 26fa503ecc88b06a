"""Sparse matrices by columns: against torch, by hand, and damaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hw.csc import CSCMatrix

dense_matrices = arrays(
    np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0.0, 0.0, 1.5, -2.0])
)


@pytest.mark.filterwarnings("ignore:Sparse CSC tensor support is in beta state")
@given(dense_matrices)
def test_equals_torch_and_returns_unchanged(dense: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    matrix, expected = CSCMatrix.from_dense(dense), torch.from_numpy(dense).to_sparse_csc()
    assert matrix.data.tolist() == expected.values().tolist()
    assert matrix.indices.tolist() == expected.row_indices().tolist()
    assert matrix.indptr.tolist() == expected.ccol_indices().tolist()
    assert np.array_equal(matrix.to_dense(), dense)
    assert matrix.density == np.count_nonzero(dense) / dense.size


def test_by_hand() -> None:
    matrix = CSCMatrix.from_dense(np.array([[1.0, 0.0, 0.0], [2.0, 0.0, 3.0]]))
    assert matrix.data.tolist() == [1.0, 2.0, 3.0]
    assert matrix.indices.tolist() == [0, 1, 1]
    assert matrix.columns.tolist() == [0, 0, 2]
    assert matrix.indptr.tolist() == [0, 2, 2, 3]
    assert matrix.size_bytes == 4 * 3 + 4 * 3 + 4 * 4


def test_a_matrix_that_lies_elsewhere_in_memory() -> None:
    dense = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-2]
    assert np.array_equal(CSCMatrix.from_dense(dense).to_dense(), dense)


def damaged(**changes: Any) -> CSCMatrix:
    parts: dict[str, Any] = {
        "shape": (2, 3),
        "data": np.array([1.0, 2.0, 3.0], np.float32),
        "indices": np.array([0, 1, 1], np.int32),
        "indptr": np.array([0, 2, 2, 3], np.int32),
    }
    return CSCMatrix(**parts | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shape": (0, 3)}, r"shape: expected at least one row and one column, got \(0, 3\)"),
        ({"data": np.ones(3)}, r"data: expected an array of float32 with 1 axes, got float64 \(3,\)"),
        ({"data": np.ones(2, np.float32)}, "expected a row for each value, got 2 values, 3 indices"),
        ({"data": np.array([1, np.nan, 1], np.float32)}, "data: expected finite non-zeros, got NaN, infinity or 0"),
        ({"data": np.array([1, 0, 1], np.float32)}, "data: expected finite non-zeros, got NaN, infinity or 0"),
        ({"indptr": np.array([0, 3], np.int32)}, "indptr: expected 4 numbers for 3 columns, got 2"),
        ({"indptr": np.array([0, 2, 2, 4], np.int32)}, "indptr: expected it to run from 0 to 3, got 0 to 4"),
        ({"indptr": np.array([0, 2, 1, 3], np.int32)}, "indptr: expected no fall, got 2 then 1 at column 1"),
        ({"indices": np.array([0, 2, 1], np.int32)}, "indices: expected rows from 0 to 1, got 0 to 2"),
        ({"indices": np.array([0, -1, 1], np.int32)}, "indices: expected rows from 0 to 1, got -1 to 1"),
        ({"indices": np.array([1, 1, 0], np.int32)}, "column 0: expected ascending rows, got 1 after 1"),
    ],
)
def test_damage_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        damaged(**changes)


def test_a_vector_is_no_matrix() -> None:
    with pytest.raises(ValueError, match=r"^expected a matrix \(rows, columns\), got the shape \(3,\)$"):
        CSCMatrix.from_dense(np.ones(3))
