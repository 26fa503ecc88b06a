"""Timing: summaries by hand, and how networks are visited; nothing here is timed in earnest."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.timing import Effort, TimedNetwork, Timing, latency, time_interleaved, uncertainty


class FakeNetwork:
    """Answers 1, 2, 3 ... times `growth`, or always `constant`; writes its name into a log."""

    def __init__(self, name: str, log: list[str], *, growth: float = 0.0, constant: float = 1.0) -> None:
        self.name, self.log, self.growth, self.constant = name, log, growth, constant
        self.runs = 0

    def run(self) -> float:
        self.runs += 1
        self.log.append(self.name)
        return self.constant + self.growth * self.runs


def visits(log: list[str], networks: int) -> list[list[str]]:
    """The order of each round, from a log of runs; checks that a visit is four runs in a row."""
    after_warming = log[networks:]
    chunks = [after_warming[first : first + 4] for first in range(0, len(after_warming), 4)]
    assert all(len(set(chunk)) == 1 and len(chunk) == 4 for chunk in chunks)
    order = [chunk[0] for chunk in chunks]
    return [order[first : first + networks] for first in range(0, len(order), networks)]


def record(seed: int, names: str = "abcdef") -> list[str]:
    log: list[str] = []
    time_interleaved([FakeNetwork(name, log) for name in names], Effort(9, 9), rng=np.random.default_rng(seed))
    return log


def test_summary_by_hand() -> None:
    # of 0, 10 .. 100 the percentiles are the values themselves, whatever their order
    samples = [50.0, 0.0, 100.0, 20.0, 10.0, 90.0, 30.0, 70.0, 40.0, 60.0, 80.0]
    assert Timing.of(samples) == Timing(n=11, median=50.0, p10=10.0, p90=90.0)
    assert latency(np.array(samples)) == 10.0


def test_percentiles_lie_between_runs() -> None:
    timing = Timing.of([2.0, 1.0])
    assert (timing.n, timing.p10, timing.median, timing.p90) == pytest.approx((2, 1.1, 1.5, 1.9))


def test_one_run_is_its_own_summary() -> None:
    assert Timing.of(np.array([3.5])) == Timing(1, 3.5, 3.5, 3.5)


def test_scaling_keeps_the_number_of_runs() -> None:
    assert Timing(7, 4.0, 2.0, 8.0).scaled(0.5) == Timing(7, 2.0, 1.0, 4.0)


@given(st.lists(st.floats(0.01, 1000), min_size=1, max_size=50), st.floats(0.1, 10))
def test_scaling_a_summary_equals_summing_up_scaled_runs(samples: list[float], factor: float) -> None:
    scaled, expected = Timing.of(samples).scaled(factor), Timing.of([factor * sample for sample in samples])
    assert (scaled.n, scaled.median, scaled.p10, scaled.p90) == pytest.approx(
        (expected.n, expected.median, expected.p10, expected.p90)
    )


@pytest.mark.parametrize(("fewest", "most"), [(0, 10), (-1, 10), (11, 10)])
def test_effort_refuses_numbers_out_of_order(fewest: int, most: int) -> None:
    with pytest.raises(ValueError, match=f"^expected 1 <= fewest <= most, got {fewest} and {most}$"):
        Effort(fewest, most)


@pytest.mark.parametrize("tolerance", [0.0, -0.1, float("nan")])
def test_effort_refuses_a_tolerance_that_nothing_meets(tolerance: float) -> None:
    with pytest.raises(ValueError, match=f"^tolerance: expected more than 0, got {tolerance}$"):
        Effort(tolerance=tolerance)


def test_effort_may_be_one_run() -> None:
    assert Effort(1, 1).most == 1


@given(st.integers(1, 200), st.floats(0.001, 1000))
def test_constant_samples_are_certain(runs: int, milliseconds: float) -> None:
    assert uncertainty([milliseconds] * runs) == 0.0


def test_uncertainty_by_hand() -> None:
    # n = 100: rank 10 -+ 1.96 * sqrt(100 * 0.1 * 0.9) = 5.88 are ranks 4 and 16 of 100..199; the percentile is 109.9
    samples = np.random.default_rng(0).permutation(np.arange(100.0, 200.0))
    assert uncertainty(samples) == pytest.approx((116.0 - 104.0) / 2 / 109.9)


def test_uncertainty_shrinks_with_the_runs() -> None:
    """Mean over 200 draws of log-normal runs, seed 0: four times the runs about halve it. Fixed seed, so no chance."""
    rng = np.random.default_rng(0)
    means = [np.mean([uncertainty(rng.lognormal(sigma=0.2, size=n)) for _ in range(200)]) for n in (40, 160, 640)]
    for fewer, more in pairwise(means):
        assert 0.35 * fewer < more < 0.65 * fewer


def test_the_uncertainty_is_as_long_as_the_error() -> None:
    """400 draws of 200 runs, seed 1: in about 9 of 10 the true percentile is within +-uncertainty of the estimate.

    Not 95 %, because the interval is not symmetric and its ends are ranks. Half of it would hold 60 %, twice 99.9 %.
    """
    rng = np.random.default_rng(1)
    truth = np.exp(0.2 * -1.2815515655446004)
    held = 0
    for _ in range(400):
        samples = rng.lognormal(sigma=0.2, size=200)
        held += abs(latency(samples) / truth - 1.0) <= uncertainty(samples)
    assert 0.85 <= held / 400 <= 0.98


@pytest.mark.parametrize(("fewest", "runs"), [(1, 3), (3, 3), (9, 9), (10, 12), (24, 24)])
def test_stops_at_the_fewest_when_the_runs_are_constant(fewest: int, runs: int) -> None:
    log: list[str] = []
    networks = [FakeNetwork(name, log, constant=2.0 + index) for index, name in enumerate("abc")]
    times = time_interleaved(networks, Effort(fewest, 300), rng=np.random.default_rng(0))
    assert [samples.tolist() for samples in times] == [[2.0] * runs, [3.0] * runs, [4.0] * runs]
    # once at the start, and once untimed with every three
    assert [network.runs for network in networks] == [1 + runs // 3 * 4] * 3


def test_stops_at_the_most_when_one_network_is_wild() -> None:
    log: list[str] = []
    networks = [FakeNetwork("calm", log), FakeNetwork("wild", log, growth=1.0)]
    times = time_interleaved(networks, Effort(6, 30), rng=np.random.default_rng(0))
    assert [len(samples) for samples in times] == [30, 30]
    assert networks[0].runs == networks[1].runs == 1 + 40


def test_the_run_that_begins_a_visit_is_not_counted() -> None:
    times = time_interleaved([FakeNetwork("a", [], growth=1.0)], Effort(6, 6), rng=np.random.default_rng(0))
    # run 1 warms up, runs 2 and 6 begin a visit
    assert times[0].tolist() == [4.0, 5.0, 6.0, 8.0, 9.0, 10.0]


def test_every_round_visits_each_network_once_in_random_order() -> None:
    rounds = visits(record(seed=0), 6)
    assert len(rounds) == 3
    assert all(sorted(order) == list("abcdef") for order in rounds)
    assert len({tuple(order) for order in rounds}) == 3


def test_the_order_belongs_to_the_seed() -> None:
    assert record(seed=0) == record(seed=0)
    assert record(seed=0) != record(seed=1)


def test_reports_each_round_and_pauses_before_each_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("hw.timing.time.sleep", pauses.append)
    rounds: list[int] = []
    networks: list[TimedNetwork] = [FakeNetwork(name, []) for name in "ab"]
    rng = np.random.default_rng(0)
    time_interleaved(networks, Effort(9, 9), rng=rng, pause=0.25, on_round=lambda: rounds.append(len(pauses)))
    assert rounds == [2, 4, 6]
    assert pauses == [0.25] * 6
