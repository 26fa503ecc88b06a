from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small networks are slower on several threads, much slower where the cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what another kept on disk."""
    monkeypatch.setenv("AMC_CACHE", str(tmp_path / "cache"))
