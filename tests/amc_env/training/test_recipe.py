"""The recipe: what it refuses, how many steps it takes, and its learning rate."""

from __future__ import annotations

import re
from typing import Any

import pytest

from amc_env.training.recipe import FineTuneSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "epochs, steps: expected one of them, such as epochs: 10, got neither"),
        ({"epochs": 1, "steps": 1}, "epochs, steps: expected one of them, such as epochs: 10, got both"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"steps": 1, "batch": 1}, "batch: expected at least 2, got 1"),
        ({"steps": 1, "learning_rate": 0.0}, "learning_rate: expected a number above 0, got 0.0"),
        ({"steps": 1, "learning_rate": float("inf")}, "learning_rate: expected a number above 0, got inf"),
        ({"steps": 1, "momentum": 0.0}, "nesterov: needs a momentum above 0; set nesterov: false, or a momentum"),
        ({"steps": 1, "momentum": 1.0}, "momentum: expected a number in [0, 1), got 1.0"),
        ({"steps": 1, "weight_decay": -1.0}, "weight_decay: expected a number of at least 0, got -1.0"),
        ({"steps": 1, "distillation": 1.5}, "distillation: expected a weight in [0, 1], got 1.5"),
        ({"steps": 1, "schedule": "linear"}, "schedule: expected one of cosine, step, constant, got 'linear'"),
    ],
)
def test_what_does_not_fit_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        FineTuneSettings(**values)


def test_steps_of_epochs() -> None:
    assert FineTuneSettings(epochs=3, batch=128).total_steps(1000) == 24
    assert FineTuneSettings(epochs=3, batch=128).total_steps(1024) == 24
    assert FineTuneSettings(epochs=3, batch=128).total_steps(50) == 3
    assert FineTuneSettings(steps=5).total_steps(1000) == 5


def test_the_learning_rate_rises_and_falls() -> None:
    cosine = FineTuneSettings(steps=100, learning_rate=0.1, warmup_steps=20)
    rates = [cosine.learning_rate_at(step, 100) for step in range(100)]
    assert rates[:20] == pytest.approx([0.005 * (step + 1) for step in range(20)])
    assert rates[20] == pytest.approx(0.1)
    assert rates[60] == pytest.approx(0.05)
    assert rates[19:] == sorted(rates[19:], reverse=True)
    assert 0 < rates[-1] < 0.001
    steps = FineTuneSettings(steps=8, learning_rate=0.1, schedule="step")
    assert [steps.learning_rate_at(step, 8) for step in range(8)] == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)
    constant = FineTuneSettings(steps=3, learning_rate=0.1, schedule="constant", warmup_steps=5)
    assert [constant.learning_rate_at(step, 3) for step in range(3)] == pytest.approx([0.02, 0.04, 0.06])
