"""Channels by every criterion: pooled over the layers that produce them, removed for good, kept on disk."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agents.global_ranking import GlobalRanking
from amc_env.evaluation import NetworkProblem
from amc_env.image_problem import ImageProblem
from amc_env.pruning.criteria import CRITERIA, Criterion, importance, removal_order
from amc_env.pruning.saliency import ON_IMAGES, SALIENCIES, Saliency, SaliencySettings, filter_scores
from amc_env.pruning.trace import trace_channels
from amc_env.settings import EvaluationSettings, PruningSettings
from amc_env.splits import DataSplits
from tests.amc_env.pruning.small_networks import Residual, images, random_splits, randomised
from tests.contracts.agent_contract import reported

AS_IT_IS = EvaluationSettings(fidelity="magnitude", recalibrate_batchnorm=False)


def problem_of(
    criterion: Criterion,
    network: nn.Module | None = None,
    data: DataSplits | None = None,
    budget: str = "60%",
    **settings: Any,
) -> NetworkProblem:
    return NetworkProblem(
        network or randomised(Residual(width=8)),
        data or random_splits(),
        budget={"macs": budget},
        settings=PruningSettings(round_to=1, max_ratio=0.9, criterion=criterion, **settings),
        evaluation=AS_IT_IS,
    )


@pytest.mark.parametrize("criterion", SALIENCIES)
def test_units_are_pooled_over_the_layers_that_produce_them(criterion: Saliency) -> None:
    """The sum of the residual block is one group: of the stem and of the second layer."""
    network = randomised(Residual())
    graph = trace_channels(network, images(2))
    assert [group.name for group in graph.groups] == ["stem", "first"]
    labels = torch.randint(10, (40,), generator=torch.Generator().manual_seed(0))
    batches = [(images(40)[:20], labels[:20]), (images(40)[20:], labels[20:])]
    scores = filter_scores(network, ["stem", "first", "second"], criterion, batches, norms=dict(graph.foldable))
    found = importance(network, graph, criterion, batches)
    expected = torch.cat([scores["stem"] + scores["second"], scores["first"]])
    np.testing.assert_allclose(found, expected.numpy())
    orders = removal_order(network, graph, criterion, scores=found)
    assert orders[1].tolist() == np.argsort(-scores["first"].numpy()).tolist()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_problem_removes_channels_by_every_criterion(criterion: Criterion) -> None:
    problem = problem_of(criterion)
    widths = problem.widths(problem.fit_to_budget(np.full(len(problem.decisions), 0.5)))
    evaluation = problem.evaluate_widths(widths)
    assert evaluation.feasible
    pruned = problem.prune(widths)
    assert pruned.get_submodule("first").out_channels == widths[1] < 8


@pytest.mark.parametrize("criterion", ON_IMAGES)
def test_scores_on_images_are_kept_on_disk(criterion: Criterion, monkeypatch: pytest.MonkeyPatch) -> None:
    first = problem_of(criterion)
    orders = [order.tolist() for order in first.orders]
    monkeypatch.setattr(ImageProblem, "_labelled_batches", lambda _: pytest.fail("computed again"))
    second = problem_of(criterion)
    assert [order.tolist() for order in second.orders] == orders


def test_scores_on_disk_know_labels_settings_and_groups() -> None:
    data = random_splits()
    other = np.roll(data.calibration.labels, 1)
    relabelled = replace(data, calibration=replace(data.calibration, labels=other))
    momentum = SaliencySettings(snip_factors=(0.5, 1.0))
    scores = [
        problem.removal_scores()[-1].tolist()
        for problem in (
            problem_of("snip_momentum", data=data),
            problem_of("snip_momentum", data=relabelled),
            problem_of("snip_momentum", data=data, saliency=momentum),
        )
    ]
    assert len({tuple(each) for each in scores}) == 3
    assert problem_of("snip_momentum", data=data, keep=("stem",)).removal_scores()[0].tolist() == scores[0]


def test_two_random_orders_differ_by_their_seed() -> None:
    orders = [
        [order.tolist() for order in problem_of("random", saliency=SaliencySettings(seed=seed)).orders]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_scores_stand_in_the_order_of_removal() -> None:
    for criterion in ("l1", "taylor", "apoz"):
        problem = problem_of(criterion)
        for decision, scores in zip(problem.decisions, problem.removal_scores(), strict=True):
            assert scores.shape == (decision.size,)
            assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("budget", ["macs", "size", "activations"])
def test_one_threshold_over_all_channels(budget: str) -> None:
    """What goes has a lower score than what stays, but for the units that the slack has paid for."""
    problem = NetworkProblem(
        randomised(Residual(width=12)),
        random_splits(),
        budget={budget: "70%"},
        settings=PruningSettings(round_to=1, max_ratio=0.9, criterion="l1"),
        evaluation=AS_IT_IS,
    )
    (evaluation,) = reported(GlobalRanking(), problem, 1)
    assert evaluation.feasible
    scores = problem.removal_scores()
    lowest = [own[width - 1] for own, width in zip(scores, evaluation.widths, strict=True)]
    removed = [own[width] for own, width in zip(scores, evaluation.widths, strict=True) if width < len(own)]
    assert max(lowest) >= max(removed)


# what is refused


@pytest.mark.parametrize("criterion", ["energy", "obs"])
def test_orders_of_one_group_have_no_scores(criterion: Criterion) -> None:
    message = f"^criterion '{criterion}': orders the units of a group by what their removal does .* reconstruction$"
    with pytest.raises(ValueError, match=message):
        reported(GlobalRanking(), problem_of(criterion), 1)


def test_bn_scale_needs_batch_norms_where_channels_go() -> None:
    with pytest.raises(ValueError, match=r"^layer 'stem': bn_scale reads the scales of the batch norm that alone sees"):
        _ = problem_of("bn_scale", randomised(Residual(norms=False, width=8))).orders


def bottleneck() -> nn.Module:
    """The second layer has no ReLU behind it."""
    return randomised(
        nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 64, 10),
        )
    )  # fmt: skip


def test_apoz_needs_a_relu_where_channels_go() -> None:
    with pytest.raises(ValueError, match=r"^layer '2': apoz counts the zeros after the ReLU that follows, and none"):
        _ = problem_of("apoz", bottleneck()).orders
    assert len(problem_of("apoz", bottleneck(), budget="90%", keep=("2",)).removal_scores()) == 2


def test_gradients_need_labels_that_are_classes() -> None:
    data = random_splits()
    values = replace(data.calibration, labels=np.zeros((60, 2), dtype=np.float32))
    with pytest.raises(ValueError, match=r"^gradients: expected class indices as labels"):
        _ = problem_of("snip", data=replace(data, calibration=values)).orders


def test_an_unknown_criterion_is_refused_with_its_closest_match() -> None:
    with pytest.raises(
        ValueError, match=r"^criterion: expected one of .*, got 'bn_scales'; did you mean 'bn_scale'\?$"
    ):
        PruningSettings(criterion="bn_scales")  # type: ignore[arg-type]


def test_a_calibration_is_needed_by_obs_alone() -> None:
    network = randomised(Residual())
    graph = trace_channels(network, images(2))
    with pytest.raises(ValueError, match=r"^criterion 'obs': needs a calibration, got None$"):
        removal_order(network, graph, "obs")
    with pytest.raises(ValueError, match=r"^criterion 'snip': needs images and their labels, got none"):
        removal_order(network, graph, "snip")
