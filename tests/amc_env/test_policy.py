"""Policies as values and as files."""

from __future__ import annotations

from pathlib import Path

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
