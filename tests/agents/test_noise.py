from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.noise import decay_for, truncated_normal


def moments(mean: float, sigma: float) -> tuple[float, float]:
    """Mean and standard deviation of N(mean, sigma^2) on [0, 1], by the textbook formula."""
    normal = NormalDist()
    a, b = -mean / sigma, (1 - mean) / sigma
    mass = normal.cdf(b) - normal.cdf(a)
    shift = (normal.pdf(a) - normal.pdf(b)) / mass
    variance = 1 + (a * normal.pdf(a) - b * normal.pdf(b)) / mass - shift**2
    return mean + sigma * shift, sigma * math.sqrt(variance)


def test_the_formula_gives_the_known_mean() -> None:
    """(phi(0) - phi(2)) / (Phi(2) - Phi(0)) / 2 = (0.39894 - 0.05399) / 0.47725 / 2."""
    assert moments(0.0, 0.5)[0] == pytest.approx(0.3614, abs=5e-5)


@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 0.5), (1.0, 0.5), (0.5, 0.5), (0.3, 0.1), (0.9, 2.0), (0.02, 0.05)])
def test_moments(mean: float, sigma: float) -> None:
    """20,000 draws with a fixed seed; the mean within 4 standard errors."""
    rng = np.random.default_rng(0)
    draws = np.array([truncated_normal(rng, mean, sigma) for _ in range(20_000)])
    expected, deviation = moments(mean, sigma)
    assert draws.mean() == pytest.approx(expected, abs=4 * deviation / math.sqrt(20_000))
    assert draws.std() == pytest.approx(deviation, rel=0.03)


@given(st.floats(0, 1), st.floats(0, 10), st.integers(0, 2**32))
def test_stays_in_the_interval_and_takes_one_draw(mean: float, sigma: float, seed: int) -> None:
    rng, reference = np.random.default_rng(seed), np.random.default_rng(seed)
    assert 0.0 <= truncated_normal(rng, mean, sigma) <= 1.0
    reference.random()
    assert rng.random() == reference.random()


def test_sigma_zero_is_the_mean() -> None:
    assert truncated_normal(np.random.default_rng(0), 0.3, 0.0) == 0.3


@pytest.mark.parametrize(("mean", "sigma"), [(1.1, 0.5), (math.nan, 0.5), (0.5, -1.0), (0.5, math.nan)])
def test_refuses_what_it_cannot_draw(mean: float, sigma: float) -> None:
    with pytest.raises(ValueError, match=r"expected a mean in \[0.0, 1.0\] and sigma >= 0, got mean"):
        truncated_normal(np.random.default_rng(0), mean, sigma)


def test_decay_reaches_the_final_sigma_in_the_last_episode() -> None:
    assert 0.5 * decay_for(0.5, 0.05, 100) ** 99 == pytest.approx(0.05)
    assert decay_for(0.5, 0.05, 1) == decay_for(0.5, 0.05, 0) == decay_for(0.5, 0.05, -3) == 1.0
