"""Measuring a table on a machine that is made up: known layer times, and a speed that changes from batch to batch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hw.host import Conditions
from hw.latency_table import LatencyTable
from hw.layers import LayerShape
from hw.profiling import OnProgress, Plan, Profiler, build_table
from hw.runtimes.base import NetworkFamily, ProfiledNetwork, Runtime
from hw.timing import Effort, FloatArray, TimedNetwork, Timing

LAYERS = (
    LayerShape("stem", "conv", 3, 16, (3, 3), input_size=(8, 8), output_size=(8, 8), followed_by=("relu",)),
    LayerShape("body", "conv", 16, 32, (3, 3), input_size=(8, 8), output_size=(8, 8), followed_by=("relu",)),
    LayerShape("head", "linear", 32, 10, bias=True),
)
OVERHEAD = 0.25  # of an inference, which no layer shows
EFFORT = Effort(6, 12)


def layer_ms(layer: LayerShape, ins: int, outs: int) -> float:
    return 0.1 + 0.002 * ins * outs * layer.kernel_size[0]


class Member(nn.Identity):
    """A network that is nothing but the channels of its layers."""

    def __init__(self, kept_in: tuple[int, ...], kept_out: tuple[int, ...]) -> None:
        super().__init__()
        self.kept_in, self.kept_out = kept_in, kept_out

    def layer_times(self) -> FloatArray:
        return np.array([layer_ms(*widths) for widths in zip(LAYERS, self.kept_in, self.kept_out, strict=True)])


@dataclass
class Machine:
    """Everything takes `factors[batch]` times as long (1 unless told); every `hiccup`-th run three times that."""

    factors: dict[int, float] = field(default_factory=dict)
    hiccup: int = 0
    batches: int = 0
    runs: int = 0
    made: list[tuple[int, ...]] = field(default_factory=list)

    def begin_batch(self) -> nn.Module:
        self.batches += 1
        return Member(DENSE.kept_in, DENSE.kept_out)

    def make(self, kept_in: tuple[int, ...], kept_out: tuple[int, ...]) -> nn.Module:
        self.made.append(kept_out)
        return Member(kept_in, kept_out)

    def factor(self) -> float:
        self.runs += 1
        slow = 3.0 if self.hiccup and self.runs % self.hiccup == 0 else 1.0
        return slow * self.factors.get(self.batches - 1, 1.0)


class FakeNetwork(ProfiledNetwork):
    def __init__(self, machine: Machine, member: Member, overhead: float) -> None:
        self.machine, self.member, self.overhead = machine, member, overhead
        self.rows: list[FloatArray] = []

    def run(self) -> float:
        factor = self.machine.factor()
        self.rows.append(factor * self.member.layer_times())
        return float(self.rows[-1].sum() + factor * self.overhead)

    def layer_times(self) -> FloatArray:
        return np.array(self.rows)


class WholeFamily(NetworkFamily):
    """Cannot show layers, as the runtimes that need `layers_family`."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def load(self, network: nn.Module) -> TimedNetwork:
        assert isinstance(network, Member)
        return FakeNetwork(self.machine, network, OVERHEAD)


class LayersFamily(WholeFamily):
    def profile(self, network: nn.Module) -> ProfiledNetwork:
        assert isinstance(network, Member)
        return FakeNetwork(self.machine, network, 0.0)


class FakeRuntime(Runtime):
    name = "fake"

    def family(self, network: nn.Module, example: torch.Tensor, layers: Sequence[LayerShape]) -> NetworkFamily:
        raise NotImplementedError

    def versions(self) -> dict[str, str]:
        return {"fake": "1.2"}


def no_module() -> nn.Module:
    raise NotImplementedError


DENSE = Plan((3, 16, 32), (16, 32, 10), no_module)


def kept(first: int, second: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (3, first, second), (first, second, 10)


def plans_for(machine: Machine, count: int = 25, offset: int = 0) -> list[Plan]:
    """Different networks: 25 of them make two batches of ten and one of five."""
    widths = [kept(2 + index % 5 * 3 + offset, 5 + index // 5 * 5 + offset) for index in range(count)]
    return [Plan(ins, outs, lambda ins=ins, outs=outs: machine.make(ins, outs)) for ins, outs in widths]  # type: ignore[misc]


def profiler_for(machine: Machine, seed: int = 0) -> Profiler:
    reference = replace(DENSE, make=machine.begin_batch)
    families = WholeFamily(machine), LayersFamily(machine)
    return Profiler(FakeRuntime(), *families, reference, LAYERS, Conditions("fake"), EFFORT, seed)


def measure(
    machine: Machine,
    *,
    journal: Path | None = None,
    seconds: float = 600.0,
    on_progress: OnProgress = lambda done, total, left: None,
) -> LatencyTable:
    profiler, plans = profiler_for(machine), plans_for(machine)
    batches = profiler.measure(plans, journal=journal, seconds=seconds, on_progress=on_progress)
    return build_table(batches, plans, profiler)


def assert_right(table: LatencyTable, rel: float = 0.01) -> None:
    """The table knows the times of all layers and networks that the machine takes when undisturbed."""
    for layer in LAYERS:
        entries = table.entries_of(layer)
        assert len(entries) >= 6
        for entry in entries:
            expected = layer_ms(layer, entry.shape.in_channels, entry.shape.out_channels)
            assert (entry.mean, entry.median, entry.p10) == pytest.approx((expected,) * 3, rel=rel)
    for network in table.networks:
        expected = Member(network.kept_in, network.kept_out).layer_times().sum() + OVERHEAD
        assert network.timing.p10 == pytest.approx(expected, rel=rel)


def assert_same(table: LatencyTable, other: LatencyTable) -> None:
    """Up to the digits of a journal, which are 10 ns."""
    assert [entry.shape for entry in table.entries] == [entry.shape for entry in other.entries]
    for first, second in zip(table.entries, other.entries, strict=True):
        assert first.n == second.n
        assert (first.mean, first.p10) == pytest.approx((second.mean, second.p10), abs=2e-5)
    assert (table.networks, table.reference) == (other.networks, other.reference)


def test_measures_each_network_once_and_the_reference_with_each_batch() -> None:
    machine = Machine()
    table = measure(machine)
    assert machine.batches == 3
    assert sorted(machine.made) == sorted(plan.kept_out for plan in plans_for(machine))
    assert len(table.networks) == 25 + 3
    assert sum(network.kept_out == DENSE.kept_out for network in table.networks) == 3


def test_recovers_the_layers_exactly_on_a_quiet_machine() -> None:
    table = measure(Machine())
    assert_right(table, rel=1e-9)
    dense = Member(DENSE.kept_in, DENSE.kept_out).layer_times().sum() + OVERHEAD
    assert table.reference == Timing(6, dense, dense, dense)
    assert (table.layers, table.conditions, table.host.versions) == (LAYERS, Conditions("fake"), {"fake": "1.2"})


def test_entries_are_of_nameless_layers_at_the_widths_measured() -> None:
    table = measure(Machine())
    shapes = {entry.shape for entry in table.entries}
    plans = [*plans_for(Machine()), DENSE]
    expected = {
        replace(layer.pruned(ins, outs), name="")
        for plan in plans
        for layer, ins, outs in zip(LAYERS, plan.kept_in, plan.kept_out, strict=True)
    }
    assert shapes == expected
    assert len(table.entries) == len(shapes)


def test_a_disturbed_batch_is_measured_again() -> None:
    machine = Machine({1: 1.6})
    table = measure(machine)
    assert machine.batches == 4
    assert_right(table)
    assert len(table.networks) == 25 + 3


def test_the_batch_that_is_measured_again_is_the_disturbed_one() -> None:
    machine = Machine({1: 1.6})
    measure(machine)
    assert machine.made[25:] == machine.made[10:20]


def test_without_time_left_the_disturbance_is_divided_out() -> None:
    machine = Machine({1: 1.6})
    table = measure(machine, seconds=0.0)
    assert machine.batches == 3
    assert_right(table)


def test_a_batch_that_stays_disturbed_is_not_measured_for_ever() -> None:
    machine = Machine({1: 1.6, 3: 1.9, 4: 1.9, 5: 1.9, 6: 1.9})
    table = measure(machine)
    assert machine.batches == 3 + 3
    assert_right(table)


@pytest.mark.parametrize(("first", "again"), [(1.6, 1.9), (1.9, 1.6)])
def test_the_less_disturbed_of_two_measurements_counts(first: float, again: float, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    machine = Machine(dict.fromkeys(range(1, 9), again) | {0: 1.0, 1: first, 2: 1.0})
    profiler, plans = profiler_for(machine), plans_for(machine)
    expected = min(first, again) * (Member(DENSE.kept_in, DENSE.kept_out).layer_times().sum() + OVERHEAD)
    assert profiler.measure(plans, journal=journal)[1].speed == pytest.approx(expected)
    assert profiler.measure(plans, journal=journal, seconds=0.0)[1].speed == pytest.approx(expected)


def test_a_slight_disturbance_is_divided_out_only() -> None:
    machine = Machine({0: 1.03, 2: 1.02})
    table = measure(machine)
    assert machine.batches == 3
    assert_right(table, rel=1e-9)


def test_the_first_batch_is_not_taken_for_undisturbed() -> None:
    machine = Machine({0: 1.6})
    assert_right(measure(machine), rel=1e-9)
    assert machine.batches == 4


@pytest.mark.parametrize("hiccup", [3, 5, 7])
def test_single_runs_that_are_disturbed_do_not_count(hiccup: int) -> None:
    assert_right(measure(Machine(hiccup=hiccup)))


def test_reports_progress() -> None:
    calls: list[tuple[int, int, float]] = []
    measure(Machine({1: 1.6}), on_progress=lambda done, total, left: calls.append((done, total, left)))
    assert [call[:2] for call in calls] == [(0, 25), (10, 25), (20, 25), (25, 25)]
    assert math.isnan(calls[0][2])
    assert min(calls[1][2], calls[2][2]) > 0.0
    assert calls[3][2] == 0.0


class InterruptedError_(Exception):
    """Stands for whatever ends a measurement early."""


def interrupted(journal: Path) -> Machine:
    """A machine on which two batches were measured before the end came."""

    def stop(done: int, total: int, left: float) -> None:
        if done == 20:
            raise InterruptedError_

    machine = Machine()
    with pytest.raises(InterruptedError_):
        measure(machine, journal=journal, on_progress=stop)
    assert machine.batches == 2
    return machine


def test_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    interrupted(journal)
    machine, calls = Machine(), list[tuple[int, int]]()
    table = measure(machine, journal=journal, on_progress=lambda done, total, left: calls.append((done, total)))
    assert (machine.batches, len(machine.made)) == (1, 5)
    assert calls == [(20, 25), (25, 25)]
    assert_same(table, measure(Machine()))
    assert_right(table, rel=1e-3)


def test_nothing_is_measured_when_all_stands_in_the_journal(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    first = measure(Machine({2: 1.6}), journal=journal)
    machine = Machine()
    assert_same(measure(machine, journal=journal), first)
    assert (machine.batches, machine.made) == (0, [])
    assert len(journal.read_text().splitlines()) == 3 + 1


@pytest.mark.parametrize("cut", [1, 50, 500])
def test_a_last_line_that_was_cut_off_is_measured_again(cut: int, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    measure(Machine(), journal=journal)
    journal.write_text(journal.read_text()[:-cut])
    machine = Machine()
    assert_same(measure(machine, journal=journal), measure(Machine()))
    assert (machine.batches, len(machine.made)) == (1, 5)
    assert [json.loads(line)["batch"] for line in journal.read_text().splitlines()] == [0, 1, 2]


def test_a_first_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.write_text('{"batch": 0, "samp')
    machine = Machine()
    assert_same(measure(machine, journal=journal), measure(Machine()))
    assert machine.batches == 3


@pytest.mark.parametrize(("count", "seed"), [(24, 0), (15, 0), (40, 0), (25, 1)])
def test_a_journal_of_other_networks_is_refused(count: int, seed: int, tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    measure(Machine(), journal=journal)
    machine = Machine()
    with pytest.raises(ValueError, match="begun for other") as caught:
        profiler_for(machine, seed).measure(plans_for(machine, count), journal=journal)
    assert str(caught.value) == f"{journal}: begun for other networks or conditions; delete it to measure anew"
    assert machine.batches == 0


def test_a_journal_of_as_many_other_networks_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    measure(Machine(), journal=journal)
    machine = Machine()
    with pytest.raises(ValueError, match="begun for other networks or conditions; delete it to measure anew"):
        profiler_for(machine).measure(plans_for(machine, offset=1), journal=journal)


def test_a_journal_of_the_same_widths_on_larger_images_is_refused(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    measure(Machine(), journal=journal)
    machine = Machine()
    larger = [replace(layer, input_size=(32, 32), output_size=(32, 32)) for layer in LAYERS]
    with pytest.raises(ValueError, match="begun for other networks or conditions; delete it to measure anew"):
        replace(profiler_for(machine), layers=larger).measure(plans_for(machine), journal=journal)


@pytest.mark.parametrize("conditions", [Conditions("fake", batch=64), Conditions("fake", threads=2)])
def test_a_journal_of_the_same_networks_under_other_conditions_is_refused(
    conditions: Conditions, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    measure(Machine(), journal=journal)
    machine = Machine()
    with pytest.raises(ValueError, match="begun for other networks or conditions; delete it to measure anew"):
        replace(profiler_for(machine), conditions=conditions).measure(plans_for(machine), journal=journal)
    assert machine.batches == 0


def test_a_damaged_line_of_the_journal_is_named(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    measure(Machine(), journal=journal)
    lines = journal.read_text().splitlines()
    for damage in ("{", "[]", '{"plans": "x"}', lines[1].replace('"rows"', '"row"')):
        journal.write_text("\n".join([lines[0], damage, *lines[2:]]) + "\n")
        with pytest.raises(ValueError, match=r"journal, line 2: damaged; delete the file to measure anew"):
            measure(Machine(), journal=journal)
