"""Rows over elements: positions there and back, runs of zeros, and convolutions as matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hw.eie.layout import Layout, weight_matrix

layouts = st.builds(Layout, st.integers(1, 12), st.integers(1, 5), st.integers(1, 15))


@given(layouts)
def test_positions_and_places_are_each_others_reverse(layout: Layout) -> None:
    rows, columns = (axis.reshape(-1) for axis in np.indices((layout.rows, layout.columns)))
    positions = layout.positions(rows, columns)
    assert len(np.unique(positions)) == len(positions)
    found = layout.places(positions)
    assert np.array_equal(found[0], rows)
    assert np.array_equal(found[1], columns)


@given(layouts)
def test_an_arranged_matrix_has_each_weight_at_its_position(layout: Layout) -> None:
    matrix = np.arange(1, 1 + layout.rows * layout.columns).reshape(layout.rows, layout.columns)
    stored = layout.arrange(matrix)
    assert len(stored) == layout.elements * layout.columns * layout.local_rows
    rows, columns = np.indices(matrix.shape)
    assert np.array_equal(stored[layout.positions(rows, columns)], matrix)
    assert np.count_nonzero(stored) == matrix.size
    assert layout.held_rows.tolist() == [len(range(element, layout.rows, layout.elements)) for element in
                                         range(layout.elements)]  # fmt: skip


def test_runs_start_again_at_each_column_of_each_element() -> None:
    layout = Layout(rows=6, columns=2, elements=2)  # three local rows
    positions = np.array([1, 2, 3, 8, 11])
    assert layout.zero_runs(positions).tolist() == [1, 0, 0, 2, 2]
    assert layout.column_counts(positions).tolist() == [0, 2, 3, 4, 5]


def test_without_positions_there_are_no_runs() -> None:
    assert Layout(3, 2).zero_runs(np.zeros(0, np.int64)).tolist() == []


def test_an_empty_layout_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^expected at least one row, column and element, got 3 rows, 2 columns, 0 elements$"
    ):
        Layout(3, 2, 0)


def test_a_convolution_multiplies_patches_in_the_order_of_unfold() -> None:
    generator = torch.Generator().manual_seed(0)
    images, weights = torch.randn(2, 3, 7, 6, generator=generator), torch.randn(5, 3, 3, 2, generator=generator)
    patches = torch.nn.functional.unfold(images, (3, 2))
    product = torch.from_numpy(weight_matrix(weights.numpy())) @ patches
    expected = torch.nn.functional.conv2d(images, weights).flatten(2)
    torch.testing.assert_close(product, expected)


def test_a_linear_layer_stays_as_it_is_and_a_vector_is_refused() -> None:
    weights = np.ones((4, 3))
    assert np.array_equal(weight_matrix(weights), weights)
    said = r"^expected weights \(out, in\) or \(out, in, height, width\), got the shape \(3,\)$"
    with pytest.raises(ValueError, match=said):
        weight_matrix(np.ones(3))
