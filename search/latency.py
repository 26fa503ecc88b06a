"""Latency for one problem: build its table, check predictions against whole networks, time the winners."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from amc_env.evaluation import NetworkProblem
from amc_env.problem import Widths
from hw.correction import fit_correction
from hw.cost import IntArray
from hw.design import covering_levels, level_width
from hw.host import Conditions
from hw.latency_table import LatencyTable
from hw.layers import LayerShape
from hw.profiling import OnProgress, Plan, Profiler, build_table
from hw.runtimes import Runtime, find_runtime
from hw.runtimes.torch_runtimes import TorchEager
from hw.timing import DISTURBED, SIDE_BY_SIDE, Effort, FloatArray, Timing, latency, time_interleaved, uncertainty
from search.rank_correlation import spearman

_ATTEMPTS = 4
_TIMED = ("conv", "linear")  # of a network's layers; the others' time counts with theirs
#: how long whole networks are timed when a prediction or a budget is checked
CHECKED = Effort(fewest=45, most=120)


@dataclass(frozen=True)
class TableSize:
    """How much is measured for a table.

    Attributes:
        levels: widths of each decision that are met in every pair, at least, see `covering_levels`; a prime is taken.
        random: further networks of random widths, for what the layers' entries miss.
        seconds: in which disturbed measurements are repeated; the first pass always ends.
    """

    levels: int = 7
    random: int = 31
    seconds: float = 600.0


def build_latency_table(
    problem: NetworkProblem,
    conditions: Conditions,
    size: TableSize = TableSize(),
    *,
    journal: Path | None = None,
    seed: int = 0,
    on_progress: OnProgress = lambda done, total, left: None,
) -> LatencyTable:
    """Measure networks of many widths, and make the table that predicts all that a search can meet.

    Args:
        problem: its decisions say which widths there are.
        conditions: runtime, threads and batch.
        size: how much is measured.
        journal: a file that keeps what was measured, for resuming.
        seed: draws the random networks and the order.
        on_progress: told of each batch.

    Raises:
        RuntimeUnavailableError: the runtime cannot be used here, or not for this network.
    """
    timer = _Timer(problem, conditions)
    chosen = [*_covering(problem, size.levels), *_random_widths(problem, size.random, seed)]
    plans = [timer.plan(widths) for widths in dict.fromkeys(chosen)]
    reference = timer.plan(problem.dense_widths)
    profiler = Profiler(
        timer.runtime, timer.family, timer.layers_family, reference, timer.layers, conditions, seed=seed
    )
    batches = profiler.measure(plans, journal=journal, seconds=size.seconds, on_progress=on_progress)
    return fit_correction(build_table(batches, plans, profiler))


@dataclass(frozen=True)
class Measured:
    """One network, predicted and timed twice, at the speed of the table's reference.

    Attributes:
        widths: of the decisions.
        predicted_ms: by the table.
        first_ms, second_ms: of two measurements apart from each other.
    """

    widths: Widths
    predicted_ms: float
    first_ms: float
    second_ms: float

    @property
    def measured_ms(self) -> float:
        return (self.first_ms + self.second_ms) / 2

    @property
    def error(self) -> float:
        """Predicted / measured - 1."""
        return self.predicted_ms / self.measured_ms - 1.0


@dataclass(frozen=True)
class Verification:
    """Predicted against measured, over random policies.

    Attributes:
        networks: the policies.
        speeds: how much slower than in the table the dense network ran in each batch; divided out of all times.
        sum_errors: predicted / measured - 1 of the sum of the entries alone, without the correction.
    """

    networks: tuple[Measured, ...]
    speeds: tuple[float, ...]
    sum_errors: tuple[float, ...]

    @property
    def errors(self) -> FloatArray:
        return np.array([network.error for network in self.networks])

    @property
    def noise(self) -> FloatArray:
        """Relative difference of the two measurements of each network."""
        return np.array([network.first_ms / network.second_ms - 1.0 for network in self.networks])

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of predicted and measured."""
        predicted = [network.predicted_ms for network in self.networks]
        return spearman(predicted, [network.measured_ms for network in self.networks])

    @property
    def noise_rank_correlation(self) -> float:
        """Spearman's, of the two measurements: more cannot be asked of a prediction."""
        first = [network.first_ms for network in self.networks]
        return spearman(first, [network.second_ms for network in self.networks])


def verify_table(
    problem: NetworkProblem,
    table: LatencyTable,
    policies: int = 60,
    *,
    seed: int = 1,
    effort: Effort = CHECKED,
    on_progress: OnProgress = lambda done, total, left: None,
) -> Verification:
    """Predict and time random policies, each twice, in batches with the dense network among them."""
    timer = _Timer(problem, table.conditions)
    chosen = _random_widths(problem, policies, seed)
    predicted = timer.predict(table, chosen)
    sums = timer.predict(table.without_correction(), chosen)
    passes, speeds = [], []
    rng = np.random.default_rng(seed)
    for turn in (0, 1):
        times = np.zeros(len(chosen))
        order = rng.permutation(len(chosen))
        for first in range(0, len(chosen), SIDE_BY_SIDE):
            on_progress(turn * len(chosen) + first, 2 * len(chosen), float("nan"))
            part = order[first : first + SIDE_BY_SIDE]
            timed = timer.time([problem.dense_widths, *(chosen[index] for index in part)], table, effort, rng)
            speeds.append(timed.speed)
            times[part] = [latency(samples) / timed.speed for samples in timed.times[1:]]
        passes.append(times.tolist())
    on_progress(2 * len(chosen), 2 * len(chosen), 0.0)
    networks = tuple(Measured(*row) for row in zip(chosen, predicted, *passes, strict=True))
    ratios = tuple(s / network.measured_ms - 1.0 for s, network in zip(sums, networks, strict=True))
    return Verification(networks, tuple(speeds), ratios)


@dataclass(frozen=True)
class Winner:
    """A policy timed end to end beside the dense network.

    Attributes:
        widths: of the decisions.
        predicted_ms: by the table.
        timing: as the clock showed it.
        measured_ms: at the speed of the table's reference, comparable with the prediction and the budget.
        speedup: dense latency / this latency, in the same run.
        speedup_range: the same at the ends of both 95 % confidence intervals.
    """

    widths: Widths
    predicted_ms: float
    timing: Timing
    measured_ms: float
    speedup: float
    speedup_range: tuple[float, float]


@dataclass(frozen=True)
class WinnersTimed:
    """Winners and the dense network, timed in one interleaved run.

    Attributes:
        dense: as the clock showed it.
        again: a second copy of the dense network in the same run: what the clock cannot tell apart.
        speed: how much slower than in the table the machine ran.
        winners: in the order asked.
    """

    dense: Timing
    again: Timing
    speed: float
    winners: tuple[Winner, ...]


def time_winners(
    problem: NetworkProblem, table: LatencyTable, policies: Sequence[Widths], *, effort: Effort = CHECKED, seed: int = 0
) -> WinnersTimed:
    """Time policies end to end, interleaved with the dense network, in the runtime of the table."""
    timer = _Timer(problem, table.conditions)
    rng = np.random.default_rng(seed)
    timed = timer.time([problem.dense_widths, problem.dense_widths, *policies], table, effort, rng)
    (dense, again, *others), speed = timed.times, timed.speed
    winners = []
    for widths, predicted, samples in zip(policies, timer.predict(table, policies), others, strict=True):
        speedup = latency(dense) / latency(samples)
        spread = 1 + uncertainty(dense) + uncertainty(samples)
        winners.append(
            Winner(
                widths,
                predicted,
                Timing.of(samples),
                latency(samples) / speed,
                speedup,
                (speedup / spread, speedup * spread),
            )
        )
    return WinnersTimed(Timing.of(dense), Timing.of(again), speed, tuple(winners))


class _Timer:
    """Makes and times networks of one problem under given conditions."""

    def __init__(self, problem: NetworkProblem, conditions: Conditions) -> None:
        self._problem = problem
        self.runtime: Runtime = find_runtime(conditions.runtime, conditions.threads)
        self._rows = [i for i, layer in enumerate(problem.layers) if layer.op in _TIMED]
        self.layers: list[LayerShape] = [problem.layers[row] for row in self._rows]
        example = problem.timed_input(conditions.batch)
        dense = problem.thin_shape(problem.dense_widths, folded=self.runtime.folds_batchnorm)
        self.family = self.runtime.family(dense, example, self.layers)
        #: shows the layers where the runtime itself does not
        self.layers_family = (
            self.family if self.runtime.profiles else TorchEager(conditions.threads).family(dense, example, self.layers)
        )

    def channels(self, widths: Widths) -> tuple[IntArray, IntArray]:
        kept_in, kept_out = self._problem.channels.channels(widths)
        return kept_in[self._rows], kept_out[self._rows]

    def plan(self, widths: Widths) -> Plan:
        kept_in, kept_out = self.channels(widths)
        make = partial(self._problem.thin_shape, widths, folded=self.runtime.folds_batchnorm)
        return Plan(tuple(kept_in.tolist()), tuple(kept_out.tolist()), make)

    def predict(self, table: LatencyTable, policies: Sequence[Widths]) -> list[float]:
        cost = table.bind(self.layers)
        return [cost(*self.channels(widths)) for widths in policies]

    def time(self, policies: Sequence[Widths], table: LatencyTable, effort: Effort, rng: np.random.Generator) -> _Timed:
        """Time policies side by side, the dense one first; again if it never ran nearly as fast as for the table.

        Of several attempts the one that was disturbed least counts.
        """
        attempts: list[_Timed] = []
        while len(attempts) < _ATTEMPTS and all(attempt.speed > DISTURBED for attempt in attempts):
            networks = [self.family.load(self.plan(widths).make()) for widths in policies]
            times = time_interleaved(networks, effort, rng=rng, pause=self.runtime.pause)
            reference = latency(times[0]) if table.reference is None else table.reference.p10
            attempts.append(_Timed(times, latency(times[0]) / reference))
        return min(attempts, key=lambda attempt: attempt.speed)


@dataclass(frozen=True)
class _Timed:
    """Milliseconds of all runs of networks timed side by side, and how much slower the first was than in a table."""

    times: list[FloatArray]
    speed: float


def _covering(problem: NetworkProblem, levels: int) -> list[Widths]:
    """Networks in which each convolution and linear layer meets all pairs of so many levels of its two widths.

    As far as `covering_levels` can. Norms have no time of their own in a table; one after a concatenation would let all
    that is joined there meet.
    """
    channels = problem.channels
    meet = {
        (int(a), int(b))
        for layer, ins, outs in zip(problem.layers, channels.in_per_unit, channels.out_per_unit, strict=True)
        if layer.op in _TIMED
        for a in np.flatnonzero(ins)
        for b in np.flatnonzero(outs)
    }
    most = max(len(decision.choices) for decision in problem.decisions)
    array = covering_levels(len(problem.decisions), meet, min(levels, most))
    count = int(array.max()) + 1
    return [
        tuple(
            level_width(decision.choices, int(level), count)
            for decision, level in zip(problem.decisions, row, strict=True)
        )
        for row in array
    ]


def _random_widths(problem: NetworkProblem, count: int, seed: int) -> list[Widths]:
    """Every choice of every decision equally likely."""
    rng = np.random.default_rng(seed)
    return [tuple(int(rng.choice(decision.choices)) for decision in problem.decisions) for _ in range(count)]
