"""Latency in a job: the table its trials search with, its winners timed, and the table corrected by what they showed.

In the job's folder: `latency.json` (the table), `latency.journal` (what was measured of it so far), and for each time
that a winner missed the budget `rounds/<n>/` with `refinement.json` and the trials of that round. Of single weights:
`sparse_latency.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np

from amc_env.budget import parse_limit
from amc_env.evaluation import NetworkProblem
from amc_env.fine_grained import WeightProblem
from hw.correction import left_out_predictions
from hw.files import write_atomically
from hw.host import RUNTIME_NAMES
from hw.latency_file import LatencyFileError, load_table, save_table
from hw.latency_table import LatencyTable, describe
from hw.layers import LayerShape
from hw.sparse.latency import SparseLatencyError, SparseLatencyTable
from search.errors import UserError
from search.latency import TableSize, Winner, build_latency_table, time_winners
from search.progress import LatencyProgress
from search.results import (
    LatencyRecord,
    RefinementRecord,
    StaircaseRecord,
    TimedPolicyRecord,
    TimingRecord,
    TrialRecord,
)
from search.spec_models import Spec

OnLatencyProgress = Callable[[LatencyProgress], None]
_STAIRCASES = 2
_SPARSE = "sparse_latency.json"


class LatencyError(UserError):
    """The latency table does not fit the spec; the message says how."""


def given_table(spec: Spec) -> LatencyTable | None:
    """The table that the spec names, checked against its conditions; None if it names none.

    Raises:
        LatencyError: it cannot be read, or was measured under other conditions.
    """
    if spec.table is None:
        return None
    table = _load(spec.table)
    if table.conditions.runtime in RUNTIME_NAMES and table.conditions != spec.latency.conditions:
        raise LatencyError(
            f"{spec.table}: measured with {table.conditions}, but the spec's section latency says "
            f"{spec.latency.conditions}; change the section, or build a table for it with: amc lut build"
        )
    return table


def job_table(folder: Path) -> LatencyTable | SparseLatencyTable | None:
    """The table of a job as its trials use it; None if it has none."""
    if (folder / _SPARSE).exists():
        return _load_sparse(folder / _SPARSE)
    path = folder / "latency.json"
    return _load(path) if path.exists() else None


def _load_sparse(path: Path) -> SparseLatencyTable:
    try:
        return SparseLatencyTable.load(path)
    except SparseLatencyError as error:
        raise LatencyError(str(error)) from error


def provide_sparse_table(
    spec: Spec, problem: WeightProblem, folder: Path, on_progress: OnLatencyProgress
) -> SparseLatencyTable:
    """The table of a job on single weights: kept in its folder, or measured now.

    Args:
        spec: says with how many threads and images.
        problem: the same without the budget on sparse latency.
        folder: the job's.
        on_progress: told of the layers measured.

    Raises:
        LatencyError: the table in the folder is damaged.
        ValueError: there are not so many images.
    """
    path = folder / _SPARSE
    if path.exists():
        return _load_sparse(path)
    table = problem.measure_latency(
        threads=spec.latency.threads,
        batch=spec.latency.batch,
        on_layer=lambda done, total: on_progress(LatencyProgress(done, total, unit="layers")),
    )
    table.save(path)
    return table


def _load(path: Path) -> LatencyTable:
    try:
        return load_table(path)
    except LatencyFileError as error:
        raise LatencyError(str(error)) from error


def provide_table(spec: Spec, problem: NetworkProblem, folder: Path, on_progress: OnLatencyProgress) -> LatencyTable:
    """The table of the job: kept in its folder, or given by the spec, or measured now.

    Args:
        spec: says how latency is measured.
        problem: the same without the budget on latency.
        folder: the job's.
        on_progress: told of the networks measured.

    Raises:
        LatencyError: as of `given_table`.
        RuntimeUnavailableError: the runtime cannot be used here or for this network.
    """
    path = folder / "latency.json"
    if path.exists():
        table = _load(path)
    else:
        table = given_table(spec) or build_latency_table(
            problem,
            spec.latency.conditions,
            TableSize(spec.latency.levels, spec.latency.random, spec.latency.seconds),
            journal=folder / "latency.journal",
            on_progress=lambda done, total, left: on_progress(
                LatencyProgress(done, total, left if np.isfinite(left) else None)
            ),
        )
        save_table(table, path)
        (folder / "latency.journal").unlink(missing_ok=True)
    return finish_refinement(folder, table, problem)


def limit_ms(spec: Spec, table: LatencyTable, problem: NetworkProblem) -> float:
    """The budget on latency in milliseconds, as the spec states it."""
    return parse_limit(LatencyTable.name, spec.budget[LatencyTable.name], _dense_ms(table, problem))


def time_policies(
    spec: Spec,
    problem: NetworkProblem,
    table: LatencyTable,
    trials: Sequence[TrialRecord],
    folder: Path,
    on_progress: OnLatencyProgress,
) -> LatencyRecord:
    """Time the best policy of each trial beside the dense network, in one interleaved run."""
    best = [(trial, trial.best) for trial in trials if trial.best is not None]
    record = LatencyRecord(
        conditions=str(table.conditions),
        host={"processor": table.host.processor, "cpus": str(table.host.cpus), "governor": table.host.governor}
        | dict(table.host.versions),
        measured=table.host.created,
        entries=len(table.entries),
        networks=len(table.networks),
        error_before=table.correction.before,
        error_after=table.correction.after,
        limit_ms=limit_ms(spec, table, problem),
        predicted_dense_ms=_dense_ms(table, problem),
        unmeasured=None,
        dense=None,
        dense_again=None,
        speed=None,
        policies=(),
        refinements=refinements(folder),
        checks=tuple(left_out_predictions(table)),
        staircases=tuple(_staircases(table, problem)),
    )
    if table.conditions.runtime not in RUNTIME_NAMES:
        return record.model_copy(
            update={"unmeasured": f"runtime {table.conditions.runtime} is not one of this machine"}
        )
    if not best:
        return record.model_copy(update={"unmeasured": "no feasible policy was found"})
    widths = list(dict.fromkeys(policy.widths for _, policy in best))
    on_progress(LatencyProgress(0, len(widths)))
    timed = time_winners(problem, table, widths)
    on_progress(LatencyProgress(len(widths), len(widths)))
    found = {winner.widths: winner for winner in timed.winners}
    return record.model_copy(
        update={
            "dense": TimingRecord(**asdict(timed.dense)),
            "dense_again": TimingRecord(**asdict(timed.again)),
            "speed": timed.speed,
            "policies": tuple(_timed(trial, found[policy.widths]) for trial, policy in best),
        }
    )


def refinements(folder: Path) -> tuple[RefinementRecord, ...]:
    """What the rounds before showed."""
    files = sorted((folder / "rounds").glob("*/refinement.json"), key=lambda file: int(file.parent.name))
    return tuple(RefinementRecord.model_validate_json(file.read_text()) for file in files)


def put_aside(folder: Path, missed: TimedPolicyRecord, table: LatencyTable) -> None:
    """Note down a winner that missed the budget; `finish_refinement` does what follows from it."""
    record = RefinementRecord(
        agent=missed.agent,
        seed=missed.seed,
        predicted_ms=missed.predicted_ms,
        measured_ms=missed.measured_ms,
        earlier=len(table.correction.refinements),
    )
    place = folder / "rounds" / str(1 + len(refinements(folder)))
    place.mkdir(parents=True, exist_ok=True)  # one without a note was interrupted here
    write_atomically(place / "refinement.json", record.model_dump_json(indent=1))


def finish_refinement(folder: Path, table: LatencyTable, problem: NetworkProblem) -> LatencyTable:
    """Correct the job's table by the last winner noted down, and put the trials of its round beside the note.

    What was done of it before an interruption is not done again.
    """
    known = refinements(folder)
    if not known:
        return table
    last = known[-1]
    if len(table.correction.refinements) == last.earlier:
        table = table.refined(last.predicted_ms, last.measured_ms, _dense_ms(table, problem))
        save_table(table, folder / "latency.json")
    place = folder / "rounds" / str(len(known)) / "trials"
    if not place.exists():
        (folder / "trials").replace(place)
        (folder / "results.json").unlink(missing_ok=True)
    return table


def earlier_journals(folder: Path, trial: str) -> list[Path]:
    """Journals of the same trial in the rounds before: what it scored need not be scored again."""
    rounds = sorted((folder / "rounds").glob("*"), key=lambda path: int(path.name))
    return [path for path in (entry / "trials" / trial / "evaluations.jsonl" for entry in rounds) if path.exists()]


def _dense_ms(table: LatencyTable, problem: NetworkProblem) -> float:
    return table.bind(problem.layers)(*problem.channels.channels(problem.dense_widths))


def _timed(trial: TrialRecord, winner: Winner) -> TimedPolicyRecord:
    return TimedPolicyRecord(
        agent=trial.agent,
        seed=trial.seed,
        widths=winner.widths,
        predicted_ms=winner.predicted_ms,
        measured_ms=winner.measured_ms,
        timing=TimingRecord(**asdict(winner.timing)),
        speedup=winner.speedup,
        speedup_low=winner.speedup_range[0],
        speedup_high=winner.speedup_range[1],
    )


def _staircases(table: LatencyTable, problem: NetworkProblem) -> list[StaircaseRecord]:
    """The layers that take most time, over the width that varies, with the other one dense."""
    layers = [layer for layer in problem.layers if layer.op in ("conv", "linear")]
    costs = table.layer_costs(layers)
    found: dict[str, StaircaseRecord] = {}
    for index in np.argsort(-costs):
        record = _staircase(table, layers[index])
        if record is not None and record.described not in found:
            found[record.described] = record
    return list(found.values())[:_STAIRCASES]


def _staircase(table: LatencyTable, layer: LayerShape) -> StaircaseRecord | None:
    surface = table.surface(layer)
    tied = layer.groups > 1
    axis: Literal["input", "output"] = "output" if len(surface.knots_out) > 2 or tied else "input"
    knots = surface.knots_out if axis == "output" else surface.knots_in
    if len(knots) < 3:
        return None
    entries = []
    for entry in table.entries_of(layer):
        ins, outs = entry.shape.in_channels, entry.shape.out_channels
        across, width = (ins, outs) if axis == "output" else (outs, ins)
        if tied or across == (layer.in_channels if axis == "output" else layer.out_channels):
            entries.append((width, entry.mean, entry.p10, entry.p90))
    widths = np.arange(int(knots[0]), int(knots[-1]) + 1, layer.out_channels // layer.groups if tied else 1)
    curve = [
        (int(width), surface(int(width) if tied else layer.in_channels, int(width)))
        if axis == "output"
        else (int(width), surface(int(width), layer.out_channels))
        for width in widths
    ]
    return StaircaseRecord(
        layer=layer.name, described=describe(layer), axis=axis, entries=tuple(sorted(entries)), curve=tuple(curve)
    )
