"""Scores of weights and filters: by hand, beside torch's own pruning, the second order beside exact derivatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from amc_env.pruning.activity import zero_shares
from amc_env.pruning.gradients import LabelledBatch, curvature
from amc_env.pruning.patterns import Filter, FineGrained
from amc_env.pruning.saliency import (
    SALIENCIES,
    Saliency,
    SaliencySettings,
    SnipMomentum,
    filter_scores,
    weight_scores,
)
from tests.amc_env.pruning.small_networks import Residual, images, randomised

INTEL_CODE = SaliencySettings(snip_factors=(0.9, 1.0))


def one_layer() -> nn.Module:
    """Both logits of an image (a, 2a) are 4a, so that its probabilities are one half each."""
    network = nn.Sequential(nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network.get_parameter("0.weight").copy_(torch.tensor([[2.0, 1.0], [4.0, 0.0]]))
    return network.eval()


def two_batches() -> list[LabelledBatch]:
    """Gradients [[-1/2, -1], [1/2, 1]] and [[1, 2], [-1, -2]], of one image each."""
    return [(torch.tensor([[1.0, 2.0]]), torch.tensor([0])), (torch.tensor([[2.0, 4.0]]), torch.tensor([1]))]


@pytest.mark.parametrize(
    ("criterion", "settings", "weights", "filters"),
    [
        ("l1", SaliencySettings(), [[2, 1], [4, 0]], [3, 4]),
        ("l2", SaliencySettings(), [[4, 1], [16, 0]], [5, 16]),
        ("gradient", SaliencySettings(), [[0.25, 0.5], [0.25, 0.5]], [0.75, 0.75]),
        ("snip", SaliencySettings(), [[0.5, 0.5], [1, 0]], [1, 1]),
        # abs(w g) is [[1, 1], [2, 0]], then [[2, 2], [4, 0]]: 0.9 * 1 + 0.9 * 2, and 0.9 * 1 + 1.0 * 2
        ("snip_momentum", SaliencySettings(), [[2.7, 2.7], [5.4, 0]], [5.4, 5.4]),
        ("snip_momentum", INTEL_CODE, [[2.9, 2.9], [5.8, 0]], [5.8, 5.8]),
        # w g is [[-1, -1], [2, 0]], then [[2, 2], [-4, 0]]; of the first filter (-2)^2 and 4^2
        ("taylor", SaliencySettings(), [[2.5, 2.5], [10, 0]], [10, 10]),
    ],
)
def test_scores_worked_by_hand(criterion: Saliency, settings: SaliencySettings, weights: Any, filters: Any) -> None:
    network = one_layer()
    scores = weight_scores(network, ["0"], criterion, two_batches(), settings=settings)
    torch.testing.assert_close(scores["0"], torch.tensor(weights, dtype=torch.float64))
    scores = filter_scores(network, ["0"], criterion, two_batches(), settings=settings)
    torch.testing.assert_close(scores["0"], torch.tensor(filters, dtype=torch.float64))


def test_obd_worked_by_hand() -> None:
    """With h = p (1 - p) x^2 = x^2 / 4, on average over the images 0.625 and 2.5; it is h w^2 / 2.

    The mean of 4,000 squares of random signs: 10 % off would be over four standard deviations.
    """
    scores = weight_scores(one_layer(), ["0"], "obd", two_batches() * 500)
    torch.testing.assert_close(
        scores["0"], torch.tensor([[1.25, 1.25], [5.0, 0.0]], dtype=torch.float64), rtol=0.1, atol=0
    )


def test_random_scores_are_uniform_and_of_their_seed() -> None:
    network = one_layer()
    first, again = (weight_scores(network, ["0"], "random")["0"] for _ in range(2))
    other = weight_scores(network, ["0"], "random", settings=SaliencySettings(seed=1))["0"]
    expected = torch.rand(2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(first, expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert filter_scores(network, ["0"], "random")["0"].shape == (2,)


def test_bn_scale_is_the_size_of_gamma_shared_out_over_the_filter() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2)).eval()
    with torch.no_grad():
        network.get_parameter("1.weight").copy_(torch.tensor([-0.6, 0.3]))
    filters = filter_scores(network, ["0"], "bn_scale", norms={"0": "1"})["0"]
    torch.testing.assert_close(filters, torch.tensor([0.6, 0.3], dtype=torch.float64), rtol=0, atol=1e-7)
    weights = weight_scores(network, ["0"], "bn_scale", norms={"0": "1"})["0"]
    assert weights.shape == (2, 3, 1, 1)
    torch.testing.assert_close(weights[:, 1, 0, 0], filters / 3)


def test_apoz_counts_the_zeros_after_the_relu() -> None:
    """The layer's outputs are x, -x and 1 of its one input: 1/4, 3/4 and none of the values after the ReLU are zero."""
    network = nn.Sequential(nn.Linear(1, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        network.get_parameter("0.weight").copy_(torch.tensor([[1.0], [-1.0], [0.0]]))
        network.get_parameter("0.bias").copy_(torch.tensor([0.0, 0.0, 1.0]))
    batches = [(torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3)), (torch.tensor([[-1.0]]), torch.zeros(1))]
    scores = filter_scores(network, ["0"], "apoz", batches)["0"]
    assert scores.tolist() == [0.75, 0.25, 1.0]
    assert weight_scores(network, ["0"], "apoz", batches)["0"].tolist() == [[0.75], [0.25], [1.0]]


@pytest.mark.parametrize("inplace", [False, True])
def test_apoz_looks_behind_batch_norms_and_sums(inplace: bool) -> None:
    network = randomised(Residual(inplace=inplace))
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        stem = F.relu(network.norm(network.stem(images(20))))  # type: ignore[operator]
        first = F.relu(network.norm1(network.first(stem)))  # type: ignore[operator]
        seen = {"stem": stem, "first": first}
        seen["second"] = F.relu(network.norm2(network.second(first)) + stem)  # type: ignore[operator]
    shares = zero_shares(network, list(seen), [images(20)[:15], images(20)[15:]])
    for name, values in seen.items():
        torch.testing.assert_close(shares[name], (values == 0).double().mean(dim=(0, 2, 3)))


def test_apoz_knows_relu6_and_follows_pooling() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU6(), nn.Flatten(), nn.Linear(36, 2)).eval()
    shares = zero_shares(network, ["0"], [images(10)])["0"]
    with torch.no_grad():
        values = network[2](network[1](network[0](images(10))))
    torch.testing.assert_close(shares, (values == 0).double().mean(dim=(0, 2, 3)))


# beside torch's own pruning


def two_layers() -> nn.Module:
    return randomised(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)))


@pytest.mark.parametrize("kept", [1, 40, 108, 216])
def test_l1_gives_the_mask_of_torch(kept: int) -> None:
    network = two_layers()
    mask = FineGrained().mask(weight_scores(network, ["0"], "l1")["0"].numpy(), kept)
    prune.l1_unstructured(network[0], "weight", amount=216 - kept)  # type: ignore[no-untyped-call,index]
    assert np.array_equal(mask, network.get_buffer("0.weight_mask").numpy() != 0)


@pytest.mark.parametrize(("criterion", "n"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("kept", [1, 5])
def test_filters_give_the_mask_of_torch(criterion: Saliency, n: int, kept: int) -> None:
    network = two_layers()
    mask = Filter().mask(weight_scores(network, ["0"], criterion)["0"].numpy(), 27 * kept)
    prune.ln_structured(network[0], "weight", amount=8 - kept, n=n, dim=0)  # type: ignore[no-untyped-call,index]
    assert np.array_equal(mask, network.get_buffer("0.weight_mask").numpy() != 0)


def test_one_threshold_gives_the_masks_of_torch() -> None:
    network = two_layers()
    scores = weight_scores(network, ["0", "3"], "l1")
    threshold = torch.cat([score.flatten() for score in scores.values()]).sort().values[2000]
    layers: list[tuple[Any, str]] = [(network[0], "weight"), (network[3], "weight")]  # type: ignore[index]
    prune.global_unstructured(layers, prune.L1Unstructured, amount=2000)
    for name, score in scores.items():
        assert torch.equal(score >= threshold, network.get_buffer(f"{name}.weight_mask") != 0)


# second order


def classified(count: int, seed: int = 0) -> LabelledBatch:
    labels = torch.randint(4, (count,), generator=torch.Generator().manual_seed(seed))
    return images(count, size=6, seed=seed), labels


def single_images(count: int) -> list[LabelledBatch]:
    pixels, labels = classified(count)
    return [(pixels[i : i + 1], labels[i : i + 1]) for i in range(count)]


def test_curvature_of_a_linear_classifier_is_the_diagonal_of_the_hessian() -> None:
    """2,000 batches of four draws: the relative standard deviation of an element is at most about 1.6 %."""
    network = randomised(nn.Sequential(nn.Flatten(), nn.Linear(3 * 4, 4)))
    pixels = images(8, size=2)
    labels = classified(8)[1]

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.linear(pixels.flatten(1), weight, network.get_parameter("1.bias")), labels)

    weight = network.get_parameter("1.weight").detach()
    hessian = torch.func.hessian(loss)(weight).reshape(weight.numel(), -1)
    found = curvature(network, ["1"], [(pixels, labels)] * 2000, torch.Generator().manual_seed(0))["1"]
    torch.testing.assert_close(found.flatten(), hessian.diagonal().double(), rtol=0.08, atol=0)


def test_curvature_of_a_small_network_is_the_diagonal_of_its_gauss_newton_matrix() -> None:
    """Single images, each 100 times with four draws, then batches of all: both estimate the same diagonal."""
    network = randomised(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    )
    exact = gauss_newton_diagonal(network, "0", classified(6)[0])
    generator = torch.Generator().manual_seed(0)
    for batches in (single_images(6) * 100, [classified(6)] * 600):
        found = curvature(network, ["0"], batches, generator)["0"]
        relative = (found / exact - 1).flatten()
        assert float(relative.abs().max()) < 0.35
        assert float(relative.square().mean().sqrt()) < 0.1
        assert float(torch.corrcoef(torch.stack([found.flatten(), exact.flatten()]))[0, 1]) > 0.99


def gauss_newton_diagonal(network: nn.Module, layer: str, pixels: torch.Tensor) -> torch.Tensor:
    """Diagonal of the mean of J'(diag(p) - pp')J, J by automatic differentiation of every logit."""
    name = f"{layer}.weight"

    def logits(weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(network, {name: weight}, (pixels,))  # type: ignore[no-any-return]

    weight = network.get_parameter(name).detach()
    jacobian = torch.func.jacrev(logits)(weight).flatten(2).double()
    p = logits(weight).softmax(dim=1).double().detach()
    middle = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    diagonal: torch.Tensor = torch.einsum("nkw,nkl,nlw->w", jacobian, middle, jacobian).detach() / len(pixels)
    return diagonal.reshape(weight.shape)


# what a network and its gradients go through


def test_the_network_stays_as_it_is_and_frozen_weights_have_gradients() -> None:
    network = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 4)))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.requires_grad_(False)
    for criterion in ("gradient", "obd"):
        assert float(weight_scores(network, ["0"], criterion, [classified(6)])["0"].abs().sum()) > 0
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_gradients_do_not_depend_on_how_images_are_batched() -> None:
    network = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 4)))
    whole = weight_scores(network, ["0"], "snip", [classified(6)])["0"]
    pixels, labels = classified(6)
    split = weight_scores(network, ["0"], "snip", [(pixels[:4], labels[:4]), (pixels[4:], labels[4:])])["0"]
    torch.testing.assert_close(whole, split, rtol=1e-4, atol=1e-7)


def test_snip_momentum_gathers_over_the_steps_of_a_training() -> None:
    gathered = SnipMomentum()
    for step in range(3):
        gathered.update({"layer": torch.tensor([2.0])}, {"layer": torch.tensor([-0.5 * 2**step])})
    assert gathered.scores["layer"].item() == pytest.approx(0.9 * (1 + 2 + 4))


# what is refused


@pytest.mark.parametrize("criterion", ["gradient", "snip", "snip_momentum", "taylor"])
@pytest.mark.parametrize("batches", [None, []])
def test_a_criterion_that_gets_no_data_says_so(criterion: Saliency, batches: Sequence[LabelledBatch] | None) -> None:
    with pytest.raises(
        ValueError,
        match=f"^criterion '{criterion}': needs images and their labels, got none; give batches, or take l1, l2 or bn_",
    ):
        weight_scores(one_layer(), ["0"], criterion, batches)


@pytest.mark.parametrize("criterion", ["obd", "apoz"])
def test_a_criterion_that_gets_no_images_says_so(criterion: Saliency) -> None:
    with pytest.raises(ValueError, match=f"^criterion '{criterion}': needs images, got none; give batches"):
        filter_scores(one_layer(), ["0"], criterion)


def test_an_unknown_criterion_gets_its_closest_match() -> None:
    expected = f"^criterion: expected one of {', '.join(SALIENCIES)}, got 'snip_momentun'; did you mean 'snip_momentum'"
    with pytest.raises(ValueError, match=expected):
        weight_scores(one_layer(), ["0"], "snip_momentun")  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [torch.zeros(1), torch.tensor([-1]), torch.tensor([[1]])])
def test_labels_must_be_classes(labels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected class indices as labels, integers \(n,\) of at least 0, got "):
        weight_scores(one_layer(), ["0"], "snip", [(torch.ones(1, 2), labels)])


@pytest.mark.parametrize("criterion", SALIENCIES)
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_by_the_layers_name(criterion: Saliency, wrong: float) -> None:
    network = one_layer()
    with torch.no_grad():
        network.get_parameter("0.weight")[1, 0] = wrong
    message = "^layer '0': expected finite weights, got 1 of 4 that are NaN or infinite; load weights that were trained"
    with pytest.raises(ValueError, match=message):
        weight_scores(network, ["0"], criterion, two_batches())


@pytest.mark.parametrize("criterion", ["gradient", "obd"])
def test_gradients_that_are_no_numbers_are_refused_by_the_layers_name(criterion: Saliency) -> None:
    batches = [(torch.tensor([[np.nan, 1.0]], dtype=torch.float32), torch.tensor([0]))]
    with pytest.raises(ValueError, match=r"^layer '0': expected finite gradients, got [24] of 4 that are NaN or infin"):
        weight_scores(one_layer(), ["0"], criterion, batches)


def test_bn_scale_needs_a_batch_norm() -> None:
    message = "^layer '0': bn_scale reads the scales of the batch norm that alone sees the layer's outputs, and there"
    with pytest.raises(ValueError, match=message):
        filter_scores(one_layer(), ["0"], "bn_scale")
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, affine=False)).eval()
    with pytest.raises(ValueError, match=message):
        filter_scores(network, ["0"], "bn_scale", norms={"0": "1"})


def test_apoz_needs_a_relu() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    message = "^layer '2': apoz counts the zeros after the ReLU that follows, and none does; keep the layer, or take an"
    with pytest.raises(ValueError, match=message):
        filter_scores(network, ["0", "2"], "apoz", two_batches())


def test_gradients_need_logits() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 1)).eval()
    with pytest.raises(ValueError, match=r"^gradients: expected the network to return logits \(n, classes\), got \(6,"):
        weight_scores(network, ["0"], "snip", [classified(6)])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        (
            {"snip_factors": (1.0, -0.1)},
            r"snip_factors: expected two numbers of at least 0, of the score so far",
        ),
        ({"snip_factors": (np.inf, 1.0)}, r"snip_factors: expected two numbers of at least 0"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SaliencySettings(**wrong)
