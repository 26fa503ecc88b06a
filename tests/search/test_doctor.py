"""The doctor finds what is wrong. The start of a Ray is tested with the jobs."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import click.testing
import pytest

from search import doctor
from search.cli import main
from search.doctor import Finding, diagnose


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_local_ray", lambda: "not started")


def finding(check: str) -> Finding:
    return next(finding for finding in diagnose() if finding.check == check)


def test_all_is_well() -> None:
    outcome = click.testing.CliRunner().invoke(main, ["doctor"])
    assert outcome.exit_code == 0
    assert [line[:4] for line in outcome.stdout.splitlines()] == ["ok  "] * 7


def test_another_distribution_with_a_package_of_our_name(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"agents": ["amc-search", "openai-agents"]}
    monkeypatch.setattr(metadata, "packages_distributions", lambda: owners)
    found = finding("package names")
    assert not found.good
    assert "the package 'agents' is also installed by openai-agents" in found.detail


def test_cache_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "file"))
    assert "cannot be written (File exists); set AMC_CACHE" in finding("cache folder").detail
    assert click.testing.CliRunner().invoke(main, ["doctor"]).exit_code == 1
