"""What every agent must do. A test inherits it in one line: `class TestMine(AgentContract): agent = Mine()`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from agents.base import Agent
from agents.registry import AGENTS, AnyAgent
from agents.uniform import Uniform
from amc_env.problem import Evaluation, PruningProblem, Score, Widths
from amc_env.toy import ToyProblem

TWO_BUDGETS = {"macs": "50%", "size": "70%"}


class CountingProblem(ToyProblem):
    """Counts evaluations, repeated widths included."""

    count = 0

    def evaluate_widths(self, widths: Widths, *, probe: bool = False) -> Evaluation:
        self.count += 1
        return super().evaluate_widths(widths, probe=probe)


def reported(agent: Agent, problem: PruningProblem, evaluations: int, seed: int = 0) -> list[Evaluation]:
    """All evaluations of a search, in order."""
    history: list[Evaluation] = []
    agent.search(problem, max_evaluations=evaluations, seed=seed, on_evaluation=history.append)
    return history


def regret(agent: Agent, problem: ToyProblem, evaluations: int, seed: int) -> float:
    """How far the error of the best plan found lies above the least there is; 1 if nothing feasible was found."""
    best = agent.search(problem, max_evaluations=evaluations, seed=seed, on_evaluation=lambda _: None)
    return best.error - problem.score(problem.best_widths()).error if best and best.error is not None else 1.0


def affordable(agent: Agent, problem: PruningProblem, evaluations: int) -> bool:
    """Whether the agent takes so few evaluations; one that does not must say so from `search` as well."""
    try:
        agent.check(problem, evaluations)
    except ValueError as refusal:
        with pytest.raises(ValueError, match=re.escape(str(refusal))):
            agent.search(problem, max_evaluations=evaluations, seed=0, on_evaluation=lambda _: None)
        return False
    return True


class AgentContract:
    """Inherit and set `agent`. An agent may refuse, by `check`, what cannot work; what it begins must end well.

    Attributes:
        agent: what is tested, with settings under which a search of 12 evaluations is quick.
        far: why it need not come near the optimum in 60 evaluations; empty: it must.
        no_better: why it need not beat the uniform baseline with them; empty: it must.
    """

    agent: ClassVar[Agent]
    far: ClassVar[str] = ""
    no_better: ClassVar[str] = ""

    @pytest.mark.parametrize("evaluations", [1, 2, 12])
    def test_returns_the_best_feasible_of_those_reported(self, evaluations: int) -> None:
        problem, history = CountingProblem(4), list[Evaluation]()
        if not affordable(self.agent, problem, evaluations):
            return
        best = self.agent.search(problem, max_evaluations=evaluations, seed=0, on_evaluation=history.append)
        assert 1 <= len(history) == problem.count <= evaluations
        feasible = [evaluation for evaluation in history if evaluation.feasible]
        assert best is (max(feasible, key=lambda evaluation: evaluation.reward) if feasible else None)

    def test_evaluates_nothing_when_told_so(self) -> None:
        problem = CountingProblem(4)
        assert self.agent.search(problem, max_evaluations=0, seed=0, on_evaluation=lambda _: None) is None
        assert problem.count == 0

    @pytest.mark.parametrize(
        "problem",
        [
            ToyProblem(1),
            ToyProblem(2, channels=2),
            ToyProblem(25, channels=8),
            ToyProblem(5, budget=TWO_BUDGETS),
            ToyProblem(5, budget={}, reward="error_macs"),
        ],
        ids=["one decision", "two decisions", "many decisions", "two budgets", "no budget, error_macs"],
    )
    def test_works_on(self, problem: ToyProblem) -> None:
        evaluations = next(count for count in (8, 60) if affordable(self.agent, problem, count))
        best = self.agent.search(problem, max_evaluations=evaluations, seed=0, on_evaluation=lambda _: None)
        assert best is not None
        assert best == problem.evaluate_widths(best.widths)

    def test_keeps_a_series_of_networks_that_it_scored(self) -> None:
        problem = ToyProblem(4)
        history = reported(self.agent, problem, 12)
        series = self.agent.series(problem, history)
        assert all(evaluation in history and evaluation.error is not None for evaluation in series)
        costs = [evaluation.costs["macs"] for evaluation in series]
        assert costs == sorted(costs, reverse=True)

    def test_says_whether_it_asks_for_several_evaluations_at_once(self) -> None:
        problem, asked = ToyProblem(4), [0]

        def scorer(plans: Sequence[Widths]) -> Iterator[Score]:
            asked.append(len(plans))
            return map(problem.score, plans)

        problem.scorer = scorer
        reported(self.agent, problem, next(count for count in (12, 60) if affordable(self.agent, problem, count)))
        assert (max(asked) > 1) == self.agent.evaluates_many

    def test_the_same_seed_gives_the_same_evaluations(self) -> None:
        first = reported(self.agent, ToyProblem(4), 12)
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002 - a trial must not depend on what ran before it in the process
        assert reported(self.agent, ToyProblem(4), 12) == first

    def test_answers_from_the_memo_change_nothing(self) -> None:
        fresh = ToyProblem(4)
        first = reported(self.agent, fresh, 12)
        resumed = ToyProblem(4)
        resumed.memo.update(fresh.memo)
        assert reported(self.agent, resumed, 12) == first

    def test_another_seed_differs_unless_deterministic(self) -> None:
        same = reported(self.agent, ToyProblem(4), 12, seed=1) == reported(self.agent, ToyProblem(4), 12, seed=2)
        assert same == self.agent.deterministic

    def test_never_changes_the_problem(self) -> None:
        problem, untouched = ToyProblem(4), ToyProblem(4)
        reported(self.agent, problem, 12)
        for name in ("decisions", "layers", "dense_widths", "smallest_widths", "dense_costs", "budgets", "reward_form"):
            assert getattr(problem, name) == getattr(untouched, name)
        assert problem.memo == {widths: untouched.score(widths) for widths in problem.memo}

    def test_settings_survive_json(self) -> None:
        assert AGENTS[self.agent.kind] is type(self.agent)
        assert TypeAdapter[Agent](AnyAgent).validate_json(self.agent.model_dump_json()) == self.agent

    def test_an_unknown_key_is_refused_by_name(self) -> None:
        with pytest.raises(ValidationError, match=r"no_such_setting\n  Extra inputs are not permitted"):
            type(self.agent).model_validate({"kind": self.agent.kind, "no_such_setting": 1})

    def test_finds_the_only_decision(self) -> None:
        """One decision: the widest that the budget allows, which 12 evaluations at 16 widths must find."""
        assert regret(self.agent, ToyProblem(1), 12, seed=0) == pytest.approx(0.0)

    def test_comes_near_the_optimum(self) -> None:
        """Two decisions, 60 evaluations: regret at most 0.025 in at least 4 of 5 seeds.

        The seeds are fixed, so a failure is a change of the agent or of the arithmetic beneath it, not chance. An
        agent that succeeds with probability 0.95 per seed would fail with 2.3 % of all sets of five seeds.
        """
        if self.far:
            pytest.skip(self.far)
        regrets = [regret(self.agent, ToyProblem(2, seed=seed), 60, seed) for seed in range(5)]
        assert sum(value <= 0.025 for value in regrets) >= 4, regrets

    def test_beats_uniform(self) -> None:
        """Six decisions, 60 evaluations: better than the uniform baseline in at least 4 of 5 seeds."""
        if self.no_better:
            pytest.skip(self.no_better)
        wins = 0
        for seed in range(5):
            problem = ToyProblem(6, seed=seed)
            wins += regret(self.agent, problem, 60, seed) < regret(Uniform(), problem, 1, seed)
        assert wins >= 4
