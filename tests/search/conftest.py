"""Results of real searches on the toy problem, as a job would write them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import search.job
from agents.base import Agent
from agents.random_search import RandomSearch
from agents.uniform import Uniform
from amc_env.problem import Evaluation, PruningProblem
from amc_env.toy import ToyProblem
from hw.cost import COST_MODELS
from search.progress import OnProgress
from search.results import (
    BudgetRecord,
    DecisionRecord,
    DenseRecord,
    HistoryPoint,
    PolicyRecord,
    Results,
    SeriesRecord,
    SplitRecord,
    TrialRecord,
)
from search.trial import plan_trials, run_trial

ToyResults = Callable[..., Results]
Changed = Callable[..., Results]


@pytest.fixture
def toy_results() -> ToyResults:
    return make_results


@pytest.fixture
def not_classifying() -> Changed:
    return without_accuracies


@pytest.fixture
def evaluated() -> Changed:
    return with_evaluation


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials run in this process, one after the other; `test_tuner` runs them on Ray."""
    monkeypatch.setattr(search.job, "_search", run_here)


def run_here(job: search.job._Job, folder: Path, pending: list[str], on_progress: OnProgress) -> None:
    for trial in plan_trials(job.spec):
        if trial.name in pending:
            place = folder / "trials" / trial.name
            run_trial(job.spec, job.problem, trial.agent, trial.seed, place, on_progress)


def comparable(results: Results) -> Results:
    """All that must be the same in two runs of one job."""
    trials = tuple(
        trial.model_copy(
            update={
                "seconds": 0.0,
                "history": tuple(point.model_copy(update={"seconds": 0.0}) for point in trial.history),
            }
        )
        for trial in results.trials
    )
    return results.model_copy(update={"seconds": 0.0, "created": "", "trials": trials})


def make_results(
    problem: PruningProblem | None = None,
    *,
    agents: Sequence[Agent] = (RandomSearch(), Uniform()),
    seeds: Sequence[int] = (0, 1, 2),
    evaluations: int = 20,
) -> Results:
    problem = ToyProblem() if problem is None else problem
    trials = [
        run_toy_trial(problem, agent, seed, evaluations)
        for agent in agents
        for seed in (seeds[:1] if agent.deterministic else seeds)
    ]
    return Results(
        name="toy-half-macs",
        status="finished",
        spec={"version": 1, "name": "toy-half-macs", "budget": {"macs": "50%"}, "reward": problem.reward_form},
        spec_id="5f0c2a9b71d34e68",
        created="2025-01-31T12:00:00+00:00",
        seconds=sum(trial.seconds for trial in trials),
        dense=dense_record(problem),
        budgets=tuple(
            BudgetRecord(
                cost=budget.cost,
                limit=budget.limit,
                fraction=budget.limit / problem.dense_costs[budget.cost],
                unit=COST_MODELS[budget.cost]().unit,
            )
            for budget in problem.budgets
        ),
        decisions=tuple(
            DecisionRecord(
                name=decision.name,
                channels=decision.size,
                op=decision.layer.op,
                kernel=1,
                stride=1,
                macs=decision.layer.macs,
            )
            for decision in problem.decisions
        ),
        splits={
            "calibration": SplitRecord(images=500, source="train, 500 drawn with seed 0"),
            "search": SplitRecord(images=2000, source="test[0:2000]"),
            "test": SplitRecord(images=5000, source="test[5000:10000]"),
        },
        data_digest="9d5ed678fe57bcca610140957afab571",
        weights_digest="0cc175b9c0f1b6a831c399e269772661",
        trials=tuple(trials),
        versions={"amc-search": "0.1.0", "torch": "2.15.0"},
    )


def run_toy_trial(problem: PruningProblem, agent: Agent, seed: int, evaluations: int) -> TrialRecord:
    seen: list[Evaluation] = []
    best = agent.search(problem, max_evaluations=evaluations, seed=seed, on_evaluation=seen.append)
    history = []
    best_reward = -math.inf
    for evaluation in seen:
        best_reward = max(best_reward, evaluation.reward)
        history.append(
            HistoryPoint(
                widths=evaluation.widths,
                reward=evaluation.reward if evaluation.feasible else None,
                error=evaluation.error,
                accuracy=evaluation.accuracy,
                costs=dict(evaluation.costs),
                best_reward=best_reward if math.isfinite(best_reward) else None,
            )
        )
    return TrialRecord(
        agent=agent.label,
        kind=agent.kind,
        seed=seed,
        status="finished",
        error=None,
        evaluations=len(seen),
        distinct=len({evaluation.widths for evaluation in seen}),
        seconds=0.25 * len(seen),
        best=None if best is None else as_policy(problem, best),
        history=tuple(history),
        series=tuple(map(as_network, agent.series(problem, seen))),
    )


def as_network(kept: Evaluation) -> SeriesRecord:
    if kept.error is None:
        raise ValueError("expected an evaluation that was scored")
    return SeriesRecord(
        widths=kept.widths,
        costs=dict(kept.costs),
        search_error=kept.error,
        search_accuracy=kept.accuracy,
        feasible=kept.feasible,
    )


def as_policy(problem: PruningProblem, best: Evaluation) -> PolicyRecord:
    if best.error is None:
        raise ValueError("expected a feasible evaluation")
    return PolicyRecord(
        ratios=dict(zip(problem.names, best.ratios, strict=True)),
        widths=best.widths,
        costs=dict(best.costs),
        reward=best.reward,
        search_error=best.error,
        test_error=1 - harder(best.accuracy),
        search_accuracy=best.accuracy,
        test_accuracy=harder(best.accuracy),
    )


def dense_record(problem: PruningProblem) -> DenseRecord:
    score = problem.score(problem.dense_widths)
    test = harder(score.accuracy)
    return DenseRecord(
        costs=problem.dense_costs,
        search_error=score.error,
        test_error=1 - test,
        search_accuracy=score.accuracy,
        test_accuracy=test,
    )


def harder(search: float | None) -> float:
    """The toy problem has one closed form: its test split is a little harder by definition."""
    if search is None:
        raise ValueError("expected the score of a toy problem, which has an accuracy")
    return search * 0.97


def without_accuracies(results: Results) -> Results:
    """The same of a network that does not classify, with an objective of the user's own."""
    none = {"search_accuracy": None, "test_accuracy": None}
    trials = tuple(
        trial.model_copy(
            update={
                "best": trial.best and trial.best.model_copy(update=none),
                "history": tuple(point.model_copy(update={"accuracy": None}) for point in trial.history),
                "series": tuple(network.model_copy(update={"search_accuracy": None}) for network in trial.series),
            }
        )
        for trial in results.trials
    )
    dense = results.dense.model_copy(update=none)
    return with_evaluation(results.model_copy(update={"trials": trials, "dense": dense}), objective="metrics:boxes")


def with_evaluation(results: Results, **evaluation: object) -> Results:
    """The same under another evaluation section."""
    section = {"fidelity": "sequential", "images": 250, "objective": "top1", **evaluation}
    return results.model_copy(update={"spec": {**results.spec, "evaluation": section}})
