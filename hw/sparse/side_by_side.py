"""Timing of quick calls side by side: layers of tens of microseconds, in several libraries."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hw.timing import Effort, Timing, time_interleaved

_EFFORT = Effort(fewest=12, most=30, tolerance=0.03)
_SHORTEST_RUN = 3e-4  # seconds; quicker calls are timed several at once
_PAUSE = 0.003  # seconds: the threads of one library spin for a while after a call and would disturb the next


def time_calls(
    calls: Mapping[str, Callable[[], object]], *, seed: int = 0, effort: Effort = _EFFORT
) -> dict[str, Timing]:
    """Time of each call by its name, in one interleaved run.

    Args:
        calls: at least one; each is called a few times before, to compile and to fill caches.
        seed: draws the order of the runs.
        effort: how long to measure.
    """
    timed = [_Timed(call) for call in calls.values()]
    times = time_interleaved(timed, effort, rng=np.random.default_rng(seed), pause=_PAUSE)
    return {name: Timing.of(samples) for name, samples in zip(calls, times, strict=True)}


class _Timed:
    """A call as a network that `time_interleaved` runs; so many calls in a run that the clock can tell them."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        call()  # compiles
        start = time.perf_counter()
        call()
        self._calls = max(int(_SHORTEST_RUN / max(time.perf_counter() - start, 1e-7)), 1)

    def run(self) -> float:
        start = time.perf_counter()
        for _ in range(self._calls):
            self._call()
        return (time.perf_counter() - start) * 1e3 / self._calls
