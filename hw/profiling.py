"""Measuring a latency table: networks of many widths, timed whole and layer by layer, side by side with the dense one.

Networks are measured in batches, each with the reference network among them. A batch in which the reference never ran
at its best speed was disturbed throughout: it is measured again, and what remains of the difference is divided out.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from hw.host import Conditions, describe_host
from hw.latency_table import Entry, LatencyTable, MeasuredNetwork
from hw.layers import LayerShape
from hw.runtimes.base import NetworkFamily, ProfiledNetwork, Runtime
from hw.timing import DISTURBED, SIDE_BY_SIDE, Effort, FloatArray, TimedNetwork, Timing, time_interleaved

_EFFORT = Effort(fewest=24, most=60)
_UNDISTURBED = 0.2  # share of a network's runs that count for its layers: the fastest
_KEPT_ROWS = 12
_SHORTEST = 1e-5  # milliseconds; a runtime's clock may show none at all

#: called with the networks measured, their number, and the seconds that are left, as far as one can tell
OnProgress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Plan:
    """A network to measure: channels of its convolutions and linear layers, and how to make it."""

    kept_in: tuple[int, ...]
    kept_out: tuple[int, ...]
    make: Callable[[], nn.Module]


@dataclass(frozen=True)
class _Sample:
    """One network of a batch: all its runs end to end, and the undisturbed ones layer by layer."""

    index: int
    total: Timing
    rows: FloatArray


@dataclass(frozen=True)
class _Batch:
    """Networks that were measured side by side; milliseconds as the clock showed them."""

    number: int
    reference: _Sample
    samples: tuple[_Sample, ...]

    @property
    def speed(self) -> float:
        return self.reference.total.p10


@dataclass
class Profiler:
    """Measures the networks of one family.

    Args:
        runtime: executes them.
        family: loads them; `layers_family` profiles them if the runtime itself shows no layers.
        reference: the network that is measured with each batch; the dense one.
        layers: its convolutions and linear layers.
        conditions: under which the runtime and the families execute.
        effort: for each network.
        seed: draws the order.
    """

    runtime: Runtime
    family: NetworkFamily
    layers_family: NetworkFamily
    reference: Plan
    layers: Sequence[LayerShape]
    conditions: Conditions
    effort: Effort = _EFFORT
    seed: int = 0

    def measure(
        self,
        plans: Sequence[Plan],
        *,
        journal: Path | None = None,
        seconds: float = 600.0,
        on_progress: OnProgress = lambda done, total, left: None,
    ) -> list[_Batch]:
        """Measure all plans once, and disturbed batches again while time is left.

        Args:
            plans: what to measure.
            journal: a file that grows with each batch; what stands in it is not measured again.
            seconds: time for measuring disturbed batches again; the first pass always ends.
            on_progress: called before each batch and at the end.
        """
        started = time.monotonic()
        order = np.random.default_rng(self.seed).permutation(len(plans))
        chunks = [order[first : first + SIDE_BY_SIDE].tolist() for first in range(0, len(plans), SIDE_BY_SIDE)]
        batches = {} if journal is None else _read_journal(journal, chunks, self._digest(plans))
        known = len(batches)
        for number, chunk in enumerate(chunks):
            if number not in batches:
                each = (time.monotonic() - started) / max(number - known, 1) if number > known else float("nan")
                on_progress(number * SIDE_BY_SIDE, len(plans), each * (len(chunks) - number))
                batches[number] = self._batch(number, chunk, plans, journal)
        retries = 0
        while time.monotonic() - started < seconds and retries < len(chunks):
            best = min(batch.speed for batch in batches.values())
            worst = max(batches.values(), key=lambda batch: batch.speed)
            if worst.speed <= DISTURBED * best:
                break
            again = self._batch(worst.number, chunks[worst.number], plans, journal)
            batches[worst.number] = min(worst, again, key=lambda batch: batch.speed)
            retries += 1
        on_progress(len(plans), len(plans), 0.0)
        return [batches[number] for number in range(len(chunks))]

    def _batch(self, number: int, chunk: Sequence[int], plans: Sequence[Plan], journal: Path | None) -> _Batch:
        rng = np.random.default_rng((self.seed, number))
        members = [self.reference.make(), *(plans[index].make() for index in chunk)]
        whole: list[TimedNetwork] = [self.family.load(member) for member in members]
        profiled: list[ProfiledNetwork] = [self.layers_family.profile(member) for member in members]
        times = time_interleaved([*whole, *profiled], self.effort, rng=rng, pause=self.runtime.pause)
        samples = [
            _Sample(index, Timing.of(total), _undisturbed(network.layer_times(), self.effort))
            for index, total, network in zip([-1, *chunk], times, profiled, strict=False)
        ]
        batch = _Batch(number, samples[0], tuple(samples[1:]))
        if journal is not None:
            with journal.open("a") as file:
                file.write(_line(batch, self._digest(plans)) + "\n")
        return batch

    def _digest(self, plans: Sequence[Plan]) -> str:
        """What a journal must have in common with a measurement that goes on from it."""
        widths = [(plan.kept_in, plan.kept_out) for plan in (self.reference, *plans)]
        shapes = [(layer, layer.followed_by) for layer in self.layers]
        identity = (widths, shapes, self.conditions, self.effort, self.seed)
        return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]


def build_table(batches: Sequence[_Batch], plans: Sequence[Plan], profiler: Profiler) -> LatencyTable:
    """The table of measured batches, brought to the speed of the least disturbed one; without a correction yet."""
    best = min(batches, key=lambda batch: batch.speed)
    fastest_layers = min(float(batch.reference.rows.sum(axis=1).mean()) for batch in batches)
    seen: dict[LayerShape, list[FloatArray]] = {}
    networks = []
    for batch in batches:
        slower = batch.reference.rows.sum(axis=1).mean() / fastest_layers
        for sample in (batch.reference, *batch.samples):
            plan = profiler.reference if sample.index < 0 else plans[sample.index]
            timing = sample.total.scaled(best.speed / batch.speed)
            networks.append(MeasuredNetwork(plan.kept_in, plan.kept_out, timing))
            for layer, kept_in, kept_out, column in zip(
                profiler.layers, plan.kept_in, plan.kept_out, sample.rows.T, strict=True
            ):
                shape = replace(layer.pruned(kept_in, kept_out), name="", owns_weights=True)
                seen.setdefault(shape, []).append(column / slower)
    return LatencyTable(
        conditions=profiler.conditions,
        host=describe_host(profiler.runtime.versions()),
        entries=tuple(_entry(shape, np.concatenate(columns)) for shape, columns in seen.items()),
        layers=tuple(profiler.layers),
        reference=best.reference.total,
        networks=tuple(networks),
    )


def _entry(shape: LayerShape, milliseconds: FloatArray) -> Entry:
    p10, median, p90 = np.percentile(milliseconds, (10, 50, 90))
    mean = max(float(milliseconds.mean()), _SHORTEST)
    return Entry(shape, len(milliseconds), mean, float(median), float(p10), float(p90))


def _undisturbed(rows: FloatArray, effort: Effort) -> FloatArray:
    """The fastest runs, without the untimed ones at the start of each visit being told apart: they are slow anyway."""
    count = max(3, min(_KEPT_ROWS, int(_UNDISTURBED * effort.most), len(rows)))
    fastest = np.argsort(rows.sum(axis=1), kind="stable")[:count]
    chosen: FloatArray = rows[fastest]
    return chosen


def _line(batch: _Batch, plans: str) -> str:
    def plain(sample: _Sample) -> dict[str, object]:
        total = sample.total
        timing = [total.n, total.median, total.p10, total.p90]
        return {"index": sample.index, "total": timing, "rows": np.round(sample.rows, 5).tolist()}

    parts = [plain(sample) for sample in (batch.reference, *batch.samples)]
    return json.dumps({"plans": plans, "batch": batch.number, "samples": parts})


def _read_journal(path: Path, chunks: Sequence[Sequence[int]], plans: str) -> dict[int, _Batch]:
    """The best measurement of each batch; a last line that was cut off is dropped."""
    batches: dict[int, _Batch] = {}
    for number, line in enumerate(_whole_lines(path), start=1):
        try:
            content = json.loads(line)
            samples = [
                _Sample(part["index"], Timing(*part["total"]), np.array(part["rows"])) for part in content["samples"]
            ]
            batch = _Batch(content["batch"], samples[0], tuple(samples[1:]))
        except (ValueError, TypeError, LookupError) as error:
            raise ValueError(f"{path}, line {number}: damaged; delete the file to measure anew") from error
        if content.get("plans") != plans or [sample.index for sample in batch.samples] != list(chunks[batch.number]):
            raise ValueError(f"{path}: begun for other networks or conditions; delete it to measure anew")
        batches[batch.number] = min(batch, batches.get(batch.number, batch), key=lambda b: b.speed)
    return batches


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    return whole.splitlines()
