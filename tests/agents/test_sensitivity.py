from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.reconstruction import Reconstruction
from agents.sensitivity import (
    Sensitivity,
    envelope,
    error_curve,
    errors_alone,
    probe_widths,
    slack_spent,
    threshold_bracket,
    threshold_widths,
)
from amc_env.problem import FloatArray, PruningProblem, Widths
from amc_env.toy import ToyProblem
from tests.agents.strategies import table_problems
from tests.agents.table_problem import TableProblem
from tests.contracts.agent_contract import AgentContract, reported


class TestSensitivity(AgentContract):
    agent = Sensitivity()


class TestSensitivityAtChosenRatios(AgentContract):
    agent = Sensitivity(ratios=(0.5, 0.9))


def test_measures_the_dense_network_each_decision_alone_and_the_answer() -> None:
    problem = ToyProblem(3, channels=10)
    history = reported(Sensitivity(ratios=(0.2, 0.6)), problem, 8)
    assert [evaluation.widths for evaluation in history[:-1]] == [
        (10, 10, 10), (8, 10, 10), (4, 10, 10), (10, 8, 10), (10, 4, 10), (10, 10, 8), (10, 10, 4),
    ]  # fmt: skip
    assert history[-1].feasible


@pytest.mark.parametrize(
    ("evaluations", "widths"), [(11, (9, 8, 7, 6, 5, 4, 3, 2, 1)), (5, (7, 4, 1)), (4, (6, 1)), (3, (1,))]
)
def test_as_many_ratios_as_the_evaluations_allow(evaluations: int, widths: tuple[int, ...]) -> None:
    """Ten channels, so that ratios of tenths are met exactly; 0.45 of them are rounded to the wider."""
    history = reported(Sensitivity(), ToyProblem(1, channels=10), evaluations)
    assert [evaluation.widths[0] for evaluation in history[1:-1]] == list(widths)


def test_widths_that_ratios_share_are_measured_once() -> None:
    problem = ToyProblem(2, channels=4)
    assert probe_widths(problem.decisions[0], [0.0, 0.1, 0.2, 0.3, 0.5, 0.9]) == (3, 2, 1)
    assert len(reported(Sensitivity(), problem, 20)) == 1 + 2 * 3 + 1


def test_without_a_budget_nothing_is_removed() -> None:
    problem = ToyProblem(3, budget={}, reward="error_macs")
    assert [evaluation.widths for evaluation in reported(Sensitivity(), problem, 1)] == [problem.dense_widths]
    assert reported(Sensitivity(), problem, 1) == reported(Reconstruction(), problem, 1)


def test_too_few_evaluations_are_refused() -> None:
    expected = (
        "evaluations: expected at least 6, 4 for 4 decisions alone, one for the dense network and one for the "
        "answer, got 5"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        Sensitivity().check(ToyProblem(4), 5)
    Sensitivity().check(ToyProblem(4), 6)


def test_more_ratios_than_evaluations_are_refused() -> None:
    expected = (
        "evaluations: expected at least 14, 12 for 4 decisions alone, one for the dense network and one for the "
        "answer, got 13; allow more, or take fewer ratios"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        Sensitivity(ratios=(0.25, 0.5, 0.75)).check(ToyProblem(4), 13)


def test_ratios_that_leave_a_decision_as_it_is_are_refused() -> None:
    expected = "ratios: none of [0.1] narrows 'layer0', whose widths are 1, 2, 3, 4; add one of more than 0.125"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        Sensitivity(ratios=(0.1,)).check(ToyProblem(2, channels=4), 50)
    Sensitivity(ratios=(0.126,)).check(ToyProblem(2, channels=4), 50)


def test_only_networks_with_one_decision_pruned_are_points_of_a_curve() -> None:
    scored: list[tuple[Widths, float | None]] = [
        ((4, 4), 0.1), ((2, 4), 0.3), ((2, 2), 0.9), ((4, 1), None), ((3, 4), 0.2), ((4, 2), 0.5),
    ]  # fmt: skip
    assert errors_alone((4, 4), scored) == [{4: 0.1, 3: 0.2, 2: 0.3}, {4: 0.1, 2: 0.5}]


def test_the_envelope_never_falls() -> None:
    assert envelope({1: 0.2, 4: 0.1, 3: 0.4, 2: 0.3}) == {4: 0.1, 3: 0.4, 2: 0.4, 1: 0.4}


def test_between_measured_widths_the_curve_is_linear_and_goes_on_below() -> None:
    (decision,) = ToyProblem(1, channels=8).decisions
    curve = error_curve(decision, {8: 0.1, 4: 0.3, 6: 0.05})
    np.testing.assert_allclose(curve, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1])


def test_the_threshold_by_hand() -> None:
    """At 0.2 the widths are (2, 1), too dear by one unit; at 0.3 (1, 1), and one unit is left that nobody can use."""
    problem = TableProblem(costs=[[1, 3, 5], [2, 4, 6]], errors=[[0, 0, 0], [0, 0, 0]], limit=4)
    curves = [np.array([0.3, 0.1, 0.0]), np.array([0.2, 0.15, 0.0])]
    assert threshold_bracket(problem, curves) == ((1, 1), (2, 1))
    assert threshold_widths(problem, curves) == (1, 1)


def test_what_the_next_threshold_keeps_is_widened_as_far_as_it_goes() -> None:
    """The second curve is flat below 4: one threshold takes it from 4 to 1, and two of these steps are given back."""
    problem = TableProblem(costs=[[1, 2], [1, 2, 3, 5]], errors=[[0, 0], [0, 0, 0, 0]], limit=5)
    curves = [np.array([0.5, 0.0]), np.array([0.2, 0.2, 0.2, 0.0])]
    assert threshold_bracket(problem, curves) == ((2, 1), (2, 4))
    assert threshold_widths(problem, curves) == (2, 3)


def curves_of(problem: TableProblem) -> list[FloatArray]:
    """As of a sweep over all widths."""
    return [
        error_curve(decision, dict(enumerate(errors, start=1)))
        for decision, errors in zip(problem.decisions, problem.errors, strict=True)
    ]


@given(problem=table_problems())
def test_any_curves_and_costs_end_feasible_with_no_step_left(problem: TableProblem) -> None:
    """No decision that the next smaller threshold keeps wider can be widened by itself."""
    if problem.feasible(problem.dense_widths):
        return
    curves = curves_of(problem)
    within, over = threshold_bracket(problem, curves)
    found = threshold_widths(problem, curves)
    assert problem.feasible(found)
    assert not problem.feasible(over)
    for index, (width, low, high) in enumerate(zip(found, within, over, strict=True)):
        assert width == low or low < width <= high
        for wider in range(width + 1, high + 1):
            assert not problem.feasible((*found[:index], wider, *found[index + 1 :]))


def test_what_the_threshold_leaves_goes_to_the_largest_error() -> None:
    """At the threshold 0.3 two units are left: the third decision, whose error is larger, takes its step first."""
    problem = TableProblem(costs=[[1, 5], [1, 2, 3], [1, 3, 9]], errors=[[0, 0], [0, 0, 0], [0, 0, 0]], limit=6)
    curves = [np.array([0.3, 0.0]), np.array([0.2, 0.1, 0.0]), np.array([0.25, 0.1, 0.0])]
    assert threshold_widths(problem, curves) == (1, 1, 1)
    assert slack_spent(problem, (1, 1, 1), curves) == (1, 2, 2)


@given(problem=table_problems())
def test_nothing_that_fits_is_left_whatever_the_costs(problem: TableProblem) -> None:
    if problem.feasible(problem.dense_widths):
        return
    curves = curves_of(problem)
    start = threshold_widths(problem, curves)
    found = slack_spent(problem, start, curves)
    assert problem.feasible(found)
    for index, (decision, width, least) in enumerate(zip(problem.decisions, found, start, strict=True)):
        assert width >= least
        for wider in (choice for choice in decision.choices if choice > width):
            assert not problem.feasible((*found[:index], wider, *found[index + 1 :]))


@given(problem=table_problems(monotone=True))
def test_the_threshold_is_the_smallest_where_costs_are_monotone(problem: TableProblem) -> None:
    if problem.feasible(problem.dense_widths):
        return
    curves = curves_of(problem)
    within, _ = threshold_bracket(problem, curves)
    feasible = [value for value in np.unique(np.concatenate(curves)) if problem.feasible(at(problem, curves, value))]
    assert within == at(problem, curves, min(feasible))


def at(problem: PruningProblem, curves: list[FloatArray], threshold: float) -> Widths:
    return tuple(
        next(
            choice
            for choice, error in zip(decision.choices, curve, strict=True)
            if error <= threshold or choice == decision.size
        )
        for decision, curve in zip(problem.decisions, curves, strict=True)
    )


@given(problem=table_problems(), extra=st.integers(0, 30))
def test_the_agent_ends_feasible_whatever_the_costs(problem: TableProblem, extra: int) -> None:
    evaluations = len(problem.decisions) + 2 + extra
    history = reported(Sensitivity(), problem, evaluations)
    assert len(history) <= evaluations
    assert history[-1].feasible
