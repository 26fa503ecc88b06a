"""Weights by every criterion of saliency: orders by patterns, scores on disk, one threshold over all layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from agents.global_ranking import GlobalRanking
from amc_env.fine_grained import WeightProblem
from amc_env.image_problem import ImageProblem
from amc_env.pruning.patterns import parse_pattern
from amc_env.pruning.saliency import OF_FILTERS, SALIENCIES, Saliency, SaliencySettings, weight_scores
from amc_env.settings import EvaluationSettings, WeightSettings
from amc_env.splits import DataSplits
from amc_env.stdlib_docs import LENGTH, VOCABULARY
from amc_env.text_classifier import TextClassifier, TextRecipe
from hw.host import Host
from hw.sparse.latency import SparseLatencyTable, SparseLayerTimes
from tests.amc_env.pruning.small_networks import random_splits, randomised
from tests.contracts.agent_contract import reported

OF_WEIGHTS = [name for name in SALIENCIES if name not in OF_FILTERS]


class Small(nn.Module):
    """Two convolutions with a batch norm and a ReLU, and a linear layer, for 3x8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, stride=2, bias=False)
        self.norm2 = nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm2(self.second(F.relu(self.norm(self.first(x))))))
        return cast(torch.Tensor, self.linear(x.mean((2, 3))))


def problem_of(
    criterion: Saliency, *, budget: dict[str, float | str] | None = None, data: DataSplits | None = None, **options: Any
) -> WeightProblem:
    latency = options.pop("latency", None)
    return WeightProblem(
        randomised(Small()),
        data or random_splits(),
        budget=budget or {"macs": "40%"},
        settings=WeightSettings(**{"criterion": criterion, "levels": 400, **options}),
        evaluation=EvaluationSettings(fidelity="magnitude", recalibrate_batchnorm=False),
        latency=latency,
    )


@pytest.mark.parametrize("criterion", OF_WEIGHTS)
@pytest.mark.parametrize("granularity", ["fine_grained", "vector"])
def test_the_mask_is_that_of_the_pattern_on_the_scores(criterion: Saliency, granularity: str) -> None:
    problem = problem_of(criterion, granularity=granularity, keep=("linear",))
    calibration = problem.data.calibration
    images, labels = problem.data.preprocessing(calibration.images), torch.from_numpy(calibration.labels)
    images = images.contiguous(memory_format=torch.channels_last)
    scores = weight_scores(
        problem.network, problem.names, criterion, [(images[:32], labels[:32]), (images[32:], labels[32:])]
    )
    widths = problem.widths([0.7, 0.5])
    masks = problem.masks(widths)
    for width, name in zip(widths, problem.names, strict=True):
        assert np.array_equal(masks[name], parse_pattern(granularity).mask(scores[name].numpy(), width))


@pytest.mark.parametrize("criterion", OF_FILTERS)
def test_criteria_of_filters_remove_whole_filters(criterion: Saliency) -> None:
    problem = problem_of(criterion, granularity="filter", keep=("linear",))
    masks = problem.masks(problem.widths([0.5, 0.5]))
    assert {name: mask.all(axis=(1, 2, 3)).tolist() for name, mask in masks.items()} == {
        name: mask.any(axis=(1, 2, 3)).tolist() for name, mask in masks.items()
    }
    assert all(int(mask.any(axis=(1, 2, 3)).sum()) == 4 for mask in masks.values())
    if criterion == "bn_scale":
        scales = problem.network.get_parameter("norm.weight").detach().abs().numpy()
        assert sorted(np.flatnonzero(masks["first"].any(axis=(1, 2, 3)))) == sorted(np.argsort(-scales)[:4])


def test_scores_on_images_are_kept_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    first = problem_of("taylor")
    monkeypatch.setattr(ImageProblem, "_labelled_batches", lambda _: pytest.fail("computed again"))
    second = problem_of("taylor")
    widths = first.widths([0.5, 0.5, 0.5])
    for name, mask in first.masks(widths).items():
        assert np.array_equal(mask, second.masks(widths)[name])


def test_fitted_weights_on_disk_know_by_which_scores_they_stay() -> None:
    data = random_splits()
    other = np.roll(data.calibration.labels, 1)
    relabelled = replace(data, calibration=replace(data.calibration, labels=other))
    fitted = [
        WeightProblem(
            randomised(Small()),
            each,
            budget={"macs": "40%"},
            settings=WeightSettings(criterion="snip", levels=8, saliency=settings),
        )
        for each, settings in (
            (data, SaliencySettings()),
            (relabelled, SaliencySettings()),
        )
    ]
    for problem in fitted:
        widths = problem.widths([0.5, 0.5, 0.5])
        pruned = problem.prune(widths)
        for name, mask in problem.masks(widths).items():
            assert np.array_equal(pruned.get_parameter(f"{name}.weight").detach().numpy() != 0, mask)


# one threshold


def test_one_threshold_over_all_weights_is_the_global_pruning_of_torch() -> None:
    """Every count is a choice, and the budget on MACs counts all weights alike where each is used once."""
    network = randomised(nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Linear(12, 10)))
    problem = WeightProblem(
        network,
        random_splits(),
        budget={"macs": 600},
        settings=WeightSettings(criterion="l1", levels=3000, max_ratio=0.99),
        evaluation=EvaluationSettings(fidelity="magnitude"),
    )
    (evaluation,) = reported(GlobalRanking(), problem, 1)
    masks = problem.masks(evaluation.widths)
    layers: list[tuple[Any, str]] = [(network.get_submodule(name), "weight") for name in ("1", "3")]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=192 * 12 + 120 - 600)
    for name, mask in masks.items():
        torchs = network.get_buffer(f"{name}.weight_mask").numpy() != 0
        assert (mask != torchs).sum() <= 60  # counts are rounded to levels, 600 of 2,424 in all
    assert 540 <= evaluation.costs["macs"] <= 600


def latency_table(problem: WeightProblem) -> SparseLatencyTable:
    """Each layer takes a millisecond dense and as much less as it has fewer weights."""
    layers = {
        decision.name: SparseLayerTimes(1.0, (1, decision.size), (1.0 / decision.size, 1.0))
        for decision in problem.decisions
    }
    return SparseLatencyTable(1, 1, 0.5, layers, Host())


@pytest.mark.parametrize(("granularity", "criterion"), [("fine_grained", "snip"), ("vector", "l1"), ("n:4", "l1")])
@pytest.mark.parametrize("budget", ["macs", "size", "sparse_latency_ms"])
def test_one_threshold_holds_every_budget(granularity: str, criterion: Saliency, budget: str) -> None:
    whole = ("first", "linear") if granularity == "n:4" else ()
    options: dict[str, Any] = {"granularity": granularity, "keep": whole[:1]}
    latency = latency_table(problem_of(criterion, budget={"macs": "90%"}, **options))
    limits: dict[str, float | str] = {budget: "85%" if granularity == "n:4" else "60%"}
    problem = problem_of(criterion, budget=limits, latency=latency, **options)
    for agent in (GlobalRanking(), GlobalRanking(normalised=True)):
        (evaluation,) = reported(agent, problem, 1)
        assert evaluation.feasible
        assert evaluation.widths != problem.smallest_widths


def test_scores_of_units_are_the_means_of_their_weights() -> None:
    problem = problem_of("l1", granularity="vector")
    (first, *_) = problem.removal_scores()
    weight = problem.network.get_parameter("first.weight").detach().abs().double().mean(dim=3).flatten()
    expected = weight.sort(descending=True).values.repeat_interleave(3)
    np.testing.assert_allclose(first, expected.numpy())


def test_scores_of_obs_are_relative_to_the_outputs() -> None:
    problem = WeightProblem(
        randomised(Small()), random_splits(), budget={"macs": "40%"}, settings=WeightSettings(levels=8)
    )
    for scores, errors in zip(problem.removal_scores(), problem.reconstruction_errors(), strict=True):
        assert (np.diff(scores) <= 0).all()
        assert float(scores.sum()) == pytest.approx(1.0, rel=0.2)  # the removals of all weights lose all the variance
        assert errors[0] < 1.0


# what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"criterion": "energy"},
            "criterion: energy is of channels, by the layers that read them; for weights take one",
        ),
        ({"criterion": "input_l1"}, "criterion: input_l1 is of channels, by the layers that read them; for weights"),
        (
            {"criterion": "bn_scale"},
            r"criterion: bn_scale scores whole filters; take granularity filter \(or channel, which removes them for "
            r"good\), or another criterion, got granularity fine_grained",
        ),
        ({"criterion": "apoz", "granularity": "4x1"}, "criterion: apoz scores whole filters; .* got granularity 4x1"),
        ({"criterion": "tailor"}, r"criterion: expected one of obs, l1, .*, got 'tailor'; did you mean 'taylor'\?"),
    ],
)
def test_criteria_that_do_not_suit_weights_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WeightSettings(**settings)


def test_bn_scale_names_the_layer_without_a_batch_norm() -> None:
    with pytest.raises(ValueError, match=r"^layer 'linear': bn_scale reads the scales of the batch norm"):
        problem_of("bn_scale", granularity="filter")


@pytest.mark.parametrize("criterion", ["snip_momentum", "taylor", "obd"])
def test_linear_layers_of_a_transformer_have_scores(criterion: Saliency) -> None:
    network = TextClassifier(TextRecipe(width=16, blocks=1)).eval()
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    tokens = torch.randint(1, VOCABULARY, (20, LENGTH), generator=torch.Generator().manual_seed(0))
    scores = weight_scores(network, layers, criterion, [(tokens, torch.arange(20) % 3)])
    assert len(scores) == 7
    assert all((score >= 0).all() and score.sum() > 0 for score in scores.values())
