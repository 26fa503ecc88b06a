"""Settings refuse what cannot be meant, and know their defaults."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amc_env.settings import EvaluationSettings, Fidelity, find_device


@pytest.mark.parametrize(
    ("fidelity", "recalibrate", "expected"),
    [
        ("magnitude", None, True),
        ("prefix", None, True),
        ("sequential", None, False),
        ("magnitude", False, False),
        ("prefix", False, False),
        ("sequential", False, False),
    ],
)
def test_recalibration_follows_the_fidelity_unless_told(
    fidelity: Fidelity, recalibrate: bool | None, expected: bool
) -> None:
    assert EvaluationSettings(fidelity, recalibrate).recalibrates == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fidelity": "exact"}, "^fidelity: expected one of magnitude, prefix, sequential, got 'exact'$"),
        ({"dtype": "float16"}, "^dtype: expected one of float32, bfloat16, got 'float16'$"),
        ({"images": 0}, "^images: expected at least 1, got 0$"),
        ({"rows": -1}, "^rows: expected at least 1, got -1$"),
        ({"block_epochs": -1}, "^block_epochs: expected at least 0, got -1$"),
        (
            {"fidelity": "sequential", "recalibrate_batchnorm": True},
            "^recalibrate_batchnorm: batch norm recalibration after sequential reconstruction does harm",
        ),
    ],
)
def test_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**settings)


def test_devices() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ValueError, match=r"^device: expected auto, cpu, or a cuda device that is there, got 'gpu' "):
        find_device("gpu")
