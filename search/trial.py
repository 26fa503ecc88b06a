"""One agent with one seed: run, journaled, resumable.

A trial that was interrupted runs again from its beginning with the same seed. What its journal holds is answered at
once, so the agent comes to the same state in the time of its own computations, and goes on from there.
"""

from __future__ import annotations

import base64
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch

from agents.base import Agent
from amc_env.problem import Evaluation, PruningProblem, Score, Widths
from hw.files import write_atomically
from search.build import measure_test
from search.journal import Journal, JournalError, read_journal
from search.known import FILE as KNOWN
from search.known import Known, load_known
from search.latency_job import earlier_journals
from search.progress import OnProgress, TrialProgress, TrialState
from search.results import EvaluationRecord, HistoryPoint, PolicyRecord, SeriesRecord, TrialRecord, TrialStatus
from search.spec_models import Spec


@dataclass(frozen=True)
class PlannedTrial:
    """An agent and a seed, and the name of the folder in which they run."""

    agent: Agent
    seed: int

    @property
    def name(self) -> str:
        return f"{self.agent.label}-seed{self.seed}"


def plan_trials(spec: Spec) -> tuple[PlannedTrial, ...]:
    """All trials of a job; an agent to which the seed means nothing runs once."""
    return tuple(
        PlannedTrial(agent, seed)
        for agent in spec.agents
        for seed in (spec.seeds[:1] if agent.deterministic else spec.seeds)
    )


def run_trial(
    spec: Spec, problem: PruningProblem, agent: Agent, seed: int, folder: Path, on_progress: OnProgress
) -> TrialRecord:
    """Run a trial, or go on with it, in its folder; one that is finished is only read.

    Any error on the way makes it a failed trial, told in `error.txt`, that may be run again. `result.json` is there
    if and only if the trial is finished. The process id stands in `pid`.
    """
    if (folder / "result.json").exists():
        return read_trial(agent, seed, folder)
    torch.set_num_threads(spec.resources.threads_per_trial)
    (folder / "pid").write_text(f"{os.getpid()}\n")
    (folder / "error.txt").unlink(missing_ok=True)
    try:
        with Journal(folder / "evaluations.jsonl") as journal:
            recorder = _Recorder(spec.evaluations, problem, journal, PlannedTrial(agent, seed).name, on_progress)
            best = agent.search(problem, max_evaluations=spec.evaluations, seed=seed, on_evaluation=recorder)
            recorder.check_complete()
            record = _record(agent, seed, "finished", recorder.records, seconds=recorder.seconds)
            test = cache(partial(measure_test, problem))  # the best of a front is in its series too
            found = {
                "best": None if best is None else _measure(problem, best, test),
                "series": tuple(
                    _kept(each, agent.series_budget(problem, each), test)
                    for each in agent.series(problem, recorder.evaluations)
                ),
            }
            record = record.model_copy(update=found)
    except Exception:  # noqa: BLE001 - whatever an agent does wrong is its trial's failure, not the job's
        write_atomically(folder / "error.txt", traceback.format_exc())
        return read_trial(agent, seed, folder)
    write_atomically(folder / "result.json", record.model_dump_json(indent=1))
    return record


def read_trial(agent: Agent, seed: int, folder: Path) -> TrialRecord:
    """What is known of a trial from its folder: its result, or how far it came before it failed or was interrupted."""
    if (folder / "result.json").exists():
        return TrialRecord.model_validate_json((folder / "result.json").read_text())
    error = (folder / "error.txt").read_text() if (folder / "error.txt").exists() else None
    try:
        records = read_journal(folder / "evaluations.jsonl")
    except JournalError as damage:
        return _record(agent, seed, "failed", (), error=str(damage))
    return _record(agent, seed, "interrupted" if error is None else "failed", records, error=error)


class _Recorder:
    """Takes each evaluation of the agent: journals a new one, and compares a known one with the journal."""

    def __init__(
        self, limit: int, problem: PruningProblem, journal: Journal, trial: str, on_progress: OnProgress
    ) -> None:
        self._limit, self._problem, self._journal = limit, problem, journal
        self._trial, self._on_progress = trial, on_progress
        self._known = journal.records
        job = journal.path.resolve().parents[2]
        self._given = load_known(job / KNOWN) if (job / KNOWN).exists() else Known({}, {})
        self._given.tell(problem)
        for earlier in earlier_journals(job, journal.path.parent.name):
            # what was given up there was no better than a best that may hold the budget no more
            _remember(problem, [record for record in read_journal(earlier) if not record.stopped_early])
        self._met: set[tuple[int, ...]] = set()
        self._best: float | None = None
        self._count = 0
        self._last = time.monotonic()
        self.records = list(self._known)
        self.evaluations: list[Evaluation] = []
        _remember(problem, self._known)
        self._report("running")

    @property
    def seconds(self) -> float:
        """Time of all evaluations and of what the agent did between them, over all attempts.

        Evaluations that other jobs made count as long as they took there.
        """
        return sum(record.seconds for record in self.records) + time.monotonic() - self._last

    def __call__(self, evaluation: Evaluation) -> None:
        if self._count == self._limit:
            raise RuntimeError(f"the agent made more than the {self._limit} evaluations that the spec allows")
        if self._count < len(self._known):
            self._compare(evaluation, self._known[self._count])
        else:
            self._append(evaluation)
        self._met.add(evaluation.widths)
        self.evaluations.append(evaluation)
        self._count += 1
        self._last = time.monotonic()
        if self._count >= len(self._known):
            self._report("running")

    def check_complete(self) -> None:
        """A resumed agent must come to all evaluations of its journal."""
        if self._count < len(self._known):
            raise JournalError(
                f"{self._journal.path}: holds {len(self._known)} evaluations, but the agent ended after {self._count} "
                f"of them: it is not deterministic, or code or data have changed since. Delete the trial's folder to "
                f"run it anew"
            )

    def _compare(self, evaluation: Evaluation, known: EvaluationRecord) -> None:
        if evaluation.widths != known.widths:
            raise JournalError(
                f"{self._journal.path} line {known.index + 1}: the journal has widths {list(known.widths)}, the agent "
                f"now chose {list(evaluation.widths)}: it is not deterministic, or code or data have changed since. "
                f"Delete the trial's folder to run it anew"
            )

    def _append(self, evaluation: Evaluation) -> None:
        repeated, seconds = evaluation.widths in self._met, time.monotonic() - self._last
        record = EvaluationRecord(
            index=self._count,
            widths=evaluation.widths,
            costs=dict(evaluation.costs),
            violation=evaluation.violation,
            error=evaluation.error,
            accuracy=evaluation.accuracy,
            reward=evaluation.reward if evaluation.feasible else None,
            fraction=evaluation.fraction,
            repeated=repeated,
            seconds=seconds if repeated else max(seconds, self._given.seconds(evaluation.widths)),
        )
        self._journal.append(record)
        self.records.append(record)

    def _report(self, state: TrialState) -> None:
        best = max((record.reward for record in self.records if record.reward is not None), default=None)
        seconds = sum(record.seconds for record in self.records)
        self._on_progress(TrialProgress(self._trial, state, len(self.records), best, seconds))


def _remember(problem: PruningProblem, records: Sequence[EvaluationRecord]) -> None:
    """What was scored is not scored again."""
    for known in records:
        if known.error is not None:
            problem.memo[known.widths] = Score(known.error, known.accuracy, known.fraction)


def _measure(problem: PruningProblem, best: Evaluation, measure: Callable[[Widths], Score]) -> PolicyRecord:
    """All that is known of the winner; the only time a trial looks at the test split."""
    if best.error is None:
        raise ValueError("the agent returned an evaluation that violates the budget; expected a feasible one or None")
    test = measure(best.widths)
    return PolicyRecord(
        ratios=dict(problem.policy(best.ratios)),
        widths=best.widths,
        costs=dict(best.costs),
        reward=best.reward,
        search_error=best.error,
        test_error=test.error,
        search_accuracy=best.accuracy,
        test_accuracy=test.accuracy,
        test_correct=None if test.correct is None else base64.b64encode(test.correct).decode(),
    )


def _kept(evaluation: Evaluation, budget: float | None, measure: Callable[[Widths], Score]) -> SeriesRecord:
    if evaluation.error is None:
        raise ValueError(f"the agent kept widths {list(evaluation.widths)} in its series, which were never scored")
    test = None if budget is None else measure(evaluation.widths)
    return SeriesRecord(
        widths=evaluation.widths,
        costs=dict(evaluation.costs),
        search_error=evaluation.error,
        search_accuracy=evaluation.accuracy,
        feasible=budget is not None or evaluation.feasible,
        budget=budget,
        test_error=None if test is None else test.error,
        test_accuracy=None if test is None else test.accuracy,
    )


def _record(
    agent: Agent,
    seed: int,
    status: TrialStatus,
    records: Sequence[EvaluationRecord],
    *,
    error: str | None = None,
    seconds: float | None = None,
) -> TrialRecord:
    history = []
    best: float | None = None
    spent = 0.0
    for record in records:
        spent += record.seconds
        if record.reward is not None and (best is None or record.reward > best):
            best = record.reward
        history.append(
            HistoryPoint(
                widths=record.widths,
                reward=record.reward,
                error=record.error,
                accuracy=record.accuracy,
                costs=record.costs,
                best_reward=best,
                stopped_early=record.stopped_early,
                seconds=spent,
            )
        )
    return TrialRecord(
        agent=agent.label,
        kind=agent.kind,
        seed=seed,
        status=status,
        error=error,
        evaluations=len(records),
        distinct=sum(not record.repeated for record in records),
        seconds=sum(record.seconds for record in records) if seconds is None else seconds,
        best=None,
        history=tuple(history),
    )
