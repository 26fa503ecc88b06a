"""Scoring the images that tell plans apart: chosen as said, exact for the plan that chose them, close for others."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn

from amc_env import zoo
from amc_env.datasets import SplitSizes, load_splits
from amc_env.evaluation import NetworkProblem
from amc_env.hard_images import choose_hard_images
from amc_env.objectives import KnownImages, evaluate_objective, find_objective
from amc_env.problem import Widths
from amc_env.settings import EvaluationSettings, PruningSettings
from amc_env.splits import DataSplits


@pytest.fixture(scope="module")
def data() -> DataSplits:
    return load_splits("digits", SplitSizes(calibration=200, search=300, test=290), None)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    network = zoo.digits_network()
    zoo.load_weights(network, zoo.digits_weights(tmp_path_factory.mktemp("cache")))
    return network


def build(network: nn.Module, data: DataSplits, objective: str = "agreement", **options: object) -> NetworkProblem:
    evaluation = dataclasses.replace(
        EvaluationSettings(fidelity="sequential", images=50, rows=500, objective=objective),
        **options,  # type: ignore[arg-type]
    )
    settings = PruningSettings(round_to=1, criterion="l1")
    return NetworkProblem(network, data, budget={"macs": "40%"}, settings=settings, evaluation=evaluation)


def plans(problem: NetworkProblem, count: int) -> list[Widths]:
    rng = np.random.default_rng(0)
    ratios = (rng.uniform(0, 0.8, len(problem.decisions)) for _ in range(count))
    return [problem.widths(problem.fit_to_budget(plan)) for plan in ratios]


def test_chooses_where_the_reference_moved_most_and_keeps_the_rest() -> None:
    dense = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    pruned = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.5, 0.0], [0.0, 2.0]])
    labels = torch.tensor([0, 0, 0, 0])
    batches = [(pruned[:2], labels[:2]), (pruned[2:], labels[2:])]
    hard = choose_hard_images(nn.Identity(), batches, [dense[:2], dense[2:]], find_objective("top1"), 2)
    assert hard.chosen.tolist() == [1, 2]
    assert hard.rest == KnownImages(images=2, error_sum=1.0, correct=1)


def test_known_images_count_as_if_they_had_been_run() -> None:
    logits, labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 0, 0, 1])
    top1 = find_objective("top1")
    whole = evaluate_objective(nn.Identity(), [(logits, labels)], top1, None, total=4)
    known = KnownImages(images=3, error_sum=1.0, correct=2)
    assert evaluate_objective(nn.Identity(), [(logits[3:], labels[3:])], top1, None, total=4, known=known) == whole
    given_up = evaluate_objective(
        nn.Identity(),
        [(logits[2:3], labels[2:3])] * 2,
        top1,
        None,
        total=4,
        give_up_at=0.25,
        known=KnownImages(2, 1.0, 1),
    )
    assert (given_up.error, given_up.fraction) == (1 / 3, 0.75)


@pytest.mark.parametrize("objective", ["agreement", "top1", "cross_entropy"])
def test_the_plan_that_chose_them_scores_as_on_all(objective: str, network: nn.Module, data: DataSplits) -> None:
    some, whole = build(network, data, objective, hard_images=60), build(network, data, objective)
    equal = whole.widths(whole.fit_to_budget(whole.ratios(whole.smallest_widths) / 2))
    expected, got = whole.score(equal), some.score(equal)
    assert got.error == pytest.approx(expected.error, abs=1e-6)
    assert got.accuracy == pytest.approx(expected.accuracy)
    assert got.fraction == 1.0


def test_a_fifth_of_the_images_orders_plans_as_all_do(network: nn.Module, data: DataSplits) -> None:
    some, whole = build(network, data, hard_images=60), build(network, data)
    errors = np.array([[problem.score(widths).error for problem in (some, whole)] for widths in plans(whole, 12)])
    ranks = errors.argsort(axis=0).argsort(axis=0)
    assert np.asarray(np.corrcoef(ranks.T))[0, 1] > 0.95


def test_final_scores_and_the_dense_network_use_all_images(network: nn.Module, data: DataSplits) -> None:
    some, whole = build(network, data, hard_images=60), build(network, data)
    (widths,) = plans(whole, 1)
    assert some.measure(widths, "search") == whole.measure(widths, "search")
    assert some.score(some.dense_widths) == whole.score(whole.dense_widths)


def test_activations_are_reused_as_ever(network: nn.Module, data: DataSplits) -> None:
    problem, fresh = build(network, data, hard_images=60), build(network, data, hard_images=60)
    first = plans(problem, 1)[0]
    last = (*first[:-1], problem.decisions[-1].choices[0])
    problem.score(first)
    problem.score(last)
    assert problem.score(last) == fresh.score(last)


def test_refuses_more_than_there_are_or_none(network: nn.Module, data: DataSplits) -> None:
    message = "hard_images: expected fewer than the 300 images of the search split, got 300; leave it out to score all"
    with pytest.raises(ValueError, match=re.escape(message)):
        build(network, data, hard_images=300)
    with pytest.raises(ValueError, match=re.escape("hard_images: expected at least 1, or none to score all, got 0")):
        build(network, data, hard_images=0)


def test_refuses_outputs_that_are_no_logits() -> None:
    boxes = torch.zeros(2, 3, 4)
    with pytest.raises(
        ValueError, match=r"objective 'agreement': expected the network to return logits \(n, classes\)"
    ):
        choose_hard_images(nn.Identity(), [(boxes, torch.zeros(2))], [boxes], find_objective("agreement"), 1)
