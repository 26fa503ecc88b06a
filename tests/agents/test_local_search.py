from __future__ import annotations

import pytest
from pydantic import ValidationError

from agents.local_search import LocalSearch
from agents.reconstruction import Reconstruction
from amc_env.toy import ToyProblem
from tests.contracts.agent_contract import AgentContract, regret, reported


class TestLocalSearch(AgentContract):
    agent = LocalSearch()


class TestLocalSearchOnMeasuredCurves(AgentContract):
    agent = LocalSearch(measured=True)


@pytest.mark.parametrize("seed", range(3))
def test_starts_where_the_reconstruction_agent_ends_and_evaluates_nothing_twice(seed: int) -> None:
    problem = ToyProblem(6, seed=seed)
    history = reported(LocalSearch(), problem, 40, seed)
    assert history[0] == reported(Reconstruction(), problem, 1)[0]
    assert all(evaluation.feasible for evaluation in history)
    assert len({evaluation.widths for evaluation in history}) == len(history)
    assert regret(LocalSearch(), problem, 40, seed) <= regret(Reconstruction(), problem, 1, seed)


def test_stops_when_nothing_new_is_left() -> None:
    problem = ToyProblem(1, channels=4, budget={"macs": "50%"})
    assert len(reported(LocalSearch(), problem, 1000)) <= 2  # two widths are within the budget


def test_refuses_settings_that_never_move() -> None:
    with pytest.raises(ValidationError, match="step\n  Input should be greater than 0"):
        LocalSearch(step=0.0)
    with pytest.raises(ValidationError, match="decisions\n  Input should be greater than or equal to 1"):
        LocalSearch(decisions=0.5)
