from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.netadapt import NetAdapt, iterations_to_remove, propose
from amc_env.problem import Evaluation, PruningProblem
from amc_env.toy import ToyProblem
from tests.agents.strategies import table_problems
from tests.agents.table_problem import TableProblem
from tests.contracts.agent_contract import AgentContract, reported


class TestNetAdapt(AgentContract):
    agent = NetAdapt()


class TestNetAdaptByRatio(AgentContract):
    agent = NetAdapt(select="ratio", decay=0.96)


@pytest.mark.parametrize(
    ("initial", "decay", "half", "three_quarters"),
    [(0.025, 0.96, 40, None), (0.025, 0.98, 26, 46), (0.05, 0.96, 13, 23), (0.05, 0.98, 12, 18)],
)
def test_iterations_of_known_schedules(initial: float, decay: float, half: int, three_quarters: int | None) -> None:
    """Sums of the released code's schedule, 0.025 and 0.96, and of its neighbours, by hand."""
    assert iterations_to_remove(0.5, initial, decay) == half
    assert iterations_to_remove(0.75, initial, decay) == three_quarters


@given(reduction=st.floats(0.05, 0.95), initial=st.floats(0.01, 0.5), decay=st.floats(0.8, 1.0))
def test_iterations_are_the_least_that_suffice(reduction: float, initial: float, decay: float) -> None:
    count = iterations_to_remove(reduction, initial, decay)
    if count is None:
        assert initial / (1 - decay) <= reduction
        return
    sums = [sum(initial * decay**place for place in range(most)) for most in (count - 1, count)]
    assert sums[0] < reduction + 1e-6
    assert sums[1] > reduction - 1e-6


def test_a_schedule_that_cannot_reach_the_budget_is_refused() -> None:
    problem = ToyProblem(4, budget={"macs": "25%"})
    expected = (
        "initial_reduction 0.025 and decay 0.96 remove at most 62.5% of the dense resource, but the budget needs "
        "75.0%: take an initial_reduction of more than 0.03 or a decay of more than 0.9667, or leave "
        "initial_reduction out"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        NetAdapt(initial_reduction=0.025, decay=0.96).check(problem, 10_000)
    NetAdapt(initial_reduction=0.0301, decay=0.96).check(problem, 10_000)
    NetAdapt(initial_reduction=0.025, decay=0.9668).check(problem, 10_000)
    NetAdapt(initial_reduction=0.025, decay=0.96).check(ToyProblem(4), 161)


def test_a_schedule_that_needs_more_evaluations_is_refused() -> None:
    expected = (
        "initial_reduction 0.05 and decay 0.96 take up to 13 iterations to the budget, with 4 decisions 53 "
        "evaluations, got 52: allow 53, or leave initial_reduction out"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        NetAdapt(initial_reduction=0.05, decay=0.96).check(ToyProblem(4), 52)
    NetAdapt(initial_reduction=0.05, decay=0.96).check(ToyProblem(4), 53)


def test_fewer_evaluations_than_one_iteration_takes_are_refused() -> None:
    expected = (
        "evaluations: expected at least 5, one for the dense network and one for each of 4 decisions in one "
        "iteration, got 4"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        NetAdapt().check(ToyProblem(4), 4)
    NetAdapt().check(ToyProblem(4), 5)


@pytest.mark.parametrize("budget", [{}, {"macs": "100%"}])
def test_where_the_dense_network_is_feasible_it_is_the_answer(budget: dict[str, str]) -> None:
    problem = ToyProblem(4, budget=budget, reward="error_macs")
    agent = NetAdapt(initial_reduction=0.001, decay=0.5)
    (evaluation,) = reported(agent, problem, 1)
    assert evaluation.widths == problem.dense_widths
    assert agent.series(problem, [evaluation]) == ()


def test_a_proposal_is_the_smallest_cut_that_meets_the_target() -> None:
    problem = ToyProblem(5)
    plans = propose(problem, problem.dense_widths, 1.9)
    assert [sum(a != b for a, b in zip(plan, problem.dense_widths, strict=True)) for plan in plans] == [1] * len(plans)
    limit = problem.budgets[0].limit
    for plan in plans:
        wider = tuple(min(width + 1, size) for width, size in zip(plan, problem.dense_widths, strict=True))
        assert problem.cost("macs", plan) / limit <= 1.9 < problem.cost("macs", wider) / limit


def test_what_no_decision_meets_alone_is_approached_by_the_largest_cuts() -> None:
    problem = TableProblem(costs=[[1, 5], [3, 1, 9, 4], [1, 1]], errors=[[0, 0], [0, 0, 0, 0], [0, 0]], limit=5)
    assert problem.cost("table", (2, 4, 2)) == 10
    assert propose(problem, (2, 4, 2), 1.5) == [(1, 4, 2), (2, 2, 2)]  # 6 and 7 units where 7.5 are allowed
    assert propose(problem, (2, 4, 2), 1.25) == [(1, 4, 2)]
    assert propose(problem, (2, 4, 2), 0.5) == [(1, 4, 2), (2, 2, 2)]  # the third saves nothing


def test_where_nothing_lowers_the_resource_alone_the_network_is_brought_to_the_budgets() -> None:
    """Both budgets are exceeded alike, and each decision lowers one only."""
    flat = [[0.1, 0.0], [0.1, 0.0]]
    problem = TableProblem([[1, 2], [1, 1]], flat, limit=2, other=([[1, 1], [1, 2]], 2))
    history = reported(NetAdapt(), problem, 10)
    assert [evaluation.widths for evaluation in history] == [(2, 2), (1, 1)]
    assert NetAdapt().series(problem, history) == (history[1],)


def test_overshoot_counts() -> None:
    """Cuts of 4 units where 2 are asked for: half the scheduled iterations."""
    costs = [[2.0, 6.0, 10.0], [2.0, 6.0, 10.0]]
    problem = TableProblem(costs, errors=[[0.4, 0.1, 0.0], [0.5, 0.2, 0.0]], limit=12)
    history = reported(NetAdapt(initial_reduction=0.1, decay=1.0), problem, 9)
    assert [evaluation.widths for evaluation in history] == [(3, 3), (2, 3), (3, 2), (1, 3), (2, 2)]
    assert iterations_to_remove(0.4, 0.1, 1.0) == 4


def test_the_two_rules_pick_by_error_and_by_error_per_saving() -> None:
    costs = [[0.0, 3.0, 5.0], [0.0, 1.0, 5.0]]
    problem = TableProblem(costs, errors=[[0.9, 0.10, 0.0], [0.9, 0.15, 0.0]], limit=6)
    picked = {
        select: agent.series(problem, reported(agent, problem, 9))[0].widths
        for select in ("accuracy", "ratio")
        for agent in [NetAdapt.model_validate({"select": select, "initial_reduction": 0.2, "decay": 1.0})]
    }
    assert picked == {"accuracy": (2, 3), "ratio": (3, 2)}  # 0.10 for 2 units, 0.15 for 4


@pytest.mark.parametrize("select", ["accuracy", "ratio"])
@pytest.mark.parametrize("seed", range(3))
def test_the_series_leads_from_cut_to_cut_to_the_budget(select: str, seed: int) -> None:
    problem = ToyProblem(5, seed=seed)
    agent = NetAdapt.model_validate({"select": select})
    history = reported(agent, problem, 60, seed)
    series = agent.series(problem, history)
    before = problem.dense_widths
    within = [network for network in series if network.feasible]
    for network in series[: -len(within)]:
        assert cut_in_one(before, network)
        before = network.widths
    assert any(cut_in_one(before, network) for network in within)
    assert max(network.reward for network in history if network.feasible) in [network.reward for network in within]
    assert [network.feasible for network in series] == [False] * (len(series) - len(within)) + [True] * len(within)
    assert len(within) <= 2
    assert [network.costs["macs"] for network in series] == sorted((n.costs["macs"] for n in series), reverse=True)
    assert len(series) > 5


def cut_in_one(before: tuple[int, ...], network: Evaluation) -> bool:
    pairs = [(old, new) for old, new in zip(before, network.widths, strict=True) if old != new]
    return len(pairs) == 1 and pairs[0][1] < pairs[0][0]


def test_several_budgets_all_hold_at_the_end() -> None:
    problem = TableProblem(
        costs=[[1, 5, 9], [1, 1, 1]],
        errors=[[0.3, 0.1, 0], [0.3, 0.1, 0]],
        limit=6,
        other=([[1, 1, 1], [2, 4, 8]], 5),
    )
    best = NetAdapt().search(problem, max_evaluations=40, seed=0, on_evaluation=lambda _: None)
    assert best is not None
    assert best.widths == (2, 2)


@given(problem=table_problems(), extra=st.integers(0, 20), select=st.sampled_from(["accuracy", "ratio"]))
def test_ends_feasible_within_its_evaluations_whatever_the_costs(
    problem: PruningProblem, extra: int, select: str
) -> None:
    evaluations = len(problem.decisions) + 1 + extra
    agent = NetAdapt.model_validate({"select": select})
    history = reported(agent, problem, evaluations)
    assert len(history) <= evaluations
    assert any(evaluation.feasible for evaluation in history)
    series = agent.series(problem, history)
    assert len(series) == 0 if history[0].feasible else series[-1].feasible


def test_the_evaluations_left_make_the_later_steps_finer() -> None:
    """Ten iterations of eight are planned at first; decisions at their floor and overshoot leave room for more."""
    problem = ToyProblem(8)
    history = reported(NetAdapt(), problem, 81)
    assert len(NetAdapt().series(problem, history)) > 10
    assert 70 <= len(history) <= 81
