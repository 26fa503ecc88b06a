"""Timing networks on a machine that others use too: interleaved, repeated, and read at the 10th percentile.

On a shared machine the time of a run is not one number with noise: for milliseconds or minutes at a time a neighbour
takes part of the core, and everything is slower by a half. The median then tells how busy the neighbour was. What a
network costs is what its undisturbed runs take; the 10th percentile of many runs that were spread over a while and
interleaved with those of the other networks is within 1 % of it, and of the median of a quiet machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
#: so many networks are timed side by side, and one that is known
SIDE_BY_SIDE = 10
#: they are timed again if the known one took so much longer than it can
DISTURBED = 1.04
_QUANTILE = 0.1
_PER_VISIT = 3


class TimedNetwork(Protocol):
    """A network that is loaded in a runtime and ready to run on its input."""

    def run(self) -> float:
        """Run once; returns milliseconds."""
        ...


@dataclass(frozen=True)
class Timing:
    """Time of a network or a layer, in milliseconds.

    Attributes:
        n: runs that it is taken from.
        median, p10, p90: of these runs; p10 is what the rest of the package calls the latency.
    """

    n: int
    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, milliseconds: Sequence[float] | FloatArray) -> Timing:
        """Summary of at least one run."""
        p10, median, p90 = np.percentile(np.asarray(milliseconds, dtype=np.float64), (10, 50, 90))
        return cls(len(milliseconds), float(median), float(p10), float(p90))

    def scaled(self, factor: float) -> Timing:
        return Timing(self.n, self.median * factor, self.p10 * factor, self.p90 * factor)


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        fewest, most: timed runs of each network.
        tolerance: stop when the 95 % confidence interval of every network's 10th percentile is within this fraction.
    """

    fewest: int = 30
    most: int = 150
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.most:
            raise ValueError(f"expected 1 <= fewest <= most, got {self.fewest} and {self.most}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance: expected more than 0, got {self.tolerance}")


def time_interleaved(
    networks: Sequence[TimedNetwork],
    effort: Effort = Effort(),
    *,
    rng: np.random.Generator,
    pause: float = 0.0,
    on_round: Callable[[], None] = lambda: None,
) -> list[FloatArray]:
    """Time several networks side by side, so that whatever the machine does meets all of them.

    Round after round, each is visited in random order, run once untimed (caches, thread pools) and three times timed.

    Args:
        networks: at least one.
        effort: when to stop.
        rng: draws the order.
        pause: seconds between two networks, for thread pools that spin for a while after a run.
        on_round: called after each round.

    Returns:
        Milliseconds of all timed runs, float64 (runs,), for each network.
    """
    for network in networks:
        network.run()
    times: list[list[float]] = [[] for _ in networks]
    while True:
        for index in rng.permutation(len(networks)):
            if pause:
                time.sleep(pause)
            networks[index].run()
            times[index].extend(networks[index].run() for _ in range(_PER_VISIT))
        on_round()
        runs = len(times[0])
        settled = runs >= effort.fewest and all(uncertainty(samples) <= effort.tolerance for samples in times)
        if settled or runs >= effort.most:
            return [np.array(samples) for samples in times]


def uncertainty(milliseconds: Sequence[float] | FloatArray) -> float:
    """Half width of the 95 % confidence interval of the 10th percentile, as a fraction of it; free of assumptions.

    The ranks of the interval's ends follow from the binomial distribution (here its normal approximation).
    """
    ordered = np.sort(np.asarray(milliseconds, dtype=np.float64))
    n = len(ordered)
    spread = 1.96 * np.sqrt(n * _QUANTILE * (1 - _QUANTILE))
    low, high = np.clip(np.round([n * _QUANTILE - spread, n * _QUANTILE + spread]), 0, n - 1).astype(int)
    return float((ordered[high] - ordered[low]) / 2 / np.percentile(ordered, 100 * _QUANTILE))


def latency(milliseconds: FloatArray) -> float:
    """The 10th percentile, in milliseconds."""
    return float(np.percentile(milliseconds, 100 * _QUANTILE))
