from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from agents.allocation import allocate
from agents.base import Agent
from agents.cma_es import CMAES
from agents.ddpg import DDPG
from agents.local_search import LocalSearch
from agents.measured_curves import curve_sums, measured_curves
from agents.reconstruction import Reconstruction
from agents.surrogate import SurrogateSearch
from amc_env.problem import Evaluation, FloatArray, Widths
from amc_env.toy import ToyProblem
from tests.agents.table_problem import TableProblem
from tests.contracts.agent_contract import reported

AGENTS: list[Agent] = [
    Reconstruction(measured=True),
    LocalSearch(measured=True),
    CMAES(measured=True),
    SurrogateSearch(measured=True),
    DDPG(measured=True, warmup="heuristic", residual=0.2, hidden=(16, 16)),
]


class Misjudged(ToyProblem):
    """The error curves have the right shapes and wrong heights: the last layer is taken to lose next to nothing."""

    def reconstruction_errors(self) -> tuple[FloatArray, ...]:
        return tuple(
            curve * factor
            for curve, factor in zip(super().reconstruction_errors(), (1.0, 30.0, 0.2, 5.0, 0.001), strict=True)
        )


def measured(problem: ToyProblem, errors: Sequence[FloatArray]) -> tuple[tuple[FloatArray, ...], list[Evaluation]]:
    history: list[Evaluation] = []
    return measured_curves(problem, errors, history.append), history


def test_heights_are_measured_by_one_evaluation_each_at_a_quarter_of_the_units() -> None:
    problem = Misjudged(5, seed=1)
    curves, history = measured(problem, problem.reconstruction_errors())
    exact = ToyProblem(5, seed=1).reconstruction_errors()
    for curve, expected in zip(curves, exact, strict=True):
        assert curve == pytest.approx(expected, rel=1e-9)
    dense = (16,) * 5
    assert [e.widths for e in history] == [dense, *((*dense[:i], 4, *dense[i + 1 :]) for i in range(5))]
    assert not history[0].feasible  # each is paid for, within the budget or not


def test_the_allocation_of_measured_curves_is_that_of_the_exact_ones() -> None:
    problem, exact = Misjudged(5, seed=1), ToyProblem(5, seed=1)
    *_, last = reported(Reconstruction(measured=True), problem, 7)
    assert last.widths == allocate(exact, exact.reconstruction_errors())
    (unmeasured,) = reported(Reconstruction(), problem, 1)
    assert last.reward > unmeasured.reward


def test_what_does_not_show_costs_a_hundredth_of_the_median() -> None:
    costs = [[1.0, 2.0, 3.0, 4.0]] * 4
    heights = [[0.5, 0.2, 0.1, 0.0], [0.3, 0.2, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0], [-0.2, -0.1, 0.0, 0.0]]
    problem = TableProblem(costs, heights, limit=8.0)
    shape = np.array([1.0, 0.5, 0.2, 0.0])
    curves = measured_curves(problem, [shape] * 4, lambda _: None)
    assert [curve[0] for curve in curves] == pytest.approx([0.5, 0.3, 0.004, 0.004])
    assert curves[1] == pytest.approx(0.3 * shape)


def test_if_nothing_shows_the_errors_stay_as_they_are() -> None:
    problem = TableProblem([[1.0, 2.0]] * 2, [[0.0, 0.0]] * 2, limit=3.0)
    errors = [np.array([1.0, 0.0]), np.array([0.5, 0.0])]
    assert measured_curves(problem, errors, lambda _: None) == tuple(errors)


def test_a_curve_without_any_error_stays_so() -> None:
    problem = TableProblem([[1.0, 2.0]] * 2, [[0.4, 0.0]] * 2, limit=3.0)
    curves = measured_curves(problem, [np.array([1.0, 0.0]), np.zeros(2)], lambda _: None)
    assert [curve.tolist() for curve in curves] == [[0.4, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.kind)
def test_the_curves_come_first_and_then_their_allocation(agent: Agent) -> None:
    problem, exact = Misjudged(5, seed=1), ToyProblem(5, seed=1)
    history = reported(agent, problem, 12)
    assert history[6].widths == allocate(exact, exact.reconstruction_errors())
    assert all(evaluation.feasible for evaluation in history[6:])


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.kind)
def test_too_few_evaluations_are_refused(agent: Agent) -> None:
    agent.check(ToyProblem(5, seed=1), 7)
    message = (
        "evaluations: expected at least 7, one for the dense network, one for each of 5 decisions and one for the "
        "first policy, got 6; allow more, or leave measured out"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        agent.check(ToyProblem(5, seed=1), 6)


def test_sums_add_up_each_decisions_error() -> None:
    problem = TableProblem([[1.0, 2.0, 3.0]] * 2, [[0.0, 0.0, 0.0]] * 2, limit=4.0)
    curves = [np.array([0.9, 0.3, 0.0]), np.array([0.5, 0.2, 0.0])]
    sums = curve_sums(problem, curves, [(1, 1), (3, 2), (2, 3)])
    assert sums == pytest.approx([1.4, 0.2, 0.3])


@pytest.mark.parametrize("measured", [True, False])
def test_the_surrogate_believes_measured_curves_where_it_knows_nothing(measured: bool) -> None:
    problem = ToyProblem(4, seed=1)
    curves = problem.reconstruction_errors()
    near: list[Widths] = [(16 - i, 16, 16 - i, 16) for i in range(6)]
    known = {widths: -problem.score(widths).error for widths in near}
    better, worse = sorted([(16, 4, 16, 16), (16, 16, 16, 4)], key=lambda widths: problem.score(widths).error)
    chosen = SurrogateSearch(measured=measured)._most_promising(problem, curves, known, [worse, better])
    assert chosen == (better if measured else worse)  # both are equally far from what is known
