"""The number of torch's threads, for a while."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hw.torch_threads import torch_threads


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def within() -> None:
    with torch_threads(2):
        assert torch.get_num_threads() == 2
        raise InterruptedError


def test_the_number_is_put_back_whatever_happens() -> None:
    with pytest.raises(InterruptedError):
        within()
    assert torch.get_num_threads() == 1


def test_a_number_that_is_right_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run that is timed is within it."""
    said: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", said.append)
    with torch_threads(1):
        pass
    assert said == []
