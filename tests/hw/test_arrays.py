"""Arrays are of the type that was asked for, and cannot be written to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hw.arrays import checked_array, transposed


def test_the_view_refuses_writes_and_the_original_does_not() -> None:
    original = np.zeros(3, np.float32)
    view = checked_array(original, "data", np.float32, 1)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1.0
    original[0] = 2.0
    assert view[0] == 2.0


@pytest.mark.parametrize(
    ("array", "came"),
    [
        (np.zeros(3), r"float64 \(3,\)"),
        (np.zeros((3, 1), np.float32), r"float32 \(3, 1\)"),
        ([0.0], "list"),
    ],
)
def test_another_type_or_shape_is_refused(array: Any, came: str) -> None:
    with pytest.raises(ValueError, match=f"^data: expected an array of float32 with 1 axes, got {came}$"):
        checked_array(array, "data", np.float32, 1)


@pytest.mark.parametrize("shape", [(1, 1), (300, 7), (7, 300), (513, 257)])
def test_a_transposed_matrix_is_an_array_of_its_own(shape: tuple[int, int]) -> None:
    matrix = np.arange(shape[0] * shape[1]).reshape(shape)
    result = transposed(matrix)
    assert np.array_equal(result, matrix.T)
    assert result.flags.c_contiguous
    assert not np.shares_memory(result, matrix)
