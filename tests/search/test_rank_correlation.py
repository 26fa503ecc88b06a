"""Spearman's rank correlation, with ties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.latency import Measured, Verification
from search.rank_correlation import spearman


def test_known_values() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([86, 97, 99, 100, 101], [2, 20, 28, 27, 50]) == pytest.approx(1 - 6 * 2 / (5 * 24))
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))  # ranks 1, 2.5, 2.5, 4


@pytest.mark.parametrize("side", [[], [7.0], [1.0, 1.0, 1.0]])
def test_there_is_none_without_an_order(side: list[float]) -> None:
    assert math.isnan(spearman(side, list(range(len(side)))))


def test_sides_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^expected as many figures on both sides, got 2 and 3$"):
        spearman([1, 2], [1, 2, 3])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=12))
def test_it_sees_the_order_only(pairs: list[tuple[int, int]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    plain, bent = spearman(first, second), spearman([a**3 for a in first], [2.0**b for b in second])
    assert math.isnan(plain) == math.isnan(bent) == (len(set(first)) == 1 or len(set(second)) == 1)
    if not math.isnan(plain):
        assert bent == pytest.approx(plain, abs=1e-12)
        assert -1.0 - 1e-12 <= plain <= 1.0 + 1e-12


def test_networks_that_a_table_predicts_alike_share_a_rank() -> None:
    """In whatever order they were measured."""
    measured = [(1.0, 2.0), (1.0, 3.0), (4.0, 5.0)]
    for pairs in (measured, measured[::-1]):
        networks = tuple(Measured((1,), predicted, time, time) for predicted, time in pairs)
        checked = Verification(networks, (1.0,), (0.0,) * 3)
        assert checked.rank_correlation == pytest.approx(1.5 / np.sqrt(1.5 * 2))  # ranks 1.5, 1.5, 3
        assert checked.noise_rank_correlation == pytest.approx(1.0)
