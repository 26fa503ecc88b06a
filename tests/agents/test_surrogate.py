from __future__ import annotations

import numpy as np
import pytest

from agents.allocation import allocate
from agents.surrogate import SurrogateSearch, _expected_improvement
from amc_env.toy import ToyProblem
from tests.contracts.agent_contract import AgentContract, reported


class TestSurrogateSearch(AgentContract):
    agent = SurrogateSearch(candidates=20)


class TestSurrogateSearchOnMeasuredCurves(AgentContract):
    agent = SurrogateSearch(candidates=20, measured=True)


def test_begins_with_the_allocation_and_evaluates_nothing_twice() -> None:
    problem = ToyProblem(6)
    history = reported(SurrogateSearch(candidates=20), problem, 30)
    assert history[0].widths == allocate(problem, problem.reconstruction_errors())
    assert len({evaluation.widths for evaluation in history}) == 30
    assert all(evaluation.feasible for evaluation in history)


@pytest.mark.parametrize(
    ("mean", "deviation", "expected"),
    [(0.0, 1.0, 0.3989422804), (1.0, 1.0, 1.0833154706), (-1.0, 1.0, 0.0833154706), (2.0, 0.0, 2.0), (-2.0, 0.0, 0.0)],
)
def test_expected_improvement(mean: float, deviation: float, expected: float) -> None:
    """phi(0); 1 * Phi(1) + phi(1); the same less 1; and what is certain."""
    found = _expected_improvement(np.array([mean]), np.array([deviation]), 0.0)
    assert found[0] == pytest.approx(expected, abs=1e-9)
