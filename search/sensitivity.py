"""Sensitivity curves of a network: each decision pruned alone, without a search and without a budget.

What stands in the folder is all there is, so that a measurement that was stopped goes on:

- `DIR/conditions.json`: what is measured; another network, data or evaluation needs another folder
- `DIR/evaluations.jsonl`: the journal, a line for each measurement
- `DIR/sensitivity.json`, `.csv`, `.html`: at the end
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from agents.sensitivity import changed, envelope, errors_alone, probe_plans, probe_widths
from amc_env.image_problem import ImageProblem
from amc_env.problem import Evaluation, PruningProblem, Widths
from amc_env.pruning.calibration import OnProgress as OnCalibration
from amc_env.splits import DataSplits
from amc_env.weights import weights_digest
from hw.files import write_atomically
from search.build import build_problem, load_data
from search.errors import UserError
from search.figures import error_text, is_top_k, objective_label, percent
from search.journal import Journal
from search.known import what_scores
from search.results import EvaluationRecord, HistoryPoint, Record
from search.spec_models import Spec

#: (measurements done, all, seconds left; NaN: unknown)
OnMeasurement = Callable[[int, int, float], None]
_MEASURED = ("network", "data", "pruning")  # the sections of a spec that change the curves; and of `evaluation` a part


class SensitivityError(UserError):
    """The curves cannot be measured as asked; the message says why."""


class CurvePoint(Record):
    """One decision at one width, all else dense; `envelope` is the running maximum of the error over falling width."""

    kept: int
    ratio: float
    error: float
    accuracy: float | None
    envelope: float


Units = Literal["channels", "weights"]


class Curve(Record):
    """The curve of a decision.

    Attributes:
        name: of the decision.
        channels: of the dense network; or its weights, as `units` says.
        points: by falling width, the dense network first.
    """

    name: str
    channels: int
    points: tuple[CurvePoint, ...]
    units: Units = "channels"

    def at(self, ratio: float) -> CurvePoint:
        """The point nearest to a ratio removed, the wider of two."""
        return min(self.points, key=lambda point: abs(point.kept - self.channels * (1 - ratio)))


class SensitivityRecord(Record):
    """`sensitivity.json`: all curves of a network, with what they were measured on.

    Attributes:
        ratios: that were asked for; a width is the nearest allowed one.
        seconds: of all measurements.
    """

    version: Literal[1] = 1
    name: str
    objective: str
    ratios: tuple[float, ...]
    curves: tuple[Curve, ...]
    seconds: float
    conditions: dict[str, Any]
    versions: dict[str, str]

    @property
    def dense(self) -> CurvePoint:
        """The dense network, the first point of every curve."""
        return self.curves[0].points[0]

    @property
    def shows_accuracy(self) -> bool:
        """Whether people are told the accuracy, where it says the same as the error."""
        return self.objective == "top1" and self.dense.accuracy is not None


def measure_sensitivity(
    spec: Spec,
    ratios: Sequence[float],
    folder: Path,
    on_calibration: OnCalibration = lambda done, layers: None,
    on_measurement: OnMeasurement = lambda done, total, left: None,
) -> SensitivityRecord:
    """Measure what the folder does not hold yet, and write the curves into it.

    Args:
        spec: of a job; budget, reward, agents and seeds do not matter.
        ratios: removed from each decision alone, in (0, 1).
        folder: new, empty, or of an earlier measurement of the same.
        on_calibration: called with the layers measured before the first evaluation, if any are.
        on_measurement: called after each.

    Raises:
        SensitivityError: network or data are not as the spec says, or the folder is of something else.
        JournalError: the journal is damaged or in use.
    """
    spec = _without_competition(spec)
    try:
        data = load_data(spec)
        problem = build_problem(spec, data)
        conditions = _conditions(spec, problem, data)
        _claim(folder, conditions)
        probes = [probe_widths(decision, ratios) for decision in problem.decisions]
        plans = [problem.dense_widths, *probe_plans(problem.dense_widths, probes)]
        with Journal(folder / "evaluations.jsonl", patience_s=1.0) as journal:
            if isinstance(problem, ImageProblem):
                problem.calibrate(on_calibration)
            measured = _measure(problem, plans, journal, on_measurement)
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise SensitivityError(str(error)) from error
    known = [measured[plan] for plan in plans]
    record = SensitivityRecord(
        name=spec.name,
        objective=spec.evaluation.objective,
        ratios=tuple(ratios),
        curves=make_curves({decision.name: decision.size for decision in problem.decisions}, known, _units(spec)),
        seconds=sum(entry.seconds for entry in known),
        conditions=conditions,
        versions={name: metadata.version(name) for name in ("amc-search", "torch", "numpy")},
    )
    write_atomically(folder / "sensitivity.json", record.model_dump_json(indent=1))
    write_atomically(folder / "sensitivity.csv", curves_csv(record.curves))
    return record


def make_curves(
    layers: Mapping[str, int], scored: Sequence[EvaluationRecord | HistoryPoint], units: Units = "channels"
) -> tuple[Curve, ...]:
    """The curves of those of the evaluations that prune one decision alone.

    Args:
        layers: name -> channels (or weights) of each decision, in the order of the widths.
        scored: evaluations of all images, among them the dense network's.
        units: which of the two.
    """
    dense = tuple(layers.values())
    found = {entry.widths: entry for entry in scored}
    errors = errors_alone(dense, ((widths, entry.error) for widths, entry in found.items()))
    curves = []
    for index, (name, channels) in enumerate(layers.items()):
        heights = envelope(errors[index])
        points = tuple(
            CurvePoint(
                kept=width,
                ratio=1 - width / channels,
                error=error,
                accuracy=found[changed(dense, index, width)].accuracy,
                envelope=heights[width],
            )
            for width, error in errors[index].items()
        )
        curves.append(Curve(name=name, channels=channels, points=points, units=units))
    return tuple(curves)


def _units(spec: Spec) -> Units:
    return "weights" if spec.pruning.of_weights else "channels"


def curves_csv(curves: Sequence[Curve]) -> str:
    """A row for each measurement; the dense network is a row of each layer."""
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(["layer", curves[0].units, *CurvePoint.model_fields])
    for curve in curves:
        rows.writerows([curve.name, curve.channels, *point.model_dump().values()] for point in curve.points)
    return file.getvalue()


def curves_table(record: SensitivityRecord) -> tuple[str, list[list[str]]]:
    """What the figures are, and the rows: headings, then each layer with its units and a figure for each ratio."""
    units = record.curves[0].units
    rows = [["layer", units, *(f"{ratio:g}" for ratio in record.ratios)]]
    for curve in record.curves:
        points = [curve.at(ratio) for ratio in record.ratios]
        rows.append([curve.name, str(curve.channels), *(figure(record, point).removesuffix(" %") for point in points)])
    said = "top-1 accuracy" if record.shows_accuracy else objective_label(record.objective)
    said += " in %" if is_top_k(record.objective) else ""
    where = f"on the search split, by the share of {units} removed from that layer alone (the nearest allowed)"
    return f"{said} {where}; dense {figure(record, record.dense)}", rows


def figure(record: SensitivityRecord, point: CurvePoint) -> str:
    """The accuracy of a point, or its error, as tables have it."""
    return percent(point.accuracy, 1) if record.shows_accuracy else error_text(record.objective, point.error)


def _measure(
    problem: PruningProblem, plans: Sequence[Widths], journal: Journal, on_measurement: OnMeasurement
) -> dict[Widths, EvaluationRecord]:
    """Score what the journal lacks; widths -> record of all."""
    known = {record.widths: record for record in journal.records}
    missing = [plan for plan in plans if plan not in known]
    done = len(plans) - len(missing)
    if done:
        on_measurement(done, len(plans), math.nan)
    started, count = time.monotonic(), len(known)
    last = started
    for number, evaluation in enumerate(problem.evaluate_many(missing), start=1):
        now = time.monotonic()
        record = _record(count + number - 1, evaluation, now - last)
        journal.append(record)
        known[evaluation.widths] = record
        last = now
        on_measurement(done + number, len(plans), (now - started) / number * (len(missing) - number))
    return known


def _record(index: int, evaluation: Evaluation, seconds: float) -> EvaluationRecord:
    return EvaluationRecord(
        index=index,
        widths=evaluation.widths,
        costs=dict(evaluation.costs),
        violation=evaluation.violation,
        error=evaluation.error,
        accuracy=evaluation.accuracy,
        reward=evaluation.reward,
        repeated=False,
        seconds=seconds,
    )


def _without_competition(spec: Spec) -> Spec:
    """Nothing but the error counts: no budget, and nothing is stopped early because it cannot win."""
    evaluation = spec.evaluation.model_copy(update={"stop_early": False})
    return spec.model_copy(update={"budget": {}, "reward": "error", "evaluation": evaluation})


def _conditions(spec: Spec, problem: PruningProblem, data: DataSplits | None) -> dict[str, Any]:
    content = spec.content()
    return {section: content[section] for section in _MEASURED} | {
        "evaluation": what_scores(content["evaluation"]),
        "data_digest": "" if data is None else data.digest,
        "weights_digest": weights_digest(problem.network) if isinstance(problem, ImageProblem) else "",
    }


def _claim(folder: Path, conditions: Mapping[str, Any]) -> None:
    """Make the folder ours, or see that it is and holds measurements of the same."""
    path, journal = folder / "conditions.json", folder / "evaluations.jsonl"
    if not path.exists() or not (journal.exists() and journal.stat().st_size):
        if folder.exists() and not path.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SensitivityError(f"{folder}: expected a new or empty folder, or one of an earlier measurement")
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(conditions, indent=1))
        return
    try:
        known = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise SensitivityError(f"{path} is damaged; delete the folder to measure anew") from error
    differing = [name for name, value in conditions.items() if known.get(name) != value]
    if differing:
        raise SensitivityError(
            f"{folder}: holds measurements of another {', '.join(differing)}; take another folder, or delete this one"
        )
