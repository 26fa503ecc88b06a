from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small networks are slower on several threads, much slower where the cores are shared."""
    torch.set_num_threads(1)
