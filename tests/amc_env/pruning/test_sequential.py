"""Sequential fits against lstsq on what the fitted network itself gives each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from torchvision import models  # type: ignore[import-untyped]

from amc_env.pruning import least_squares, sequential
from amc_env.pruning.consumers import Layer, find_layers
from amc_env.pruning.graph import ChannelGraph, IntArray
from amc_env.pruning.sequential import SequentialReconstruction
from amc_env.pruning.surgery import prune_network
from amc_env.pruning.trace import trace_channels
from tests.amc_env.pruning.small_networks import (
    CONSUMERS,
    SMALL_KNOWN,
    Residual,
    Twice,
    chain,
    images,
    random_units,
    randomised,
)
from tests.amc_env.pruning.test_prefix import effective, rows_of

RIDGE = 1e-7
ALL = 10**9  # rows: every position of every image
Array = NDArray[np.float64]

NETWORKS: dict[str, Callable[[], nn.Module]] = CONSUMERS | {
    "depthwise after a fitted layer": lambda: chain(
        nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8, bias=False),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1),
    ),
    "grouped after a fitted layer": lambda: chain(
        nn.Conv2d(6, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(12, 4, 1)
    ),
    "in place": lambda: chain(
        nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3)
    ),
}  # fmt: skip
#: of these a layer's target is not the dense layer's output
SUMS = {"residual", "residual without norms"}


@pytest.fixture(autouse=True)
def _every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cap on the rows of layers with few weights: lstsq sees them all."""
    monkeypatch.setattr(sequential, "_ROWS_PER_COLUMN", ALL)


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets that an activation cuts off are met as they are, as lstsq meets them."""
    monkeypatch.setattr(least_squares, "BOUNDED_STEPS", 0)


def fitted(
    network: nn.Module,
    batch: torch.Tensor,
    kept: list[IntArray] | None = None,
    *,
    seed: int = 0,
    ridge: float = RIDGE,
    dtype: torch.dtype = torch.float32,
) -> tuple[ChannelGraph, list[IntArray], nn.Module]:
    graph = trace_channels(network, batch[:2])
    if kept is None:
        kept = random_units(graph, [np.arange(group.size) for group in graph.groups], seed)
    thin = prune_network(network, graph, kept)
    SequentialReconstruction(network, graph, batch, rows=ALL, ridge=ridge, dtype=dtype).fit(thin, kept)
    return graph, kept, thin


def check_layer(thin: nn.Module, layer: Layer, inputs: Array, wanted: Array, tolerance: float = 2e-3) -> None:
    """The layer's weights and bias are those of lstsq, each group of channels by itself."""
    weights, added = effective(thin, layer)
    per_tap = inputs.reshape(len(inputs), layer.taps, -1)
    groups = thin.get_submodule(layer.name).groups if layer.groups > 1 else 1
    of_group = np.split(np.arange(per_tap.shape[2]), cast(int, groups))
    outputs = np.split(np.arange(wanted.shape[1]), cast(int, groups))
    for ins, outs in zip(of_group, outputs, strict=True):
        columns = per_tap[:, :, ins].reshape(len(inputs), -1)
        if layer.intercept:
            columns = np.hstack([columns, np.ones((len(columns), 1))])
        expected = np.linalg.lstsq(columns, wanted[:, outs], rcond=None)[0]
        actual = np.vstack([weights[:, outs], added[None, outs]]) if layer.intercept else weights[:, outs]
        least = ((columns @ expected - wanted[:, outs]) ** 2).sum()
        assert ((columns @ actual - wanted[:, outs]) ** 2).sum() <= least * (1 + 1e-3) + 1e-8 * (wanted**2).sum()
        if np.linalg.cond(columns) < 1e3:
            assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def normalised_mean(network: nn.Module, layer: Layer) -> Array:
    if layer.norm is None:
        return np.zeros(1)
    return np.asarray(network.get_buffer(f"{layer.norm}.running_mean").double().numpy())


@pytest.mark.usefixtures("linear")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 2e-3)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in SUMS])
def test_layers_equal_lstsq_on_the_inputs_that_they_get(
    name: str, seed: int, dtype: torch.dtype, tolerance: float
) -> None:
    network, batch = randomised(NETWORKS[name]()), images(40)
    graph, kept, thin = fitted(network, batch, seed=seed, dtype=dtype, ridge=1e-12)
    stays = graph.keep_mask(kept)
    dense, now = rows_of(network, batch), rows_of(thin, batch)
    exact = True
    for layer in find_layers(graph).values():
        exact = exact and (layer.groups > 1 or bool(stays[layer.inputs].all()))
        outputs = stays[layer.outputs]
        if exact:
            weight = network.get_parameter(f"{layer.name}.weight")[torch.from_numpy(outputs)]
            assert torch.equal(thin.get_parameter(f"{layer.name}.weight"), weight)
            continue
        wanted = dense.outputs[layer.name][:, outputs]
        if layer.norm is not None:
            wanted = wanted - normalised_mean(network, layer)[outputs]
        check_layer(thin, layer, now.inputs[layer.name], wanted, tolerance)


def operands(network: Residual, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What meets in the sum: the main branch, and the shortcut."""
    x = F.relu(network.norm(network.stem(x)))
    return network.norm2(network.second(F.relu(network.norm1(network.first(x))))), network.downsample(x)


@pytest.mark.usefixtures("linear")
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("downsample", [False, True])
@pytest.mark.parametrize("norms", [False, True])
def test_the_last_operand_of_a_sum_takes_over_the_error_of_the_other(
    *, norms: bool, downsample: bool, inplace: bool
) -> None:
    network, batch = randomised(Residual(norms=norms, downsample=downsample, inplace=inplace)), images(30)
    with torch.no_grad():
        total = sum(operands(cast(Residual, network), batch))
    joined, inner = np.array([0, 2, 3, 5]), np.array([1, 2, 4])
    kept = [np.arange(5), inner, joined] if downsample else [joined, inner]
    graph, _, thin = fitted(network, batch, kept)
    stays = graph.keep_mask(kept)
    last, norm = ("downsample.0", "downsample.1") if downsample else ("second", "norm2")
    layer = find_layers(graph)[last]
    with torch.no_grad():
        wanted = cast(torch.Tensor, total)[:, joined]
        main, shortcut = operands(cast(Residual, thin), batch)
        wanted = wanted - (main if downsample else shortcut)
        if norms:  # back through the batch norm of the dense network
            module = cast(nn.BatchNorm2d, network.get_submodule(norm))
            scale = (module.weight / torch.sqrt(cast(torch.Tensor, module.running_var) + module.eps))[joined]
            wanted = (wanted - module.bias[joined].reshape(-1, 1, 1)) / scale.reshape(-1, 1, 1)
    assert stays[layer.outputs].sum() == 4
    rows = wanted.permute(0, 2, 3, 1).reshape(-1, 4).double().numpy()
    check_layer(thin, layer, rows_of(thin, batch).inputs[last], rows)


def copy_channels(network: nn.Module, names: list[str], kept: int) -> None:
    """Each channel from `kept` on becomes a copy of one before."""
    for name in names:
        for tensor in network.get_submodule(name).state_dict().values():
            if tensor.ndim:
                tensor[kept:] = tensor[: len(tensor) - kept]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("downsample", [False, True])
@pytest.mark.parametrize("norms", [False, True])
def test_channels_that_depend_on_others_are_removed_without_loss(
    *, norms: bool, downsample: bool, inplace: bool
) -> None:
    network = randomised(Residual(norms=norms, downsample=downsample, inplace=inplace))
    shortcut = ["downsample.0", "downsample.1"] if downsample else []
    copy_channels(network, ["stem", "norm", "first", "norm1", "second", "norm2", *shortcut], kept=3)
    batch = images(30)
    _, _, thin = fitted(network, batch, [np.arange(3)] * (3 if downsample else 2))
    with torch.no_grad():
        expected, actual = network(images(10, seed=5)), thin(images(10, seed=5))
    assert (actual - expected).abs().max() < 2e-3 * expected.abs().max()


@pytest.mark.parametrize("name", [*NETWORKS, "called twice"])
def test_with_nothing_removed_it_is_the_dense_network(name: str) -> None:
    network, batch = randomised((NETWORKS | {"called twice": Twice})[name]()), images(8)
    graph = trace_channels(network, batch[:2])
    _, _, thin = fitted(network, batch, [np.arange(group.size) for group in graph.groups])
    assert all(torch.equal(tensor, thin.state_dict()[key]) for key, tensor in network.state_dict().items())


@pytest.mark.usefixtures("linear")
def test_a_layer_that_is_called_twice_is_fitted_at_its_first_call() -> None:
    network, batch = randomised(Twice()), images(20)
    graph, kept, thin = fitted(network, batch, [np.array([0, 1, 3, 5])])
    layer = find_layers(graph)["shared"]
    wanted = rows_of(network, batch).outputs["shared"][:, kept[0]]
    check_layer(thin, layer, rows_of(thin, batch).inputs["shared"], wanted)


ACTIVATED: dict[str, Callable[[], list[nn.Module]]] = {
    "relu": lambda: [nn.ReLU()],
    "relu in place": lambda: [nn.ReLU(inplace=True)],
    "relu6": lambda: [nn.ReLU6()],
    "hardtanh": lambda: [nn.Hardtanh()],
    "norm and relu6": lambda: [nn.BatchNorm2d(6), nn.ReLU6(inplace=True)],
    "norm that turns signs and hardtanh": lambda: [nn.BatchNorm2d(6), nn.Hardtanh(-0.5, 2.0)],
}


@pytest.mark.parametrize("name", ACTIVATED)
def test_what_an_activation_cuts_off_need_not_be_met(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error after the activation falls nearly to that of a fit by gradients through it."""
    network = randomised(chain(nn.Conv2d(6, 6, 3), *ACTIVATED[name](), nn.Conv2d(6, 4, 1)))
    if "turns signs" in name:
        cast(nn.BatchNorm2d, network.get_submodule("3")).weight.data.neg_()
    batch = images(30)
    kept = [np.array([0, 2, 3]), np.arange(6)]

    def activations(thin: nn.Module) -> torch.Tensor:
        return cast(torch.Tensor, cast(nn.Sequential, thin)[:-1](batch))

    with torch.no_grad():
        dense = activations(network)
    errors = []
    for steps in (0, 1, 2, 300):
        monkeypatch.setattr(least_squares, "BOUNDED_STEPS", steps)
        _, _, thin = fitted(network, batch, kept, dtype=torch.float64)
        with torch.no_grad():
            errors.append(float((activations(thin) - dense).square().sum()))
    assert errors[0] > 1.02 * errors[1]
    assert errors[1] > errors[2] > errors[3]
    convolution = cast(nn.Conv2d, thin.get_submodule("2"))
    for parameter in thin.parameters():
        parameter.requires_grad_(parameter is convolution.weight or parameter is convolution.bias)
    optimizer = torch.optim.LBFGS(convolution.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        error = (activations(thin) - dense).square().sum()
        error.backward()  # type: ignore[no-untyped-call]
        return error

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        assert float((activations(thin) - dense).square().sum()) > 0.97 * errors[3]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("downsample", [False, True])
@pytest.mark.parametrize("norms", [False, True])
def test_what_an_activation_cuts_off_of_a_sum_need_not_be_met(
    *, norms: bool, downsample: bool, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, batch = randomised(Residual(norms=norms, downsample=downsample, inplace=inplace)), images(30)
    inner, joined = np.array([1, 2, 4]), np.arange(6)
    kept = [np.arange(5), inner, joined] if downsample else [joined, inner]
    errors = []
    for steps in (0, 1, 2):
        monkeypatch.setattr(least_squares, "BOUNDED_STEPS", steps)
        thin = fitted(network, batch, kept, dtype=torch.float64)[2]
        with torch.no_grad():
            dense, now = (F.relu(sum(operands(cast(Residual, net), batch))) for net in (network, thin))  # type: ignore[arg-type]
        errors.append(float((dense - now).square().sum()))
    assert errors[0] > 1.01 * max(errors[1:])


class ReadBefore(nn.Module):
    """What the activation reads, or the norm before it, is read by another layer too."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.stem, self.conv, self.norm = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)
        self.last = nn.Conv2d(12, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(F.relu(self.stem(x)))
        z = self.norm(y)
        return cast(torch.Tensor, self.last(torch.cat([F.relu(z), y if self.where == "layer" else z], dim=1)))


@pytest.mark.parametrize("where", ["layer", "norm"])
def test_values_that_another_layer_reads_are_met_beyond_the_bounds_too(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, batch, weights = randomised(ReadBefore(where)), images(20), []
    for steps in (0, 3):
        monkeypatch.setattr(least_squares, "BOUNDED_STEPS", steps)
        graph = trace_channels(network, batch[:2])
        kept = [np.array([0, 2, 3]), *(np.arange(group.size) for group in graph.groups[1:])]
        weights.append(fitted(network, batch, kept)[2].get_parameter("conv.weight"))
    assert torch.equal(*weights)


class UsedTwice(nn.Module):
    """The outputs of a convolution meet a shortcut as they are, and are normalised elsewhere."""

    def __init__(self, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        y = self.conv(x)
        if self.first:
            normalised = self.norm(y)
            total = x + y
        else:
            total = x + y
            normalised = self.norm(y)
        return torch.cat([F.relu(total).mean((2, 3)), F.relu(normalised).mean((2, 3))], dim=1)


class Scaled(nn.Module):
    """A sum in which the second operand counts half."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        return F.relu(torch.add(x, self.conv(x), alpha=0.5)).mean((2, 3))


@pytest.mark.parametrize(
    "make", [lambda: UsedTwice(first=True), lambda: UsedTwice(first=False), Scaled], ids=["norm", "sum", "scaled"]
)
def test_no_batch_norm_or_factor_that_is_not_in_the_sum_counts(make: Callable[[], nn.Module]) -> None:
    """With copies of channels a fit loses nothing, unless its target is wrong."""
    inner = make()
    network = randomised(nn.Sequential(inner, nn.Linear(6 if make is Scaled else 12, 4)))
    copy_channels(inner, [name for name, _ in inner.named_children()], kept=3)
    batch = images(30)
    _, _, thin = fitted(network, batch, [np.arange(3)])
    with torch.no_grad():
        expected, actual = network(batch), thin(batch)
    assert (actual - expected).abs().max() < 2e-3 * expected.abs().max()


class Counts(nn.Module):
    """Runs another operation when it is thin, between two operands of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        if x.shape[1] < 6:
            x = x * 1.0
        return cast(torch.Tensor, self.last(self.conv(x) + x)).mean((2, 3))


def test_refuses_a_network_whose_operations_depend_on_widths() -> None:
    with pytest.raises(RuntimeError, match="the pruned network runs other operations than the dense one"):
        fitted(randomised(Counts()), images(4), [np.arange(3)])


def test_the_dense_network_is_not_changed() -> None:
    network = randomised(Residual())
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    fitted(network, images(10))
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


KNOWN: dict[str, Callable[[], Any]] = {
    "resnet18": lambda: models.resnet18(num_classes=10),
    "densenet121": lambda: models.densenet121(num_classes=10),
    **SMALL_KNOWN,
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_networks_stay_finite_and_near_the_dense_one(name: str) -> None:
    """A sixteenth of each group removed: the fitted network is nearer to the dense one than the unfitted."""
    network, batch = randomised(KNOWN[name]()), images(6, size=32 if name in SMALL_KNOWN else 64)
    graph = trace_channels(network, batch[:2])
    kept = [np.arange(max(1, group.size * 15 // 16)) for group in graph.groups]
    unfitted = prune_network(network, graph, kept)
    thin = prune_network(network, graph, kept)
    SequentialReconstruction(network, graph, batch, rows=300).fit(thin, kept)
    with torch.no_grad():
        expected, actual, plain = network(batch), thin(batch), unfitted(batch)
    assert actual.isfinite().all()
    assert (actual - expected).norm() < (plain - expected).norm()
