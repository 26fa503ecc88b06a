"""Surfaces of two widths: exact where the function is simple, a staircase where it is one, and never falling."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from hw.surface import FloatArray, Surface, isotonic


def fit_grid(function: Callable[[int, int], float], ins: list[int], outs: list[int]) -> Surface:
    """The surface fitted to a function at all points of a grid."""
    widths = np.array([(i, o) for i in ins for o in outs])
    return Surface.fit(widths, np.array([function(i, o) for i, o in widths.tolist()]))


def blocks(width: int) -> int:
    return math.ceil(width / 16)


def never_falls(grid: FloatArray) -> bool:
    return bool((np.diff(grid, axis=0) >= -1e-12).all() and (np.diff(grid, axis=1) >= -1e-12).all())


@given(
    st.lists(st.tuples(st.floats(-100, 100, width=32), st.floats(0.125, 8, width=32)), min_size=1, max_size=30),
)
def test_isotonic_equals_scikit_learn(points: list[tuple[float, float]]) -> None:
    values, weights = (np.array(column) for column in zip(*points, strict=True))
    expected = IsotonicRegression().fit_transform(np.arange(len(values)), values, sample_weight=weights)
    np.testing.assert_allclose(isotonic(values, weights), expected, rtol=1e-9, atol=1e-9)


def test_isotonic_by_hand() -> None:
    # 5 and 1 pool to (5 * 1 + 1 * 3) / 4 = 2, which does not fall below 1 nor rise above 4
    values, weights = np.array([1.0, 5.0, 1.0, 4.0]), np.array([1.0, 1.0, 3.0, 1.0])
    assert isotonic(values, weights).tolist() == [1.0, 2.0, 2.0, 4.0]


@settings(max_examples=30)
@given(
    st.tuples(*[st.floats(0.01, 2)] * 4),
    st.lists(st.integers(1, 200), min_size=3, max_size=8, unique=True),
    st.lists(st.integers(1, 200), min_size=3, max_size=8, unique=True),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_reproduces_a_bilinear_function(
    factors: tuple[float, ...], ins: list[int], outs: list[int], where: tuple[float, float]
) -> None:
    def function(kept_in: int, kept_out: int) -> float:
        constant, by_in, by_out, by_both = factors
        return constant + by_in * kept_in + by_out * kept_out + by_both * kept_in * kept_out

    surface = fit_grid(function, ins, outs)
    for kept_in in (min(ins), max(ins), round(min(ins) + where[0] * (max(ins) - min(ins)))):
        for kept_out in (min(outs), max(outs), round(min(outs) + where[1] * (max(outs) - min(outs)))):
            assert surface(kept_in, kept_out) == pytest.approx(function(kept_in, kept_out), rel=1e-6)


def test_between_knots_of_a_coarse_grid() -> None:
    """Two widths each: (4, 4), (4, 20), (20, 4), (20, 20) say nothing of a staircase, so none may be assumed."""
    surface = fit_grid(lambda i, o: 1.0 + 0.1 * i + 0.2 * o + 0.01 * i * o, [4, 20], [4, 20])
    assert (surface.step, surface.block) == (1, 1)
    assert surface(12, 12) == pytest.approx(1.0 + 1.2 + 2.4 + 1.44)


def test_recovers_a_staircase_at_widths_that_were_not_measured() -> None:
    def function(kept_in: int, kept_out: int) -> float:
        return 0.1 + 0.02 * blocks(kept_in) * blocks(kept_out)

    measured = [8, 20, 27, 40, 52, 64, 77, 90]
    surface = fit_grid(function, measured, measured)
    assert surface.step == 16
    for kept_in in range(1, 97):
        for kept_out in (1, 16, 17, 30, 33, 48, 63, 65, 96):
            assert surface(kept_in, kept_out) == pytest.approx(function(kept_in, kept_out), rel=1e-2)


def test_a_smooth_function_is_not_taken_for_a_staircase() -> None:
    measured = [8, 20, 27, 40, 52, 64, 77, 90]
    surface = fit_grid(lambda i, o: 0.1 + 0.001 * i * o, measured, measured)
    assert surface.step == 1
    assert surface(30, 30) == pytest.approx(1.0)


def test_widths_that_cannot_tell_are_not_taken_for_a_staircase() -> None:
    """At multiples of 16 every staircase explains what the smooth surface explains: the simpler one is taken."""
    surface = fit_grid(lambda i, o: 0.1 + 0.001 * i * o, [16, 32, 48, 64], [16, 32, 48, 64])
    assert (surface.step, surface.block) == (1, 1)
    assert surface(24, 40) == pytest.approx(1.06)


def test_reproduces_a_fall_at_a_block() -> None:
    """Below 16 channels the time rises to 1.5 times that of 16, as outside a runtime's blocked layout."""

    def along(width: int) -> float:
        return 1.0 + width / 12 if width < 16 else 0.5 + 0.5 * blocks(width)

    measured = [4, 8, 12, 16, 32, 48, 64]
    surface = fit_grid(lambda i, o: along(i) * along(o), measured, measured)
    assert (surface.step, surface.block) == (16, 16)
    assert surface(12, 64) > surface(16, 64)
    for kept_in in (*measured, 20, 33, 60):
        for kept_out in (*measured, 20, 33, 60):
            assert surface(kept_in, kept_out) == pytest.approx(along(kept_in) * along(kept_out), rel=1e-2)


@settings(max_examples=40)
@given(st.lists(st.integers(1, 300), min_size=2, max_size=12, unique=True), st.integers(0, 2**32 - 1))
def test_noisy_measurements_never_fall_within_a_part(widths: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.choice(widths, size=(4 * len(widths), 2))
    values = (1 + points[:, 0]) * (1 + points[:, 1]) * rng.lognormal(sigma=0.5, size=len(points))
    surface = Surface.fit(points, values)
    below_in, below_out = ((knots < surface.block).sum() for knots in (surface.knots_in, surface.knots_out))
    for rows in (slice(0, below_in), slice(below_in, None)):
        for columns in (slice(0, below_out), slice(below_out, None)):
            assert never_falls(surface.values[rows, columns])


def test_only_the_output_varies() -> None:
    surface = Surface.fit(np.array([(3, 8), (3, 16), (3, 32)]), np.array([1.0, 2.0, 6.0]))
    assert [surface(3, out) for out in (8, 12, 16, 24, 32)] == pytest.approx([1.0, 1.5, 2.0, 4.0, 6.0])
    assert (surface.knots_in.tolist(), surface.knots_out.tolist()) == ([3], [8, 16, 32])


def test_only_the_input_varies() -> None:
    surface = Surface.fit(np.array([(8, 10), (16, 10), (32, 10)]), np.array([1.0, 2.0, 6.0]))
    assert [surface(ins, 10) for ins in (8, 12, 16, 24, 32)] == pytest.approx([1.0, 1.5, 2.0, 4.0, 6.0])
    assert (surface.knots_in.tolist(), surface.knots_out.tolist()) == ([8, 16, 32], [10])


@pytest.mark.parametrize("ratio", [1, 2])
def test_both_tied_as_for_depthwise(ratio: int) -> None:
    widths = np.array([8, 16, 32])
    surface = Surface.fit(np.stack([widths, ratio * widths], axis=1), np.array([1.0, 2.0, 6.0]))
    fitted = [surface(width, ratio * width) for width in (8, 12, 16, 24, 32)]
    assert fitted == pytest.approx([1.0, 1.5, 2.0, 4.0, 6.0])


@pytest.mark.parametrize("widths", [[(16, 8), (32, 16), (48, 24), (64, 32)], [(8, 16), (12, 24), (16, 32)]])
def test_both_tied_where_a_step_merges_outputs(widths: list[tuple[int, int]]) -> None:
    """A grouped convolution that narrows or widens."""
    surface = Surface.fit(np.array(widths), np.array([float(ins) for ins, _ in widths]))
    assert [surface(*pair) for pair in widths] == pytest.approx([float(ins) for ins, _ in widths])


def test_repeated_measurements_are_averaged_and_a_fall_is_pooled() -> None:
    # 16 is measured twice: (3 + 5) / 2 = 4; then 4 (twice) and 1 (once) pool to 3
    surface = Surface.fit(np.array([(3, 8), (3, 16), (3, 16), (3, 32)]), np.array([2.0, 3.0, 5.0, 1.0]))
    assert [surface(3, out) for out in (8, 16, 20, 32)] == pytest.approx([2.0, 3.0, 3.0, 3.0])


def test_a_single_measurement_is_the_surface() -> None:
    surface = Surface.fit(np.array([(3, 8)]), np.array([2.5]))
    assert surface(3, 8) == 2.5
