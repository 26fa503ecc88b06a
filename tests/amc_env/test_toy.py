from __future__ import annotations

import itertools

import numpy as np
import pytest

from amc_env.toy import ToyProblem


@pytest.mark.parametrize("interaction", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("staircase", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_the_best_widths_are_the_best_of_all_plans(interaction: float, staircase: int, seed: int) -> None:
    problem = ToyProblem(4, channels=7, budget={"macs": "55%"}, interaction=interaction, staircase=staircase, seed=seed)
    plans = itertools.product(*(decision.choices for decision in problem.decisions))
    best = max(problem.score(plan).accuracy or 0.0 for plan in plans if problem.feasible(plan))
    assert problem.feasible(problem.best_widths())
    assert problem.score(problem.best_widths()).accuracy == pytest.approx(best, abs=1e-12)


def test_the_accuracy_is_that_of_the_formula() -> None:
    problem = ToyProblem(3, channels=4, interaction=2.0)
    s = problem.sensitivities
    r = np.array([0.75, 0.5, 0.25])
    pairs = np.sqrt(s[0] * s[1]) * 0.375 + np.sqrt(s[1] * s[2]) * 0.125
    assert problem.score((1, 2, 3)).accuracy == pytest.approx(1 - ((s * r**2).sum() + 2.0 * pairs) / 3.0)
    assert problem.score(problem.dense_widths).accuracy == 1.0


@pytest.mark.parametrize("interaction", [0.0, 1.5])
def test_an_error_curve_is_what_a_decision_costs_by_itself(interaction: float) -> None:
    problem = ToyProblem(3, channels=4, interaction=interaction)
    for index, curve in enumerate(problem.reconstruction_errors()):
        for width, error in zip(problem.decisions[index].choices, curve, strict=True):
            alone = tuple(width if other == index else 4 for other in range(3))
            assert problem.score(alone).error == pytest.approx(error, abs=1e-12)


def test_refuses_an_interaction_that_could_leave_the_range() -> None:
    with pytest.raises(ValueError, match=r"^interaction: expected a number of at least 0, got -0.5$"):
        ToyProblem(interaction=-0.5)


def test_on_a_staircase_whole_blocks_are_paid() -> None:
    problem = ToyProblem(1, channels=7, staircase=3)
    price = int(problem.channel_costs[0])
    assert [problem.cost("macs", [kept]) for kept in range(1, 8)] == [
        price * blocks for blocks in (3, 3, 3, 6, 6, 6, 7)
    ]
    assert problem.dense_costs == {"macs": 7 * price, "size": 28 * price}


def test_refuses_blocks_of_no_channels() -> None:
    with pytest.raises(ValueError, match=r"^staircase: expected at least 1, got 0$"):
        ToyProblem(staircase=0)
