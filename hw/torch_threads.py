"""The number of threads of torch's operators, for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Within it torch's operators run on so many threads; afterwards on as many as before."""
    before = torch.get_num_threads()
    _set(count)
    try:
        yield
    finally:
        _set(before)


def _set(count: int) -> None:
    if torch.get_num_threads() != count:  # not to disturb what is timed
        torch.set_num_threads(count)
