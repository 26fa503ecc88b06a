"""The sentences about the agents: exact, of the seeds, and silent where there is nothing to say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from search.ranking import ranked
from search.results import PolicyRecord, Results, TrialRecord
from search.standing import few_seeds, standing

ToyResults = Callable[..., Results]
Changed = Callable[..., Results]
Scores = Sequence[tuple[float, float] | None]


def trials(kind: str, scores: Scores, agent: str = "", **changes: Any) -> tuple[TrialRecord, ...]:
    """One trial for each pair of reward on the search split and accuracy on the test split; None: not feasible."""
    return tuple(
        TrialRecord(
            agent=agent or kind,
            kind=kind,
            seed=seed,
            status="finished",
            error=None,
            evaluations=200,
            distinct=180,
            seconds=60.0,
            best=None if score is None else policy(*score),
            history=(),
        ).model_copy(update=changes)
        for seed, score in enumerate(scores)
    )


def policy(reward: float, test: float) -> PolicyRecord:
    return PolicyRecord(
        ratios={"a": 0.5},
        widths=(8,),
        costs={"macs": 136},
        reward=reward,
        search_error=-reward,
        test_error=1 - test,
        search_accuracy=1 + reward,
        test_accuracy=test,
    )


@pytest.fixture
def job(toy_results: ToyResults) -> Callable[..., Results]:
    def make(*groups: tuple[TrialRecord, ...], **changes: Any) -> Results:
        results = toy_results(seeds=(0,), evaluations=1)
        return results.model_copy(update={"trials": sum(groups, ()), **changes})

    return make


Job = Callable[..., Results]
BEST = trials("local_search", [(-0.10, 0.90), (-0.12, 0.92), (-0.11, 0.91), (-0.10, 0.93), (-0.11, 0.92)])
NEXT = trials("ddpg", [(-0.13, 0.88), (-0.12, 0.90), (-0.14, 0.87), (-0.15, 0.89), (-0.13, 0.91)], distinct=150)
UNIFORM = trials("uniform", [(-0.25, 0.75)], evaluations=1, distinct=1, seconds=0.5)
RECONSTRUCTION = trials("reconstruction", [(-0.2, 0.93)], evaluations=1, distinct=1, seconds=0.7)


def test_the_order_is_that_of_the_interquartile_mean_of_the_rewards_on_the_search_split() -> None:
    lucky = trials("ddpg", [(-0.01, 0.99), (-0.3, 0.99), (-0.3, 0.99), (-0.3, 0.99)])
    steady = trials("random", [(-0.2, 0.5), (-0.2, 0.5), (-0.2, 0.5), (-0.2, 0.5)])
    assert [(entrant.name, entrant.reward) for entrant in ranked(lucky + steady)] == [("random", -0.2), ("ddpg", -0.3)]


def test_a_seed_without_a_feasible_policy_counts_against_its_agent() -> None:
    missed = trials("ddpg", [(-0.1, 0.9), None, (-0.1, 0.9)])
    trimmed = trials("random", [(-0.2, 0.8), None, (-0.2, 0.8), (-0.1, 0.8)])
    none = trials("local_search", [None, None])
    assert [(entrant.name, entrant.reward) for entrant in ranked(missed + trimmed + none)] == [
        ("random", pytest.approx(-0.2)),
        ("ddpg", -math.inf),
    ]
    assert ranked(missed)[0].accuracies is not None
    assert ranked(missed)[0].errors.values == pytest.approx((0.1, 0.1))


def test_unfinished_trials_are_not_ranked() -> None:
    assert ranked(trials("ddpg", [(-0.1, 0.9)], status="failed")) == []


def test_the_sentence_names_the_best_agent_and_how_far_it_is_from_the_others(job: Job) -> None:
    lead, expense = standing([job(UNIFORM, NEXT, BEST, RECONSTRUCTION)])
    assert lead == (
        "local_search is the best agent at this budget, by the interquartile mean of its 5 seeds' rewards on the "
        "search split. On the test split it has 91.67 % (95 % interval 90.33 to 92.67), "
        "2.67 points above ddpg, the runner-up (0.67 to 4.67, which excludes zero); "
        "16.67 points above uniform (15.33 to 17.67, which excludes zero); "
        "1.33 points below reconstruction (0.33 to 2.67, which excludes zero). "
        "The probability that a seed of local_search does better there than one of ddpg is 0.92 (0.70 to 1.00)."
    )
    assert expense == (
        "Evaluations (distinct ones) and time of a seed: local_search 200 (180) in 1 min 0 s, ddpg 200 (150) in "
        "1 min 0 s, uniform 1 (1) in 0.5 s, reconstruction 1 (1) in 0.7 s. They did not spend equally many "
        "evaluations."
    )


def test_agents_whose_interval_includes_zero_cannot_be_told_apart(job: Job) -> None:
    close = trials("ddpg", [(-0.13, 0.91), (-0.12, 0.93), (-0.14, 0.90), (-0.15, 0.92), (-0.13, 0.91)])
    lead, expense = standing([job(BEST, close)])
    assert "which includes zero: they cannot be told apart)" in lead
    assert "(\u2212" in lead.split("above")[1]
    assert "equally many" not in expense


def test_agents_at_the_same_accuracy_are_level(job: Job) -> None:
    same = trials("ddpg", [(-0.2, trial.best.test_accuracy or 0.0) for trial in BEST if trial.best])
    assert ", level with ddpg, the runner-up (\u2212" in standing([job(BEST, same)])[0]


def test_nothing_is_told_with_a_sign(job: Job) -> None:
    """Each seed is one ten-millionth ahead of that of the runner-up, and none behind by half a hundredth of a point."""
    level = trials("ddpg", [(-0.2, 0.9 + 1e-7 * seed) for seed in range(5)])
    leader = trials("local_search", [(-0.1, 0.9 + 1e-7) for _ in range(5)])
    (lead, _) = standing([job(leader, level)])
    assert "\u22120.00" not in lead
    assert "the runner-up (0.00 to 0.00" in lead


def test_no_interval_is_told_where_there_is_none(job: Job) -> None:
    lead = standing([job(BEST[:1], UNIFORM, trials("random", [(-0.3, 0.7)]))])[0]
    assert lead == (
        "local_search is the best agent at this budget, by its reward on the search split. On the test split it has "
        "90.00 %, 15.00 points above uniform, the runner-up (no interval: one seed of local_search)."
    )
    assert "(no interval: one seed of local_search and ddpg)" in standing([job(BEST[:1], NEXT[:1])])[0]
    assert "(no interval: the seed changes neither)" in standing([job(UNIFORM, RECONSTRUCTION)])[0]


def test_the_runner_up_may_be_a_baseline(job: Job) -> None:
    lead = standing([job(UNIFORM, BEST)])[0]
    assert lead.count("uniform") == 2
    assert "16.67 points above uniform, the runner-up (15.33 to 17.67, which excludes zero). The" in lead
    assert lead.endswith("a seed of local_search does better there than uniform is 1.00 (1.00 to 1.00).")


def test_one_agent_is_compared_with_nothing(job: Job) -> None:
    assert standing([job(BEST)]) == []
    assert standing([job(BEST, trials("ddpg", [None]))]) == []
    assert standing([job()]) == []


def test_errors_are_compared_where_the_network_does_not_classify(job: Job, not_classifying: Changed) -> None:
    lead = standing([not_classifying(job(BEST, UNIFORM))])[0]
    assert "has metrics:boxes 0.08333 (95 % interval 0.07333 to 0.09667), 0.1667 below uniform, the runner-up" in lead
    worse = trials("ddpg", [(-0.2, 0.99)])
    lead = standing([not_classifying(job(BEST, worse))])[0]
    assert "above ddpg, the runner-up (no interval: one seed of ddpg)" in lead


def test_few_seeds_are_warned_of(job: Job) -> None:
    assert few_seeds(job(BEST, UNIFORM)) == ""
    assert few_seeds(job(BEST, NEXT[:3], UNIFORM)).startswith(
        "Fewer than 5 seeds: ddpg 3. A 95 % interval over so few holds the truth less often: of 3 seeds "
    )
    assert few_seeds(job(BEST[:1], UNIFORM)) == "Fewer than 5 seeds: local_search 1."


def test_agents_of_jobs_on_the_same_problem_are_compared_by_name_and_job(job: Job) -> None:
    long, short = job(BEST, UNIFORM, name="long"), job(NEXT, UNIFORM, name="short")
    lead, expense = standing([long, short])
    assert lead.startswith("local_search (long) is the best agent at this budget, by the interquartile mean of its 5")
    assert "points above ddpg (short), the runner-up (0.67 to 4.67" in lead
    assert expense.startswith("Evaluations (distinct ones) and time of a seed: local_search (long) 200 (180) in")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_digest": "other"}, "data"),
        ({"weights_digest": "other", "budgets": ()}, "weights, budget"),
        ({"decisions": ()}, "network"),
        ({"spec": {"evaluation": {"fidelity": "prefix"}}}, "evaluation, reward"),
    ],
)
def test_jobs_of_different_problems_are_not_compared(job: Job, changes: dict[str, Any], said: str) -> None:
    one, other = job(BEST, UNIFORM, name="one"), job(NEXT, UNIFORM, name="other", **changes)
    first, *apart = standing([one, other])
    assert first == f"Agents of different jobs are not compared, for these differ in: {said}."
    assert apart == [f"{named.name}: {line}" for named in (one, other) for line in standing([named])]


def test_toy_problems_differ_by_their_settings(job: Job) -> None:
    toys = [
        job(BEST, UNIFORM, data_digest="", weights_digest="", spec={"network": {"kind": "toy", "seed": seed}})
        for seed in (0, 1)
    ]
    assert standing(toys)[0] == "Agents of different jobs are not compared, for these differ in: network."
    assert not standing([toys[0], toys[0]])[0].startswith("Agents of different jobs")
