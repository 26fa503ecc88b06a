"""The networks that are measured: every layer at every pair of levels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.design import covering_levels, level_width


@st.composite
def meetings(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], int]:
    """Number of decisions, which of them meet (in either order, twice, or with themselves), and levels asked for."""
    decisions = draw(st.integers(1, 12))
    decision = st.integers(0, decisions - 1)
    return decisions, draw(st.lists(st.tuples(decision, decision), max_size=40)), draw(st.integers(3, 7))


def pairs_seen(levels: np.ndarray[tuple[int, ...], np.dtype[np.int64]], a: int, b: int) -> set[tuple[int, int]]:
    return set(zip(levels[:, a].tolist(), levels[:, b].tolist(), strict=True))


@given(meetings())
def test_decisions_that_meet_see_all_pairs_of_levels_once(case: tuple[int, list[tuple[int, int]], int]) -> None:
    decisions, meet, asked = case
    levels = covering_levels(decisions, meet, asked)
    q = int(levels.max()) + 1
    assert levels.shape == (q * q, decisions)
    assert q >= asked
    everything = {(first, second) for first in range(q) for second in range(q)}
    for a, b in meet:
        if a != b:
            assert pairs_seen(levels, a, b) == everything


@given(meetings())
def test_every_decision_sees_each_level_equally_often(case: tuple[int, list[tuple[int, int]], int]) -> None:
    levels = covering_levels(*case)
    q = int(levels.max()) + 1
    for column in levels.T:
        assert np.bincount(column, minlength=q).tolist() == [q] * q


@pytest.mark.parametrize(("asked", "q"), [(3, 3), (4, 5), (5, 5), (6, 7), (7, 7), (8, 11), (13, 13)])
def test_a_chain_needs_no_more_than_the_next_prime_squared(asked: int, q: int) -> None:
    chain = [(index, index + 1) for index in range(99)]
    assert covering_levels(100, chain, asked).shape == (q * q, 100)


def test_more_levels_are_taken_when_all_meet_each_other() -> None:
    """Five decisions that all meet need five columns; three levels have only three."""
    everyone = [(a, b) for a in range(5) for b in range(a)]
    levels = covering_levels(5, everyone, 3)
    assert levels.shape == (25, 5)
    assert all(len(pairs_seen(levels, a, b)) == 25 for a, b in everyone)


@pytest.mark.parametrize(("decisions", "fewest"), [(13, 169), (14, 13)])
def test_of_more_than_13_that_all_meet_some_share_a_column(decisions: int, fewest: int) -> None:
    everyone = [(a, b) for a in range(decisions) for b in range(a)]
    levels = covering_levels(decisions, everyone, 7)
    assert levels.shape == (169, decisions)
    assert min(len(pairs_seen(levels, a, b)) for a, b in everyone) == fewest


def test_decisions_that_share_a_column_still_differ() -> None:
    """Decisions 0 and 2 of a chain never meet; the same widths in both would still blur what each of them costs."""
    levels = covering_levels(3, [(0, 1), (1, 2)], 5)
    assert (levels[:, 0] != levels[:, 2]).all()


def test_the_design_is_always_the_same() -> None:
    np.testing.assert_array_equal(covering_levels(4, [(0, 1), (2, 1)], 5), covering_levels(4, {(1, 2), (1, 0)}, 5))


@given(
    st.lists(st.integers(1, 512), min_size=1, max_size=40, unique=True).map(sorted), st.sampled_from([3, 5, 7, 11, 13])
)
def test_widths_run_from_the_smallest_to_the_largest_choice(choices: list[int], levels: int) -> None:
    widths = [level_width(choices, level, levels) for level in range(levels)]
    assert (widths[0], widths[-1]) == (choices[0], choices[-1])
    assert widths == sorted(widths)
    assert set(widths) <= set(choices)
    assert len(set(widths)) == min(levels, len(choices))


def test_widths_by_hand() -> None:
    assert [level_width(range(8, 65, 8), level, 3) for level in range(3)] == [8, 40, 64]  # round(3.5) is 4
    assert [level_width([8, 16], level, 5) for level in range(5)] == [8, 8, 8, 16, 16]
