"""Block reconstruction: against the optimum of linear blocks, which blocks there are, and as part of the problems."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from amc_env import zoo
from amc_env.datasets import SplitSizes, load_splits
from amc_env.evaluation import NetworkProblem
from amc_env.settings import EvaluationSettings, PruningSettings
from amc_env.splits import DataSplits
from amc_env.training import blocks
from amc_env.training.blocks import check_blocks, find_blocks, reconstruct_blocks
from amc_env.weights import weights_digest


@pytest.fixture(scope="module")
def data() -> DataSplits:
    return load_splits("digits", SplitSizes(calibration=200, search=200, test=500))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.digits_weights(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def network(weights: Path) -> nn.Module:
    network = zoo.digits_network()
    zoo.load_weights(network, weights)
    return network


def problem_of(network: nn.Module, data: DataSplits, epochs: int, **evaluation: Any) -> NetworkProblem:
    return NetworkProblem(
        copy.deepcopy(network),
        data,
        budget={"macs": "30%"},
        settings=PruningSettings(round_to=1, criterion="obs"),
        evaluation=EvaluationSettings(block_epochs=epochs, objective="agreement", **{"images": 200} | evaluation),
    )


def half(problem: NetworkProblem) -> tuple[int, ...]:
    return problem.widths(problem.fit_to_budget(np.full(len(problem.decisions), 0.6)))


def random_linear(inputs: int, outputs: int, seed: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=generator))
        layer.bias.zero_()
    return layer


class Net(nn.Sequential):
    """Whose modules are the blocks: the network itself is none."""


def test_two_linear_layers_come_to_the_best_matrix_of_their_rank() -> None:
    """Eckart and Young: with white inputs the least error is what the smaller singular values hold."""
    inputs = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(200, 6)))[0]).float() * 200**0.5
    inputs = inputs - inputs.mean(dim=0)
    inputs = torch.linalg.qr(inputs)[0] * 200**0.5  # exactly white, without a mean
    dense = Net(nn.Sequential(random_linear(6, 6, 0), random_linear(6, 6, 1))).eval()
    thin = Net(nn.Sequential(random_linear(6, 3, 2), random_linear(3, 6, 3))).eval()
    product = (dense.get_parameter("0.1.weight") @ dense.get_parameter("0.0.weight")).detach()
    values = torch.linalg.svdvals(product).square()
    best = float(values[3:].sum() / values.sum())

    errors = reconstruct_blocks(thin, dense, [inputs[:100], inputs[100:]], epochs=300)

    before, after = errors["0"]
    assert before > 2 * best
    assert best * 0.999 < after < best * 1.05
    with torch.no_grad():
        wanted = dense(inputs)
        actual = float((thin(inputs) - wanted).square().mean() / wanted.var(dim=0, correction=0).mean())
    assert actual == pytest.approx(after, rel=1e-4)


def test_a_pruned_network_comes_closer_to_the_dense_one_on_images_that_it_has_not_seen(
    network: nn.Module, data: DataSplits
) -> None:
    plain, reconstructed = (problem_of(network, data, epochs) for epochs in (0, 10))
    widths = half(plain)
    before, after = (problem.measure(widths, "test") for problem in (plain, reconstructed))
    assert after.error < 0.9 * before.error
    assert after.accuracy is not None
    assert before.accuracy is not None
    assert after.accuracy >= before.accuracy


def test_what_is_trained_and_what_stays(network: nn.Module, data: DataSplits) -> None:
    problem = problem_of(network, data, 0)
    dense = weights_digest(problem.network)
    thin, kept = problem.prune(half(problem)), problem.kept_of_blocks(half(problem))
    thin.get_parameter("block1.conv1.weight").requires_grad_(False)
    images = [data.preprocessing(data.calibration.images[part]) for part in (slice(0, 120), slice(120, 200))]
    trained, again = copy.deepcopy(thin), copy.deepcopy(thin)
    torch.manual_seed(1)
    errors = reconstruct_blocks(trained, problem.network, images, epochs=2, kept_of_blocks=kept)
    state = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state())
    reconstruct_blocks(again, problem.network, images, epochs=2, kept_of_blocks=kept)
    assert weights_digest(trained) == weights_digest(again)
    assert weights_digest(problem.network) == dense
    assert not trained.training
    assert list(errors) == ["block1", "separable1", "block2", "separable2"]
    assert all(after < before for before, after in errors.values())
    blocks_of = tuple(f"{name}." for name in errors)
    for (name, old), new in zip(thin.state_dict().items(), trained.state_dict().values(), strict=True):
        statistics = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        frozen = name == "block1.conv1.weight"
        assert torch.equal(old, new) == (statistics or frozen or not name.startswith(blocks_of)), name
    for name, parameter in trained.named_parameters():
        assert parameter.requires_grad == (name != "block1.conv1.weight")
        assert parameter.grad is None
    for one in (trained, problem.network):
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in one.modules())


def test_a_block_is_given_what_the_one_before_it_returns(
    network: nn.Module, data: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken over from the block before it or computed by the whole network: the same inputs and targets."""
    problem = problem_of(network, data, 0)
    thin, kept = problem.prune(half(problem)), problem.kept_of_blocks(half(problem))
    images = [data.preprocessing(data.calibration.images)]
    found = find_blocks(thin, images[0][:5])
    assert found == {"block1": False, "separable1": True, "block2": True, "separable2": True}
    handed, computed = copy.deepcopy(thin), copy.deepcopy(thin)
    errors = reconstruct_blocks(handed, problem.network, images, epochs=1, kept_of_blocks=kept)
    monkeypatch.setattr(blocks, "find_blocks", lambda network, images: dict.fromkeys(found, False))
    others = reconstruct_blocks(computed, problem.network, images, epochs=1, kept_of_blocks=kept)
    for name, pair in errors.items():
        assert pair == pytest.approx(others[name], rel=1e-3)


def test_a_block_that_training_makes_worse_stays(
    network: nn.Module, data: DataSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problem_of(network, data, 0)
    thin, kept = problem.prune(half(problem)), problem.kept_of_blocks(half(problem))
    before = weights_digest(thin)
    monkeypatch.setattr(blocks, "LEARNING_RATE", 1e3)
    errors = reconstruct_blocks(
        thin, problem.network, [data.preprocessing(data.calibration.images)], epochs=1, kept_of_blocks=kept
    )
    assert weights_digest(thin) == before
    assert len(errors) == 4
    assert all(after == before > 0.0 for before, after in errors.values())


def test_a_network_that_is_the_dense_one_stays(network: nn.Module, data: DataSplits) -> None:
    same = copy.deepcopy(network).eval()
    images = [data.preprocessing(data.calibration.images)]
    errors = reconstruct_blocks(same, network.eval(), images, epochs=1)
    assert weights_digest(same) == weights_digest(network)
    assert all(before < 1e-10 for before, _ in errors.values())


def pair(width: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = pair()


class Residual(Pair):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)  # type: ignore[no-any-return]


class Changed(nn.Module):
    """What its first block returns is changed in place before its second one reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = pair(), pair(), pair()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x).relu_()) + x)  # type: ignore[no-any-return]


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice, self.once = pair(), pair()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.once(self.twice(self.twice(x)))  # type: ignore[no-any-return]


class Several(nn.Module):
    """Blocks that return two tensors, take a list, a number, a mask for all images alike, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.two, self.listed, self.scaled, self.masked = Two(), Listed(), Scaled(), Masked()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.two(x)
        return self.masked(self.scaled(self.listed([first, second]), factor=2.0, mask=None), torch.eye(2))  # type: ignore[no-any-return]


class Two(Pair):
    def forward(self, x: torch.Tensor) -> Any:
        return self.inner[0](x), self.inner[1](x)


class Listed(Pair):
    def forward(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        return self.inner[0](tensors[0]) + self.inner[1](tensors[1])  # type: ignore[no-any-return]


class Scaled(Pair):
    def forward(self, x: torch.Tensor, factor: float, mask: torch.Tensor | None) -> torch.Tensor:
        return factor * self.inner[1](self.inner[0](x))  # type: ignore[no-any-return]


class Masked(Pair):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.inner(x) @ mask  # type: ignore[no-any-return]


class Named(nn.Module):
    """Whose blocks have two names each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = pair(), pair()
        self.stages = nn.ModuleList([self.first, self.second])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


class Squeezed(Pair):
    """Which loses the first dimension of a single image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x).squeeze()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("network", "found"),
    [
        (nn.Sequential(pair(), nn.ReLU(), pair()), {"0": False, "2": False}),
        (nn.Sequential(pair(), nn.Identity(), nn.Linear(2, 2)), {"0": False}),
        (nn.Sequential(nn.Sequential(pair(), pair()), nn.Sequential(nn.Linear(2, 2))), {"0.0": False, "0.1": True}),
        (nn.Sequential(Residual(), Residual()), {"0": False, "1": True}),
        (nn.Sequential(nn.Sequential(nn.Linear(2, 2), pair(), nn.Linear(2, 2)), pair()), {"0": False, "1": True}),
        (Changed(), {"first": False, "second": False, "third": False}),
        (Shared(), {"once": False}),
        (Several(), {"listed": False, "scaled": False}),
        (Named(), {"first": False, "second": True}),
        (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(2, 1, 4), 2, enable_nested_tensor=False),
            {
                "layers.0": False,
                "layers.1": False,
            },
        ),
    ],
)
def test_which_blocks_there_are(network: nn.Module, found: dict[str, bool]) -> None:
    assert find_blocks(network, torch.ones(5, 2)) == found


RESNET = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]


@pytest.mark.parametrize(
    ("name", "size", "found"),
    [
        ("mobilenet_v2", 32, [f"features.{index}" for index in range(1, 18)]),  # not the first and last convolution
        ("mobilenet_v3_small", 32, [*(f"features.{index}" for index in range(1, 12)), "classifier"]),
        ("resnet18", 32, RESNET),
        ("squeezenet1_1", 64, [f"features.{index}" for index in (3, 4, 6, 7, 9, 10, 11, 12)]),
        ("vgg11", 32, ["features", "classifier"]),
    ],
)
def test_blocks_of_torchvision(name: str, size: int, found: list[str]) -> None:
    network = zoo.torchvision_network(name).eval()
    assert list(find_blocks(network, torch.zeros(5, 3, size, size))) == found


def test_a_last_batch_of_one_image_is_none() -> None:
    torch.manual_seed(0)
    dense, thin = Net(Squeezed(), pair()), Net(Squeezed(), pair())
    errors = reconstruct_blocks(thin, dense, [torch.randn(60, 2), torch.randn(41, 2)], epochs=1)
    assert list(errors) == ["0", "1"]


def test_what_others_share_stays() -> None:
    torch.manual_seed(0)
    dense, thin = Net(pair(), pair()), Net(pair(), pair())
    tied = thin.get_parameter("0.0.weight")
    thin.get_submodule("1.1").register_parameter("weight", tied)
    start = tied.detach().clone()
    errors = reconstruct_blocks(thin, dense, [torch.randn(100, 2)], epochs=50)
    assert torch.equal(tied, start)
    assert all(after < before for before, after in errors.values())


def test_small_outputs_are_reconstructed_as_large_ones_are() -> None:
    torch.manual_seed(0)
    images, ends = torch.randn(100, 2), []
    dense, thin = Net(pair(), pair()), Net(pair(), pair())
    for factor in (1.0, 1e-6):
        small, wanted = copy.deepcopy(thin), copy.deepcopy(dense)
        for one in (small, wanted):
            for name in ("0.1.weight", "0.1.bias"):
                one.get_parameter(name).data.mul_(factor)
        before, after = reconstruct_blocks(small, wanted, [images], epochs=50)["0"]
        assert after < 0.5 * before
        ends.append(after)
    assert ends[0] == pytest.approx(ends[1], rel=0.01)


def test_a_list_of_tensors_is_reconstructed() -> None:
    torch.manual_seed(0)
    dense, thin = Several().eval(), Several().eval()
    images = torch.randn(100, 2)
    before, after = reconstruct_blocks(thin, dense, [images], epochs=400)["listed"]
    assert after < 0.2 * before


def test_a_block_that_returns_less_is_held_against_what_is_left() -> None:
    torch.manual_seed(0)
    dense = Net(pair(4), pair(4)).eval()
    thin = copy.deepcopy(dense)
    thin.set_submodule("0.1", nn.Linear(4, 3))
    thin.set_submodule("1.0", nn.Linear(3, 4))
    with torch.no_grad():
        for name in ("0.1.weight", "0.1.bias"):
            thin.get_parameter(name).copy_(dense.get_parameter(name)[[0, 1, 3]])
    start = copy.deepcopy(thin[0])
    errors = reconstruct_blocks(thin, dense, [torch.randn(100, 4)], epochs=20, kept_of_blocks={"0": (1, [0, 1, 3])})
    assert errors["0"] == pytest.approx((0.0, 0.0), abs=1e-10)
    assert weights_digest(start) == weights_digest(thin[0])
    assert errors["1"][1] < errors["1"][0]
    assert list(reconstruct_blocks(thin, dense, [torch.randn(100, 4)], epochs=1)) == ["1"]


def test_a_network_without_blocks_is_refused_before_the_search(data: DataSplits) -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10))
    with pytest.raises(ValueError, match=r"^block_epochs: expected a network with blocks, .* leave block_epochs out$"):
        problem_of(network, data, 1)


class Detached(Pair):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.inner(x)  # type: ignore[no-any-return]


def test_blocks_that_cannot_be_trained_are_refused_before_the_search() -> None:
    with pytest.raises(ValueError, match=r"^block_epochs: block 0 cannot be trained \(.*\); leave block_epochs out$"):
        check_blocks(Net(Detached(), pair()), torch.ones(5, 2))
    frozen = Net(pair(), pair()).requires_grad_(False)
    with pytest.raises(ValueError, match=r"^block_epochs: expected blocks with parameters that require gradients "):
        check_blocks(frozen, torch.ones(5, 2))
    check_blocks(Net(pair(), pair()), torch.ones(5, 2))


@pytest.mark.parametrize("fidelity", ["magnitude", "prefix", "sequential"])
def test_a_search_scores_networks_without_it(fidelity: str, network: nn.Module, data: DataSplits) -> None:
    plain, reconstructed = (problem_of(network, data, epochs, fidelity=fidelity) for epochs in (0, 1))
    widths = half(plain)
    assert plain.evaluate_widths(widths).error == reconstructed.evaluate_widths(widths).error
    assert weights_digest(plain.prune(widths)) != weights_digest(reconstructed.prune(widths))
    dense = plain.dense_widths
    assert weights_digest(plain.prune(dense)) == weights_digest(reconstructed.prune(dense))
