"""Exploration noise: a normal distribution truncated to an interval, drawn by its inverse distribution function."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

_NORMAL = NormalDist()


def truncated_normal(rng: np.random.Generator, mean: float, sigma: float, low: float = 0.0, high: float = 1.0) -> float:
    """One draw of N(mean, sigma^2) conditioned on [low, high] ([AMC] section 3.3).

    Unlike noise that is added and clipped, it puts no mass on the bounds: with sigma 0.5 on [0, 1] and the mean at a
    bound, the expectation is 0.361 away from it.

    Args:
        rng: consumed by exactly one uniform draw, whatever the arguments.
        mean: of the normal before truncation, in [low, high].
        sigma: of the normal before truncation, in the unit of the interval; 0 returns the mean.
        low: lower bound.
        high: upper bound.

    Raises:
        ValueError: the mean lies outside the interval, or sigma is negative.
    """
    if not low <= mean <= high or not sigma >= 0.0:
        raise ValueError(f"expected a mean in [{low}, {high}] and sigma >= 0, got mean {mean} and sigma {sigma}")
    uniform = rng.random()
    if sigma == 0.0:
        return mean
    below, above = _NORMAL.cdf((low - mean) / sigma), _NORMAL.cdf((high - mean) / sigma)
    quantile = below + uniform * (above - below)
    if not 0.0 < quantile < 1.0:
        return low if quantile <= 0.0 else high
    return min(max(mean + sigma * _NORMAL.inv_cdf(quantile), low), high)


def decay_for(sigma: float, final_sigma: float, episodes: int) -> float:
    """The factor per episode by which `sigma` falls to `final_sigma` in the last of `episodes` (1 if there is one)."""
    return float((final_sigma / sigma) ** (1.0 / (episodes - 1))) if episodes > 1 else 1.0
