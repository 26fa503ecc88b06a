from __future__ import annotations

import dataclasses
import math

import pytest

from amc_env import InfeasibleBudgetError, Score, ToyProblem
from amc_env.front import budget_views, front
from amc_env.problem import Widths


def test_views_share_costs_and_scores_and_differ_in_the_budget() -> None:
    problem = ToyProblem(4)
    views = budget_views(problem, [0.3, 0.7, 0.5, 1.0])
    assert list(views) == [1.0, 0.7, 0.5, 0.3]
    assert views[0.5] is problem
    dense = problem.dense_costs["macs"]
    assert [view.budgets[0].limit for view in views.values()] == [
        dense,
        0.7 * dense,
        problem.budgets[0].limit,
        0.3 * dense,
    ]
    assert all(view.memo is problem.memo for view in views.values())
    assert views[0.3].feasible(views[0.3].widths(views[0.3].fit_to_budget([0.5] * 4)))
    assert problem.budgets[0].limit == dense / 2


def test_a_probe_is_judged_by_the_budget_that_it_holds() -> None:
    problem = ToyProblem(4)
    view = problem.with_budget({"macs": "100%"})
    probe = problem.evaluate_widths(problem.dense_widths, probe=True)
    assert (probe.feasible, probe.reward) == (False, -math.inf)
    judged = view.judge(probe)
    assert (judged.feasible, judged.violation, judged.reward) == (True, 0.0, 0.0)
    assert problem.judge(judged) == probe
    assert view.judge(dataclasses.replace(probe, error=None)).reward == -math.inf


def test_refuses_what_is_no_fraction_or_cannot_be_met() -> None:
    for fraction in (0.0, -0.5, 1.5, math.nan):
        with pytest.raises(
            ValueError, match=rf"budgets: expected fractions of the dense cost in \(0, 1\], got {fraction}"
        ):
            budget_views(ToyProblem(3), [fraction])
    with pytest.raises(InfeasibleBudgetError, match="the smallest reachable macs"):
        budget_views(ToyProblem(3), [0.01])
    with pytest.raises(
        ValueError, match=r"budgets: expected a problem with one budget, of whose cost .*, got macs, size;"
    ):
        budget_views(ToyProblem(3, budget={"macs": "50%", "size": "50%"}), [0.3])


def test_the_front_has_the_best_of_each_budget_by_falling_cost() -> None:
    problem = ToyProblem(1, channels=16)  # the error falls with the width
    evaluations = [problem.evaluate_widths((width,), probe=True) for width in (3, 4, 10, 7, 8, 16)]
    kept = front(problem, [0.7, 0.3, 0.25], evaluations)
    assert [evaluation.widths for evaluation in kept] == [(10,), (8,), (4,)]  # 30 % is met best by the 4 of 25 %
    assert front(problem, [0.7, 0.1], [evaluations[-1]]) == ()


def test_the_front_passes_over_what_was_not_scored_in_full() -> None:
    problem = ToyProblem(1, channels=16)
    whole = problem.evaluate_widths((6,))
    stopped = dataclasses.replace(problem.evaluate_widths((7,)), fraction=0.5)
    unscored = problem.evaluate_widths((9,))
    assert front(problem, [0.9], [stopped, unscored, whole]) == (whole,)


def test_a_plan_is_given_up_only_if_it_can_win_under_no_budget() -> None:
    class Noting(ToyProblem):
        limits: dict[Widths, float]

        def score(self, widths: Widths) -> Score:
            self.limits[widths] = self.hopeless_error(widths)
            return super().score(widths)

    problem = Noting(1, channels=16)
    problem.limits = {}
    budget_views(problem, [0.25, 0.75])
    for width in (8, 4, 3, 12, 16):
        problem.evaluate_widths((width,), probe=True)
    assert problem.limits[(4,)] == math.inf  # worse than 8, but the first within 25 %
    problem.limits.clear()
    for width in (2, 5, 13):
        problem.evaluate_widths((width,), probe=True)
    assert problem.limits[(2,)] == pytest.approx(problem.memo[(4,)].error)
    assert problem.limits[(5,)] == pytest.approx(problem.memo[(8,)].error)
    assert problem.limits[(13,)] == math.inf
