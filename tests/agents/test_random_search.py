from __future__ import annotations

import numpy as np

from agents.random_search import RandomSearch
from amc_env.toy import ToyProblem
from tests.contracts.agent_contract import AgentContract, reported


class TestRandomSearch(AgentContract):
    agent = RandomSearch()


def test_every_plan_spends_the_budget_to_within_one_channel() -> None:
    problem = ToyProblem(6)
    limit = problem.budgets[0].limit
    costs = [evaluation.costs["macs"] for evaluation in reported(RandomSearch(), problem, 50)]
    assert max(costs) <= limit
    assert min(costs) > limit - max(problem.channel_costs) * problem.layers[0].input_size[0] ** 2


def test_plans_spread_over_all_decisions() -> None:
    widths = np.array([evaluation.widths for evaluation in reported(RandomSearch(), ToyProblem(6), 50)])
    assert (widths.std(axis=0) > 2).all()
