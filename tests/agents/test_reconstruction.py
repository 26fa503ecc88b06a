from __future__ import annotations

import pytest

from agents.reconstruction import Reconstruction
from amc_env.toy import ToyProblem
from tests.contracts.agent_contract import AgentContract, reported


class TestReconstruction(AgentContract):
    agent = Reconstruction()
    far = no_better = "one evaluation only"


class TestReconstructionOnMeasuredCurves(AgentContract):
    agent = Reconstruction(measured=True)
    far = no_better = "one feasible evaluation only"


@pytest.mark.parametrize("seed", range(5))
def test_one_evaluation_near_the_optimum(seed: int) -> None:
    """The error curves of the toy problem are exact: what is lost to it is one step of one layer or so."""
    problem = ToyProblem(6, seed=seed)
    (evaluation,) = reported(Reconstruction(), problem, 10)
    assert evaluation.feasible
    assert evaluation.error is not None
    assert evaluation.error <= problem.score(problem.best_widths()).error * 1.05


def test_without_a_budget_nothing_is_removed() -> None:
    problem = ToyProblem(3, budget={}, reward="error_macs")
    (evaluation,) = reported(Reconstruction(), problem, 1)
    assert evaluation.widths == problem.dense_widths
