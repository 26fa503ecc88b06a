"""What other jobs have evaluated of the same problem, so that it is not evaluated again.

`known.jsonl`, in the folder of a job that was given such evaluations or anywhere else: first the problem, a line by
`Header`, then one line by `KnownRecord` for each plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from amc_env.problem import PruningProblem, Score, Widths
from hw.cost import SPARSE_LATENCY
from hw.files import write_atomically
from hw.latency_table import LatencyTable
from search.errors import UserError
from search.results import DecisionRecord, Record, Results
from search.spec_models import Spec

FILE = "known.jsonl"


class KnownError(UserError):
    """Evaluations that cannot be taken over; the message says why."""


class Header(Record):
    """Of which problem the evaluations are.

    Attributes:
        problem: hashes of what decides a score, by name.
    """

    version: Literal[1] = 1
    problem: dict[str, str]


class KnownRecord(Record):
    """The score of a plan, and the seconds that it took when it was made."""

    widths: tuple[int, ...]
    error: float
    accuracy: float | None
    seconds: float


@dataclass(frozen=True)
class Known:
    """Evaluations of one problem, by their widths.

    Attributes:
        problem: as of `Header`.
    """

    problem: Mapping[str, str]
    records: Mapping[Widths, KnownRecord]

    def text(self) -> str:
        """What the file holds."""
        lines = [Header(problem=dict(self.problem)), *self.records.values()]
        return "".join(f"{line.model_dump_json()}\n" for line in lines)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_atomically(path, self.text())

    def tell(self, problem: PruningProblem) -> None:
        """These plans the problem does not score any more."""
        for widths, record in self.records.items():
            problem.memo[widths] = Score(record.error, record.accuracy)

    def seconds(self, widths: Widths) -> float:
        """What the evaluation of these widths took; 0 if it is not known."""
        return self.records[widths].seconds if widths in self.records else 0.0


def known_of_job(results: Results) -> Known:
    """What the trials of a job have evaluated to the end, as far as they have come."""
    records: dict[Widths, KnownRecord] = {}
    for trial in results.trials:
        before = 0.0
        for point in trial.history:
            took, before = (point.seconds or 0.0) - before, point.seconds or 0.0
            if point.error is not None and not point.stopped_early:
                made = KnownRecord(
                    widths=point.widths, error=point.error, accuracy=point.accuracy, seconds=round(took, 3)
                )
                records.setdefault(point.widths, made)
    return Known(problem_of(results), records)


def load_known(path: Path) -> Known:
    """Read a file.

    Raises:
        KnownError: there is none, or it is damaged.
    """
    try:
        first, *rest = path.read_bytes().splitlines()
        header = Header.model_validate_json(first)
        records = [KnownRecord.model_validate_json(line) for line in rest]
    except OSError as error:
        raise KnownError(f"{path}: expected a job's folder, or a file {FILE} of one: {error.strerror}") from error
    except (ValidationError, ValueError) as error:
        raise KnownError(f"{path}: damaged, or not a file {FILE}; delete it, or take the job that made it") from error
    return Known(header.problem, {record.widths: record for record in records})


def join_known(problem: Mapping[str, str], sources: Iterable[tuple[Path, Known]]) -> Known:
    """All that is known of a problem; of a plan that several know, the first.

    Raises:
        KnownError: a source is of another problem.
    """
    records: dict[Widths, KnownRecord] = {}
    for path, known in sources:
        different = [name for name in {**problem, **known.problem} if known.problem.get(name) != problem.get(name)]
        if different:
            raise KnownError(
                f"{path}: its evaluations are of another problem, which differs in: {', '.join(different)}; expected a "
                f"job whose scores are those of this one"
            )
        records = {**known.records, **records}
    return Known(problem, records)


def problem_of(results: Results) -> dict[str, str]:
    """As of `Header`."""
    spec, release = results.spec, results.versions["amc-search"]
    return _hashed(spec, results.decisions, results.data_digest, results.weights_digest, release)


def problem_of_spec(
    spec: Spec, decisions: Sequence[DecisionRecord], identity: Mapping[str, str], release: str
) -> dict[str, str]:
    """As of `Header`, of a job that has not begun.

    Args:
        spec, decisions: the job's.
        identity: its `data_digest` and `weights_digest`.
        release: of this package.

    Raises:
        KnownError: a score may follow from more than can be told before the job.
    """
    evaluation, given = spec.evaluation, "so no earlier evaluations can be taken over; leave out --known"
    if evaluation.hard_images is not None and {LatencyTable.name, SPARSE_LATENCY} & set(spec.limits):
        raise KnownError(
            f"evaluation.hard_images: the images are chosen by a plan at the budget, which on latency depends on what "
            f"is measured, {given}, or hard_images"
        )
    if evaluation.stop_early:
        raise KnownError(
            f"evaluation.stop_early: how far a plan is scored depends on those before it, {given}, or stop_early"
        )
    if ":" in evaluation.objective:
        raise KnownError(
            f"evaluation.objective {evaluation.objective!r}: nobody knows whether a function of one's own still is "
            f"what it was, {given}"
        )
    return _hashed(spec.content(), decisions, identity["data_digest"], identity["weights_digest"], release)


def _hashed(
    spec: Mapping[str, Any], decisions: Sequence[DecisionRecord], data: str, weights: str, release: str
) -> dict[str, str]:
    evaluation = what_scores(spec.get("evaluation") or {})
    parts = {
        "data": data,
        "network": (weights or spec.get("network"), decisions),
        "pruning": spec.get("pruning"),
        "evaluation": evaluation,
        "budget": spec.get("budget") if evaluation.get("hard_images") else None,
        "release": release,
    }
    if spec.get("storage"):  # a codebook changes the weights
        parts["storage"] = spec["storage"]
    return {name: hashlib.sha256(_canonical(part)).hexdigest() for name, part in parts.items()}


def what_scores(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Of a spec's section `evaluation`, what the scores of a search follow from; the rest is of the final network."""
    return {name: value for name, value in evaluation.items() if name != "block_epochs"}


def _canonical(part: object) -> bytes:
    return json.dumps(to_jsonable_python(part), sort_keys=True).encode()
