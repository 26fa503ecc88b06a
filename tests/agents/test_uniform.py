from __future__ import annotations

import pytest

from agents.uniform import Uniform
from amc_env.toy import ToyProblem
from tests.contracts.agent_contract import AgentContract, reported


class TestUniform(AgentContract):
    agent = Uniform()
    far = no_better = "one evaluation only"


def test_one_evaluation_with_one_ratio_that_spends_the_budget() -> None:
    problem = ToyProblem(6, channels=16, budget={"macs": "50%"})
    (evaluation,) = reported(Uniform(), problem, 10)
    assert evaluation.ratios == (0.5,) * 6
    assert evaluation.costs["macs"] == problem.dense_costs["macs"] / 2


@pytest.mark.parametrize("percent", [20, 33, 70, 90])
def test_ratios_differ_by_at_most_one_channel(percent: int) -> None:
    (evaluation,) = reported(Uniform(), ToyProblem(6, budget={"macs": f"{percent}%"}), 1)
    assert max(evaluation.widths) - min(evaluation.widths) <= 1
