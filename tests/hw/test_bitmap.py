"""Weights by blocks: by hand, there and back, and damaged."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hw.bitmap import BitmapWeight


def test_by_hand() -> None:
    """Blocks of 2x1, row of blocks by row of blocks: (1, 2), none | none, (0, 3)."""
    dense = np.array([[1, 0], [2, 0], [0, 0], [0, 3]], np.float32)
    weight = BitmapWeight.from_dense(dense, (2, 1))
    assert weight.bits.tolist() == [0b1001]
    assert weight.values.tolist() == [[1, 2], [0, 3]]
    assert weight.size_bytes == 1 + 4 * 4
    assert np.array_equal(weight.to_dense(), dense)


@given(st.data())
def test_there_and_back(data: st.DataObject) -> None:
    axes = data.draw(st.integers(1, 4))
    block = tuple(data.draw(st.integers(1, 3)) for _ in range(axes))
    grid = tuple(data.draw(st.integers(1, 3)) for _ in range(axes))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    held = np.kron(generator.random(grid) < 0.5, np.ones(block, dtype=bool))
    dense = (held * generator.uniform(0.5, 1.5, held.shape)).astype(np.float32)
    weight = BitmapWeight.from_dense(dense, block)
    assert np.array_equal(weight.to_dense(), dense)
    assert weight.size_bytes == -(-int(np.prod(grid)) // 8) + 4 * np.count_nonzero(dense)


@pytest.mark.parametrize(
    ("dense", "block", "message"),
    [
        (np.zeros((4, 3)), (2, 2), "expected a block that divides the shape (4, 3), got (2, 2)"),
        (np.zeros((4, 3)), (2,), "expected a block that divides the shape (4, 3), got (2,)"),
        (np.full((1, 1), np.inf), (1, 1), "values: expected finite numbers, got NaN or infinity"),
    ],
)
def test_what_has_no_such_blocks(dense: NDArray[Any], block: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        BitmapWeight.from_dense(dense, block)


def damaged(**changes: Any) -> BitmapWeight:
    parts: dict[str, Any] = {
        "shape": (4, 2),
        "block": (2, 1),
        "bits": np.array([0b1001], np.uint8),
        "values": np.ones((2, 2), np.float32),
    }
    return BitmapWeight(**parts | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": np.zeros(2, np.uint8)}, "bits: expected 1 bytes for 4 blocks, got 2"),
        ({"bits": np.array([0b11001], np.uint8)}, "bits: expected 0 in the unused bits of the last byte"),
        ({"bits": np.array([0b1], np.uint8)}, "values: expected the shape (1, 2), got (2, 2)"),
        ({"values": np.ones((2, 2))}, "values: expected an array of float32 with 2 axes, got float64 (2, 2)"),
        ({"values": np.full((2, 2), np.nan, np.float32)}, "values: expected finite numbers, got NaN or infinity"),
    ],
)
def test_damage_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        damaged(**changes)
