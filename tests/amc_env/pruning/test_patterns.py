"""Patterns: masks worked by hand, and what holds for all of them."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from amc_env.pruning.patterns import Block, NOfM, parse_pattern

# (outputs 2, inputs 2, height 2, width 2); sums of rows: 3 7 | 11 4 || 2 6 | 10 5; kernels 10 15 8 15
_SCORES = np.array(
    [
        [[[1, 2], [3, 4]], [[5, 6], [0, 4]]],
        [[[2, 0], [5, 1]], [[9, 1], [2, 3]]],
    ],
    dtype=np.float64,
)
_NAMES = ("fine_grained", "vector", "kernel", "filter", "channel", "2x1", "1x2", "2x2", "1:2", "n:2")


@pytest.mark.parametrize(
    ("name", "kept", "expected"),
    [
        # the three largest: 9, 6 and the first 5
        ("fine_grained", 3, [[0, 0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0, 0, 0]]),
        # the rows of 11, 10 and 7
        ("vector", 6, [[0, 0, 1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 0, 0]]),
        # both kernels of 15; then that of 10
        ("kernel", 8, [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1]]),
        ("kernel", 12, [[1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1]]),
        # filters 25 and 23, channels 18 and 30
        ("filter", 8, [[1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0]]),
        ("channel", 8, [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1]]),
        # pairs of outputs: 3 2 8 5 | 14 7 2 7
        ("2x1", 6, [[0, 0, 1, 0, 1, 1, 0, 0], [0, 0, 1, 0, 1, 1, 0, 0]]),
        # pairs of inputs: 6 8 3 8 || 11 1 7 4
        ("1x2", 6, [[0, 1, 0, 1, 0, 1, 0, 1], [1, 0, 0, 0, 1, 0, 0, 0]]),
        # blocks of both: 17 9 10 12
        ("2x2", 8, [[1, 0, 0, 1, 1, 0, 0, 1], [1, 0, 0, 1, 1, 0, 0, 1]]),
        # of each pair of inputs the larger, of equals the first
        ("1:2", 8, [[0, 0, 1, 1, 1, 1, 0, 0], [0, 0, 1, 0, 1, 1, 0, 1]]),
        ("n:2", 8, [[0, 0, 1, 1, 1, 1, 0, 0], [0, 0, 1, 0, 1, 1, 0, 1]]),
    ],
)
def test_masks_worked_by_hand(name: str, kept: int, expected: list[list[int]]) -> None:
    mask = parse_pattern(name).mask(_SCORES, kept)
    np.testing.assert_array_equal(mask.reshape(2, 8), np.array(expected, dtype=bool))


def test_2_of_4_worked_by_hand() -> None:
    scores = np.array([[0.1, 0.9, 0.5, 0.7, 3.0, 3.0, 3.0, 3.0], [9.0, 8.0, 7.0, 6.0, 0.0, 0.0, 0.2, 0.1]])
    expected = [[0, 1, 0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0, 1, 1]]
    np.testing.assert_array_equal(NOfM().mask(scores, 8), np.array(expected, dtype=bool))


def test_4x1_worked_by_hand() -> None:
    scores = np.arange(16.0).reshape(8, 2)  # blocks: 0+2+4+6, 1+3+5+7, 8+10+12+14, 9+11+13+15
    expected = [[0, 1]] * 4 + [[1, 1]] * 4
    np.testing.assert_array_equal(Block().mask(scores, 12), np.array(expected, dtype=bool))


@pytest.mark.parametrize(
    ("name", "units"),
    [
        ("fine_grained", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
        ("vector", [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]),
        ("kernel", [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]),
        ("filter", [0] * 8 + [1] * 8),
        ("channel", [0, 0, 0, 0, 1, 1, 1, 1] * 2),
        ("2x1", [0, 1, 2, 3, 4, 5, 6, 7] * 2),
        ("1x2", [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]),
        ("1:2", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
    ],
)
def test_units_worked_by_hand(name: str, units: list[int]) -> None:
    assert parse_pattern(name).units((2, 2, 2, 2)).reshape(-1).tolist() == units


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vector", [3, 6, 9, 12, 15, 18, 21, 24]),
        ("kernel", [6, 12, 18, 24]),
        ("filter", [12, 24]),
        ("2x1", list(range(2, 25, 2))),
        ("1:2", [12, 24]),
        ("n:2", [12, 24]),
    ],
)
def test_sizes(name: str, sizes: list[int]) -> None:
    assert parse_pattern(name).sizes((2, 2, 2, 3)).tolist() == sizes


def test_sizes_of_n_of_4() -> None:
    assert parse_pattern("n:4").sizes((3, 8)).tolist() == [6, 12, 18, 24]
    assert parse_pattern("2:4").sizes((3, 8)).tolist() == [12, 24]


@pytest.mark.parametrize("name", ["vector", "kernel"])
def test_a_linear_layer_is_a_convolution_of_1x1(name: str) -> None:
    np.testing.assert_array_equal(parse_pattern(name).units((3, 5)), np.arange(15).reshape(3, 5))


def _scores(draw: st.DrawFn) -> tuple[str, NDArray[np.float64]]:
    shape = (2 * draw(st.integers(1, 3)), 2 * draw(st.integers(1, 3)))
    if draw(st.booleans()):
        shape = (*shape, draw(st.integers(1, 3)), draw(st.integers(1, 3)))  # type: ignore[assignment]
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return draw(st.sampled_from(_NAMES)), generator.integers(0, 5, shape).astype(np.float64)  # with ties


cases = st.composite(_scores)


@given(cases())
def test_masks_are_nested_and_of_exactly_the_size_asked_for(case: tuple[str, NDArray[np.float64]]) -> None:
    name, scores = case
    pattern = parse_pattern(name)
    smaller = np.zeros(scores.shape, dtype=bool)
    for kept in pattern.sizes(scores.shape):
        mask = pattern.mask(scores, int(kept))
        assert mask.sum() == kept
        assert (mask >= smaller).all()
        smaller = mask
    assert smaller.all()


@given(cases())
def test_units_go_whole_by_their_sums(case: tuple[str, NDArray[np.float64]]) -> None:
    name, scores = case
    pattern = parse_pattern(name)
    if isinstance(pattern, NOfM):
        return
    units = pattern.units(scores.shape).reshape(-1)
    order = units[pattern.order(scores)]
    blocks = order[np.flatnonzero(np.diff(order, prepend=-1))]
    assert sorted(blocks.tolist()) == list(range(units.max() + 1))  # each in one piece
    sums = [(-scores.reshape(-1)[units == unit].sum(), unit) for unit in blocks]
    assert sums == sorted(sums)  # of equals the first stays longer


@given(cases(), st.integers(1, 100))
def test_nearest_misses_by_less_than_one_unit(case: tuple[str, NDArray[np.float64]], kept: int) -> None:
    name, scores = case
    pattern = parse_pattern(name)
    sizes = pattern.sizes(scores.shape)
    nearest = pattern.nearest(scores.shape, kept)
    assert nearest == max((size for size in sizes if size <= kept), default=sizes[0])
    if sizes[0] <= kept < scores.size:
        assert kept - nearest < sizes[-1] - sizes[-2]


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_n_of_4_holds_in_every_group(stays: int, outputs: int, side: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 9, (outputs, 8, side, side)).astype(np.float64)
    mask = parse_pattern("n:4").mask(scores, scores.size * stays // 4)
    in_group = mask.transpose(0, 2, 3, 1).reshape(-1, 4)
    assert (in_group.sum(axis=1) == stays).all()
    groups = scores.transpose(0, 2, 3, 1).reshape(-1, 4)
    stay = np.where(in_group, groups, np.inf).min(axis=1)
    assert (stay >= np.where(in_group, -np.inf, groups).max(axis=1)).all()


@pytest.mark.parametrize("name", [*_NAMES, "4x1", "16x4", "2:4", "n:8"])
def test_a_name_is_read_as_the_pattern_that_bears_it(name: str) -> None:
    assert parse_pattern(name).name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "kernels",
            "expected one of fine_grained, vector, kernel, filter, channel, NxM (such as 4x1) or N:M "
            "(such as 2:4, n:4), got 'kernels'; did you mean kernel?",
        ),
        ("0x1", "expected a block of at least 1x1, got 0x1"),
        ("4:4", "expected N:M with N from 1 to M - 1, such as 2:4, or n:M for any N, got 4:4"),
        ("0:4", "expected N:M with N from 1 to M - 1, such as 2:4, or n:M for any N, got 0:4"),
        ("n:1", "expected N:M with N from 1 to M - 1, such as 2:4, or n:M for any N, got n:1"),
    ],
)
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_pattern(name)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "4x1",
            (10, 64),
            "4x1: expected outputs that 4 divides and inputs that 1 divides, got 10 outputs and 64 inputs",
        ),
        (
            "1x4",
            (16, 3, 4, 4),
            "1x4: expected outputs that 1 divides and inputs that 4 divides, got 16 outputs and 3 inputs",
        ),
        ("2:4", (16, 3, 4, 4), "2:4: expected inputs that 4 divides, got 3 inputs"),
        ("filter", (16,), "filter: expected a weight (outputs, inputs, ...), got the shape (16,)"),
    ],
)
def test_shapes_that_a_pattern_does_not_divide(name: str, shape: tuple[int, ...], message: str) -> None:
    pattern = parse_pattern(name)
    for refused in (pattern.check, pattern.units, pattern.sizes, lambda shape: pattern.order(np.zeros(shape))):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            refused(shape)


def test_a_size_that_is_not_allowed() -> None:
    message = "kernel: a weight of shape (2, 2, 2, 2) cannot keep 7 weights; nearest allowed: 4"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse_pattern("kernel").mask(_SCORES, 7)


def test_scores_that_are_no_numbers() -> None:
    message = "scores: expected finite numbers, got NaN or infinity; check the weights and the gradients"
    for name in ("kernel", "1:2"):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            parse_pattern(name).order(np.full((2, 2), np.nan))


@given(cases(), st.data())
def test_what_holds_some_weights(case: tuple[str, NDArray[np.float64]], data: st.DataObject) -> None:
    """The smallest size at which scores of 1 for these and 0 for the others keep all of them."""
    name, scores = case
    pattern = parse_pattern(name)
    held = scores > data.draw(st.integers(0, 4))
    expected = 0
    if held.any():
        sizes = [int(size) for size in pattern.sizes(scores.shape)]
        expected = next(size for size in sizes if (pattern.mask(held.astype(np.float64), size) >= held).all())
    assert pattern.holding(held) == expected
