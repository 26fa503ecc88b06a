"""N:M matrices: by hand, against torch, there and back, and damaged."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hw.n_m import NMMatrix


def with_groups_of(stays: int, group: int, shape: tuple[int, int], seed: int) -> NDArray[np.float32]:
    """Random values of which exactly N of M are not 0."""
    generator = np.random.default_rng(seed)
    scores = generator.random((shape[0], shape[1] // group, group))
    held = np.argsort(np.argsort(scores, axis=2), axis=2) < stays
    values: NDArray[np.float32] = (held * generator.uniform(0.5, 1.5, held.shape)).reshape(shape).astype(np.float32)
    return values


def test_2_of_4_by_hand() -> None:
    """Groups of places 1, 3 | 0, 1 | 2, 3 (filled up) | 2, 3 (nothing there)."""
    dense = np.array([[0, 5, 0, 6, 7, 8, 0, 0], [0, 0, 0, 9, 0, 0, 0, 0]], np.float32)
    matrix = NMMatrix.from_dense(dense)
    assert matrix.values.tolist() == [[5, 6, 7, 8], [0, 9, 0, 0]]
    assert matrix.indices.tolist() == [0b01_00_11_01, 0b11_10_11_10]
    assert matrix.size_bytes == 8 * 4 + 2
    assert np.array_equal(matrix.to_dense(), dense)


def test_indices_of_8_take_three_bits() -> None:
    """Places 1, 2, 6: 001 010 110 from the lowest bit on."""
    dense = np.array([[0, 1, 2, 0, 0, 0, 3, 0]], np.float32)
    matrix = NMMatrix.from_dense(dense, 3, 8)
    assert matrix.indices.tolist() == [0b10_010_001, 0b1]
    assert matrix.size_bytes == 3 * 4 + 2


@given(st.integers(2, 9), st.data(), st.integers(0, 2**32 - 1))
def test_there_and_back(group: int, data: st.DataObject, seed: int) -> None:
    stays = data.draw(st.integers(1, group))
    shape = (data.draw(st.integers(1, 4)), group * data.draw(st.integers(1, 4)))
    dense = with_groups_of(data.draw(st.integers(0, stays)), group, shape, seed)
    matrix = NMMatrix.from_dense(dense, stays, group)
    assert np.array_equal(matrix.to_dense(), dense)
    bits = matrix.values.size * int(np.ceil(np.log2(group)))
    assert matrix.size_bytes == 4 * shape[0] * shape[1] // group * stays + -(-bits // 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_equals_torch(dtype: torch.dtype) -> None:
    """Torch orders the metadata of CUTLASS; with that order undone, its bytes are these."""
    torch_form = pytest.importorskip(
        "torch.sparse._semi_structured_conversions", reason="this torch has no reference of the 2:4 form"
    )
    dense = torch.from_numpy(with_groups_of(2, 4, (64, 128), 0)).to(dtype)
    values, shuffled = torch_form.sparse_semi_structured_from_dense_cutlass(dense)
    offsets = torch_form._calculate_meta_reordering_scatter_offsets(64, shuffled.shape[1], shuffled.dtype, "cpu")
    words = shuffled.reshape(-1)[offsets]
    matrix = NMMatrix.from_dense(dense.float().numpy())
    assert np.array_equal(matrix.values, values.float().numpy())
    assert np.array_equal(matrix.indices, words.numpy().view(np.uint8))
    again = torch_form.sparse_semi_structured_to_dense_cutlass(values, shuffled)
    assert np.array_equal(matrix.to_dense(), again.float().numpy())


def test_too_many_non_zeros() -> None:
    dense = np.zeros((2, 8), np.float32)
    dense[1, 4:7] = 1.0
    with pytest.raises(ValueError, match=r"^expected at most 2 of 4 non-zeros, got 3 in row 1, columns 4 to 7$"):
        NMMatrix.from_dense(dense)


@pytest.mark.parametrize(
    ("dense", "stays", "group", "message"),
    [
        (np.zeros(8), 2, 4, "expected a matrix (rows, columns), got the shape (8,)"),
        (np.zeros((2, 6)), 2, 4, "shape: expected at least one row, and columns that 4 divides, got (2, 6)"),
        (np.zeros((2, 8)), 5, 4, "expected N:M with M from 2 to 256 and N from 1 to M, got 5:4"),
        (np.zeros((2, 8)), 0, 4, "expected N:M with M from 2 to 256 and N from 1 to M, got 0:4"),
        (np.full((1, 4), [0, np.nan, 0, 0]), 2, 4, "values: expected finite numbers, got NaN or infinity"),
    ],
)
def test_what_is_no_matrix_of_this_form(dense: NDArray[Any], stays: int, group: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        NMMatrix.from_dense(dense, stays, group)


def damaged(**changes: Any) -> NMMatrix:
    parts: dict[str, Any] = {
        "shape": (1, 6),
        "stays": 2,
        "group": 3,
        "values": np.array([[1.0, 2.0, 3.0, 4.0]], np.float32),
        "indices": np.array([0b10_00_10_01], np.uint8),
    }
    return NMMatrix(**parts | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": np.ones((1, 3), np.float32)}, "values: expected the shape (1, 4), got (1, 3)"),
        ({"values": np.ones((1, 4))}, "values: expected an array of float32 with 2 axes, got float64 (1, 4)"),
        ({"indices": np.zeros(2, np.uint8)}, "indices: expected 1 bytes for 4 values, got 2"),
        (
            {"indices": np.array([0b11_00_10_01], np.uint8)},
            "indices: expected columns from 0 to 2 of a group, got 3",
        ),
        ({"indices": np.array([0b10_00_01_10], np.uint8)}, "indices: expected them to ascend in each group"),
        (
            {"shape": (1, 3), "values": np.ones((1, 2), np.float32), "indices": np.array([0b11_01_00], np.uint8)},
            "indices: expected 0 in the unused bits of the last byte",
        ),
    ],
)
def test_damage_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        damaged(**changes)
