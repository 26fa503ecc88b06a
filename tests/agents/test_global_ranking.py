from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.global_ranking import GlobalRanking, threshold_curve
from amc_env.problem import Decision, FloatArray
from amc_env.toy import ToyProblem
from hw.layers import LayerShape
from tests.agents.table_problem import TableProblem
from tests.contracts.agent_contract import AgentContract, reported


class TestGlobalRanking(AgentContract):
    agent = GlobalRanking()
    far = no_better = "one evaluation only"


class TestNormalised(AgentContract):
    agent = GlobalRanking(normalised=True)
    far = no_better = "one evaluation only"


class Scored(TableProblem):
    """Decisions of as many units as there are scores, each unit of which costs 1."""

    def __init__(self, scores: list[list[float]], limit: float) -> None:
        self.scores = [np.array(own, dtype=np.float64) for own in scores]
        table = [list(range(1, len(own) + 1)) for own in scores]
        super().__init__(table, [[0.0] * len(own) for own in scores], limit)

    def removal_scores(self) -> tuple[FloatArray, ...]:
        return tuple(self.scores)


def widths_of(problem: Scored, *, normalised: bool = False) -> tuple[int, ...]:
    (evaluation,) = reported(GlobalRanking(normalised=normalised), problem, 3)
    assert evaluation.feasible
    return evaluation.widths


def test_the_highest_scores_of_all_decisions_stay() -> None:
    scores = [[9.0, 8.0, 1.0, 0.5], [7.0, 2.0, 0.1], [6.0, 5.0, 4.0]]
    assert widths_of(Scored(scores, 7)) == (2, 2, 3)
    assert widths_of(Scored(scores, 6)) == (2, 1, 3)
    assert widths_of(Scored(scores, 5)) == (2, 1, 2)


def test_a_decision_keeps_at_least_its_smallest_choice() -> None:
    assert widths_of(Scored([[0.1, 0.05], [9.0, 8.0, 7.0]], 3)) == (1, 2)


def test_normalised_scores_compare_within_their_decision() -> None:
    """By their norms, 5 and 50, the scores are 0.8 and 0.6 beside 0.96 and 0.28."""
    scores = [[4.0, 3.0], [48.0, 14.0]]
    assert widths_of(Scored(scores, 3)) == (1, 2)
    assert widths_of(Scored(scores, 3), normalised=True) == (2, 1)


def test_scores_that_are_all_zero_can_be_normalised() -> None:
    assert widths_of(Scored([[0.0, 0.0], [2.0, 1.0]], 3), normalised=True) == (1, 2)


def test_a_unit_hidden_behind_a_higher_score_goes_right_after_it() -> None:
    """The order of the first decision removes 5 before 0.1."""
    assert widths_of(Scored([[8.0, 0.1, 5.0], [4.0, 3.0, 2.0]], 4)) == (3, 1)
    assert widths_of(Scored([[8.0, 0.1, 5.0], [7.0, 6.0, 2.0]], 3)) == (1, 2)


def test_equal_scores_are_widened_one_step_at_a_time() -> None:
    assert sum(widths_of(Scored([[1.0] * 5, [1.0] * 5], 7))) == 7


def test_without_a_violated_budget_nothing_is_removed() -> None:
    problem = Scored([[1.0, 2.0], [3.0, 4.0]], 4)
    assert widths_of(problem) == problem.dense_widths


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=6), min_size=1, max_size=4), st.integers(0, 20))
def test_the_result_is_feasible_and_spends_the_budget(scores: list[list[float]], slack: int) -> None:
    """Each unit costs 1 and each width is a choice, so that nothing of the budget is left."""
    ordered = [sorted(own, reverse=True) for own in scores]
    dense = sum(map(len, scores))
    problem = Scored(ordered, min(len(scores) + slack, dense))
    assert sum(widths_of(problem)) == min(len(scores) + slack, dense)


def test_thresholds_of_choices_that_skip_units() -> None:
    """Of 8 units 2, 4 or 8 may stay: 8 while 6 or more are above the threshold, 4 while 3 or more are."""
    decision = Decision("layer", 8, (2, 4, 8), LayerShape("layer", "conv", 1, 8))
    curve = threshold_curve(decision, np.arange(8.0, 0.0, -1.0))
    assert curve.tolist() == [6.0, 3.0, -np.inf]


@pytest.mark.parametrize("budget", [{"macs": "30%"}, {"size": "40%"}, {"macs": "50%", "size": "60%"}])
def test_any_budget_is_held_and_nearly_spent(budget: dict[str, float | str]) -> None:
    problem = ToyProblem(5, channels=32, budget=budget)
    (evaluation,) = reported(GlobalRanking(), problem, 1)
    assert 0.95 < max(evaluation.costs[each.cost] / each.limit for each in problem.budgets) <= 1.0


def test_a_problem_without_scores_says_so() -> None:
    problem = TableProblem([[1, 2]], [[0.0, 0.0]], 1)
    with pytest.raises(NotImplementedError, match=r"^TableProblem has no scores of units; take an agent that does"):
        reported(GlobalRanking(), problem, 1)
