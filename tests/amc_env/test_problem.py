"""Rounding, budgets and evaluations of a pruning problem, on the toy problem whose answers are known."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amc_env import Decision, InfeasibleBudgetError, PruningPolicy, Score, ToyProblem
from amc_env.budget import parse_limit
from hw import LayerShape

LAYER = LayerShape("layer", "conv", 3, 16)


@given(st.floats(0, 1, exclude_max=True), st.sets(st.integers(1, 15)))
def test_rounds_to_the_nearest_allowed_width(ratio: float, fewer: set[int]) -> None:
    decision = Decision("layer", 16, (*sorted(fewer), 16), LAYER)
    wanted = 16 * (1 - ratio)
    kept = decision.kept(ratio)
    assert kept in decision.choices
    assert abs(kept - wanted) <= min(abs(choice - wanted) for choice in decision.choices) + 1e-9


def test_a_tie_keeps_more() -> None:
    assert Decision("layer", 16, (8, 16), LAYER).kept(0.25) == 16


@pytest.mark.parametrize("choices", [(), (8,), (0, 16), (16, 8), (8, 8, 16), (8, 24)])
def test_refuses_choices_that_are_no_widths(choices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="choices must ascend from at least 1 to its size 16"):
        Decision("layer", 16, choices, LAYER)


@pytest.mark.parametrize("ratios", [[0.5], [0.5] * 7, [1.0] * 6, [-0.1] * 6, [math.nan] * 6])
def test_refuses_ratios_outside_the_range(ratios: list[float]) -> None:
    with pytest.raises(ValueError, match="ratios: expected"):
        ToyProblem().widths(ratios)


@settings(max_examples=200)
@given(
    st.integers(1, 8),
    st.integers(0, 2**32 - 1),
    st.sampled_from([{"macs": "50%"}, {"macs": "20%"}, {"macs": "90%"}, {"macs": "50%", "size": "40%"}]),
)
def test_fits_any_plan_to_the_budget_with_less_slack_than_one_step(
    decisions: int, seed: int, budget: dict[str, float | str]
) -> None:
    problem = ToyProblem(decisions, budget=budget, seed=seed % 97)
    plan = np.random.default_rng(seed).uniform(0, 0.99, size=decisions)
    widths = problem.widths(problem.fit_to_budget(plan))
    assert problem.feasible(widths)
    wider = [[*widths[:index], width + 1, *widths[index + 1 :]] for index, width in enumerate(widths) if width < 16]
    assert any(not problem.feasible(one) for one in wider)


def test_a_plan_that_fits_already_stays_at_the_budget_and_keeps_its_proportions() -> None:
    problem = ToyProblem(4, channels=100, seed=3)
    plan = np.array([0.2, 0.4, 0.6, 0.8])
    fitted = problem.fit_to_budget(plan)
    scalar = fitted[0] / plan[0]
    assert scalar <= 1 or problem.cost("macs", problem.widths(plan)) > problem.budgets[0].limit
    if scalar <= 1:
        np.testing.assert_allclose(fitted, plan * scalar, atol=0.02)


def test_plans_may_be_vectors_or_policies() -> None:
    problem = ToyProblem(3)
    vector = [0.25, 0.5, 0.75]
    policy = problem.policy(vector)
    assert policy == PruningPolicy({"layer0": 0.25, "layer1": 0.5, "layer2": 0.75})
    backwards = PruningPolicy(dict(reversed(list(policy.items()))))
    assert problem.widths(backwards) == problem.widths(vector) == (12, 8, 4)
    assert problem.fit_to_budget(backwards).tolist() == problem.fit_to_budget(vector).tolist()
    assert problem.evaluate(backwards) == problem.evaluate(vector)
    with pytest.raises(
        ValueError, match=r"policy: expected a ratio for each of layer0, .*; differs in \['layer2', 'x'\]"
    ):
        problem.widths({"layer0": 0.1, "layer1": 0.1, "x": 0.1})


def test_without_a_budget_a_plan_is_only_rounded() -> None:
    problem = ToyProblem(3, budget={}, reward="error_macs")
    np.testing.assert_allclose(problem.fit_to_budget([0.5, 0.26, 0.0]), [0.5, 0.25, 0.0])


def test_an_evaluation_over_the_budget_is_not_scored() -> None:
    problem = ToyProblem()
    evaluation = problem.evaluate(np.zeros(6))
    assert not evaluation.feasible
    assert evaluation.violation == pytest.approx(1.0)  # the dense network costs twice the budget
    assert (evaluation.error, evaluation.accuracy, evaluation.reward) == (None, None, -math.inf)
    assert problem.memo == {}


def test_rewards_are_the_papers_forms() -> None:
    for form in ("error", "error_macs", "error_weights"):
        problem = ToyProblem(3, budget={}, reward=form)
        evaluation = problem.evaluate([0.25, 0.5, 0.75])
        assert evaluation.accuracy is not None
        assert evaluation.error == pytest.approx(1 - evaluation.accuracy)
        factor = {
            "error": 1.0,
            "error_macs": math.log(evaluation.costs["macs"]),
            "error_weights": math.log(evaluation.costs["size"] / 4),
        }[form]
        assert evaluation.reward == pytest.approx(-(1 - evaluation.accuracy) * factor)


def test_the_same_widths_are_scored_once() -> None:
    class Counting(ToyProblem):
        calls = 0

        def score(self, widths: tuple[int, ...]) -> Score:
            self.calls += 1
            return super().score(widths)

    problem = Counting()
    first, second = problem.evaluate([0.6] * 6), problem.evaluate([0.601] * 6)
    assert first == second
    assert problem.calls == 1


def test_a_budget_that_nothing_meets_is_refused_with_the_smallest_reachable_cost() -> None:
    problem = ToyProblem(2, channels=10)
    smallest = problem.cost("macs", (1, 1))
    with pytest.raises(InfeasibleBudgetError, match=f"the smallest reachable macs is {smallest:,.0f} MACs \\(10.0% of"):
        ToyProblem(2, channels=10, budget={"macs": "9%"})


def test_an_unknown_cost_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="budget: unknown cost 'flops'; known: macs, size"):
        ToyProblem(budget={"flops": "50%"})


@pytest.mark.parametrize("limit", ["0%", "101%", "half", -3, 0, math.inf, math.nan, "-5%"])
def test_an_unusable_limit_is_refused(limit: float | str) -> None:
    with pytest.raises(ValueError, match="budget macs: expected a positive number"):
        parse_limit("macs", limit, 100.0)


def test_limits_are_numbers_or_percentages_of_the_dense_cost() -> None:
    assert parse_limit("macs", "12.5%", 400) == 50
    assert parse_limit("macs", 123, 400) == 123


@pytest.mark.parametrize("seed", range(5))
def test_the_known_best_policy_of_the_toy_problem_is_the_best(seed: int) -> None:
    problem = ToyProblem(3, channels=6, seed=seed)
    every = itertools.product(range(1, 7), repeat=3)
    best = min(problem.score(widths).error for widths in every if problem.feasible(widths))
    assert problem.score(problem.best_widths()).error == pytest.approx(best, abs=1e-12)


def test_a_copy_of_a_problem_is_the_problem() -> None:
    problem = ToyProblem()
    assert copy.deepcopy({"problem": problem})["problem"] is problem


class Impatient(ToyProblem):
    """Looks at half the images of what is no better than the best so far."""

    def score(self, widths: tuple[int, ...]) -> Score:
        score = super().score(widths)
        return replace(score, fraction=0.5) if score.error >= self.hopeless_error(widths) else score


@pytest.mark.parametrize("known", range(5))
def test_evaluations_at_once_stop_early_for_what_was_best_before_them(known: int) -> None:
    plans = [(8,) * 6, (6,) * 6, (7,) * 6, (3,) * 6]
    serial = Impatient()
    serial.evaluate_widths((5,) * 6)
    expected = list(serial.evaluate_many(plans))
    assert [evaluation.stopped_early for evaluation in expected] == [False, False, False, True]
    assert serial.evaluate_widths((4,) * 6).stopped_early
    elsewhere, problem = Impatient(), Impatient()
    problem.memo.update((widths, serial.memo[widths]) for widths in plans[:known])  # as of a trial that is resumed

    def scorer(widths: Sequence[tuple[int, ...]]) -> Iterator[Score]:
        best = dict(problem.best_rewards)
        return (elsewhere.score_against(each, best) for each in widths)

    problem.evaluate_widths((5,) * 6)
    problem.scorer = scorer
    assert list(problem.evaluate_many(plans)) == expected
    assert problem.best_rewards == serial.best_rewards


class CountingScores(ToyProblem):
    """Counts what is scored."""

    scored = 0

    def score(self, widths: tuple[int, ...]) -> Score:
        self.scored += 1
        return super().score(widths)


def test_a_probe_scores_what_violates_the_budget_and_never_wins() -> None:
    problem = ToyProblem()
    dense = problem.evaluate_widths(problem.dense_widths, probe=True)
    assert (dense.error, dense.accuracy) == (0.0, 1.0)
    assert dense.violation == pytest.approx(1.0)
    assert dense.reward == -math.inf
    assert not dense.feasible
    assert problem.evaluate_widths(problem.dense_widths).error is None


def test_a_probe_is_never_stopped_early() -> None:
    problem = ToyProblem()
    best = problem.evaluate_widths(problem.best_widths())
    assert problem.hopeless_error(problem.dense_widths) == math.inf
    assert problem.hopeless_error(best.widths) == pytest.approx(-best.reward)


@pytest.mark.parametrize("probe", [False, True])
def test_many_evaluations_are_those_of_one_after_another_with_a_scorer_or_without(probe: bool) -> None:
    plans = [(1, 2, 3, 4, 5, 6), (16,) * 6, (8,) * 6, (1, 2, 3, 4, 5, 6), (16, 1, 1, 1, 1, 1)]
    one_by_one = [ToyProblem().evaluate_widths(widths, probe=probe) for widths in plans]
    assert list(ToyProblem().evaluate_many(plans, probe=probe)) == one_by_one
    problem, asked = CountingScores(), list[tuple[int, ...]]()

    def scorer(widths: Sequence[tuple[int, ...]]) -> Iterator[Score]:
        asked.extend(widths)
        return (ToyProblem().score(each) for each in widths)

    problem.scorer = scorer
    problem.memo[plans[0]] = ToyProblem().score(plans[0])
    assert list(problem.evaluate_many(plans, probe=probe)) == one_by_one
    assert problem.scored == 0
    assert asked == [plan for plan in plans[1:3] + plans[4:] if probe or problem.feasible(plan)]


def test_all_decisions_are_rounded_as_each_by_itself() -> None:
    rng = np.random.default_rng(0)
    layers = [ToyProblem(1, channels=size, seed=size).decisions[0] for size in (2, 5, 16)]
    uneven = [
        replace(layer, choices=tuple(sorted({*rng.integers(1, layer.size, 4).tolist(), layer.size})))
        for layer in layers
    ]
    toy = ToyProblem(3)
    problem = copy.copy(toy)
    problem.decisions = tuple(uneven)
    problem.dense_widths = tuple(decision.size for decision in uneven)
    # where a plan lies just between two choices the larger is kept
    edges = [(1.0 - (np.array(d.choices[1:]) + np.array(d.choices[:-1])) / 2 / d.size).tolist() for d in uneven]
    plans = [rng.random(3) for _ in range(200)] + [np.array([rng.choice(edge) for edge in edges]) for _ in range(50)]
    for plan in plans:
        assert problem.widths(plan) == tuple(d.kept(r) for d, r in zip(uneven, plan, strict=True))
