"""Policies as values and as files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from amc_env import PruningPolicy


def test_round_trip_keeps_every_bit_and_the_order(tmp_path: Path) -> None:
    policy = PruningPolicy({"b": 1 / 3, "a": 0.0, "c": 0.1 + 0.2})
    policy.save(tmp_path / "policy.json")
    loaded = PruningPolicy.load(tmp_path / "policy.json")
    assert loaded == policy
    assert list(loaded) == ["b", "a", "c"]


@pytest.mark.parametrize("ratio", [1.0, -0.01, float("nan")])
def test_refuses_what_is_no_fraction_removed(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"ratio of 'conv1': expected a fraction removed in \[0, 1\), got"):
        PruningPolicy({"conv1": ratio})


@pytest.mark.parametrize(("text", "said"), [('"0.5"', "'0.5'"), ("null", "None"), ("[]", "[]"), ("true", "True")])
def test_refuses_a_file_whose_ratio_is_no_number(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(f'{{"version": 1, "ratios": {{"a": {text}}}}}')
    expected = f"ratio of 'a': expected a fraction removed in [0, 1), got {said}"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        PruningPolicy.load(path)


def test_numbers_of_numpy_are_ratios() -> None:
    assert dict(PruningPolicy({"a": np.float32(0.5), "b": 0})) == {"a": 0.5, "b": 0.0}  # type: ignore[dict-item]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"ratios": {}}', '{"version": 1, "ratios": 3}'])
def test_refuses_a_damaged_file(tmp_path: Path, content: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="expected a pruning policy written by PruningPolicy"):
        PruningPolicy.load(path)


def test_refuses_another_version(tmp_path: Path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"version": 2, "ratios": {}}')
    with pytest.raises(ValueError, match="expected a pruning policy of version 1, got version 2"):
        PruningPolicy.load(path)
