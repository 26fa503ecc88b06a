from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from agents.allocation import allocate
from agents.cma_es import CMAES
from amc_env.problem import Evaluation, Widths
from amc_env.toy import ToyProblem
from tests.contracts.agent_contract import AgentContract, reported


class TestCMAES(AgentContract):
    agent = CMAES()


class TestCMAESWithASmallPopulation(AgentContract):
    agent = CMAES(population=3, sigma=0.4)


class TestCMAESOnMeasuredCurves(AgentContract):
    agent = CMAES(measured=True)


class BatchProblem(ToyProblem):
    """Notes how many evaluations are asked for at once."""

    def __init__(self, decisions: int) -> None:
        super().__init__(decisions)
        self.batches: list[int] = []

    def evaluate_many(self, plans: Sequence[Widths], *, probe: bool = False) -> Iterator[Evaluation]:
        self.batches.append(len(plans))
        return super().evaluate_many(plans, probe=probe)


def test_begins_with_the_allocation_and_never_leaves_the_budget() -> None:
    problem = ToyProblem(6)
    history = reported(CMAES(), problem, 40)
    assert history[0].widths == allocate(problem, problem.reconstruction_errors())
    assert all(evaluation.feasible for evaluation in history)


@pytest.mark.parametrize(("evaluations", "batches"), [(1, []), (5, [4]), (10, [9]), (11, [9, 1]), (19, [9, 9])])
def test_a_generation_is_evaluated_at_once_and_the_last_cut_short(evaluations: int, batches: list[int]) -> None:
    """Six decisions: 4 + floor(3 ln 6) = 9 points."""
    problem = BatchProblem(6)
    assert len(reported(CMAES(), problem, evaluations)) == evaluations
    assert problem.batches == batches
