from __future__ import annotations

import numpy as np
import pytest

from agents.gaussian_process import GaussianProcess

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(30, 3))


def smooth(points: np.ndarray) -> np.ndarray:
    return 5.0 + np.asarray(np.sin(points[:, 0]) + points[:, 1] * points[:, 2])


def test_passes_through_what_is_known_and_is_sure_of_it() -> None:
    mean, deviation = GaussianProcess.fit(POINTS, smooth(POINTS)).predict(POINTS)
    assert mean == pytest.approx(smooth(POINTS), abs=0.01)
    assert deviation.max() < 0.05


def test_predicts_between_and_doubts_far_away() -> None:
    process = GaussianProcess.fit(POINTS, smooth(POINTS))
    near = POINTS[:10] + 0.1
    mean, deviation = process.predict(near)
    assert np.abs(mean - smooth(near)).max() < 0.3
    far_mean, far_deviation = process.predict(POINTS[:2] + 100.0)
    assert far_mean == pytest.approx(smooth(POINTS).mean(), abs=0.5)
    assert far_deviation.min() > 5 * deviation.max()


def test_noise_is_not_followed() -> None:
    noisy = RNG.normal(size=30)
    process = GaussianProcess.fit(POINTS, noisy)
    mean, _ = process.predict(POINTS)
    assert process.noise == pytest.approx(0.1)
    assert np.abs(mean - noisy).max() > 0.01


def test_equal_values_are_no_trouble() -> None:
    mean, deviation = GaussianProcess.fit(POINTS, np.full(30, 2.0)).predict(POINTS[:3] + 1.0)
    assert mean == pytest.approx([2.0] * 3)
    assert deviation == pytest.approx([0.0] * 3)


def test_refuses_values_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="values: expected finite numbers, got"):
        GaussianProcess.fit(POINTS[:2], np.array([1.0, np.nan]))
