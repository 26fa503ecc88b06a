"""The weights of a layer at its levels: nested patterns, least squares of each row, shared values, known errors."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from amc_env.pruning.calibration import Calibration
from amc_env.pruning.consumers import find_layers
from amc_env.pruning.least_squares import RIDGE
from amc_env.pruning.saliency import weight_scores
from amc_env.pruning.sharing import share
from amc_env.pruning.trace import trace_channels
from amc_env.pruning.weight_levels import LevelSettings, WeightLevels, row_consumers
from tests.amc_env.pruning.small_networks import images, randomised

ALL = 10**9
LEVELS = (5, 20, 60, 100)


class Layers(nn.Module):
    """A convolution with batch norm, a grouped one with a bias, one with neither, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 8, 3, stride=2, groups=2)
        self.bare = nn.Conv2d(8, 12, 2, bias=False)
        self.linear = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.grouped(F.relu(self.norm(self.first(x)))))
        return cast(torch.Tensor, self.linear(torch.tanh(self.bare(x)).mean((2, 3))))


@pytest.fixture
def network() -> nn.Module:
    return randomised(Layers())


def levels_of(
    network: nn.Module,
    name: str,
    folder: Path,
    criterion: str = "obs",
    *,
    fitted: bool = True,
    codebook: int | None = None,
    kept: tuple[int, ...] = LEVELS,
) -> WeightLevels:
    layers = find_layers(trace_channels(network, images(2)))

    def batches() -> Iterator[torch.Tensor]:
        yield images(48)

    columns = {layer.name: layer.columns // layer.groups for layer in layers.values()}
    calibration = Calibration(network, columns, batches, images=48, rows=ALL, folder=folder)
    scores = None if criterion == "obs" else weight_scores(network, [name], "l1")[name].numpy()
    return WeightLevels(network, layers[name], kept, LevelSettings(criterion, fitted, codebook), calibration, scores)


def inputs_of(network: nn.Module, name: str) -> torch.Tensor:
    """What the layer sees on the calibration images: patches as torch unfolds them, (groups, rows, columns)."""
    seen: list[torch.Tensor] = []
    module = network.get_submodule(name)
    with torch.no_grad():
        handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        network(images(48))
        handle.remove()
    if isinstance(module, nn.Linear):
        return seen[0].double()[None]
    assert isinstance(module, nn.Conv2d)
    patches = F.unfold(seen[0], module.kernel_size, padding=module.padding, stride=module.stride)  # type: ignore[arg-type]
    return patches.mT.reshape(-1, module.groups, patches.shape[1] // module.groups).transpose(0, 1).double()


@pytest.mark.parametrize("name", ["first", "grouped", "bare", "linear"])
def test_moments_have_the_order_in_which_torch_stores_weights(network: nn.Module, name: str, tmp_path: Path) -> None:
    levels = levels_of(network, name, tmp_path)
    inputs = inputs_of(network, name)
    if levels.layer.intercept:
        inputs = inputs - inputs.mean(dim=1, keepdim=True)
    dense = torch.from_numpy(levels.dense)
    consumers = row_consumers(levels.layer, levels._calibration.moments(name), dense)
    assert len(consumers) == len(inputs)
    for consumer, rows in zip(consumers, inputs, strict=True):
        torch.testing.assert_close(consumer.gram, rows.mT @ rows, rtol=1e-6, atol=1e-6 * float(rows.square().sum()))
    torch.testing.assert_close(torch.cat([consumer.weights.mT for consumer in consumers]), dense)


@pytest.mark.parametrize("criterion", ["l1", "obs"])
def test_patterns_are_nested_and_of_the_size_asked_for(network: nn.Module, criterion: str, tmp_path: Path) -> None:
    levels = levels_of(network, "grouped", tmp_path, criterion)
    masks = [levels.mask(kept) for kept in LEVELS]
    assert [int(mask.sum()) for mask in masks] == list(LEVELS)
    assert all((narrow <= wide).all() for narrow, wide in itertools.pairwise(masks))
    if criterion == "l1":
        assert np.abs(levels.dense[masks[1]]).min() >= np.abs(levels.dense[~masks[1]]).max()


def written(network: nn.Module, levels: WeightLevels, kept: int) -> nn.Module:
    copy = Layers().eval()
    copy.load_state_dict(network.state_dict())
    levels.write(copy, kept)
    return copy


def lost(network: nn.Module, pruned: nn.Module, name: str) -> tuple[torch.Tensor, float]:
    """Difference of the layer's outputs, (rows, outputs), on the dense network's inputs, and the variance of them."""
    inputs = inputs_of(network, name)
    outputs = []
    for one in (network, pruned):
        weight = one.get_parameter(f"{name}.weight").detach().double()
        rows = weight.reshape(len(inputs), -1, inputs.shape[2])
        values = torch.cat([x @ w.mT for x, w in zip(inputs, rows, strict=True)], dim=1)
        bias = one.get_submodule(name).bias
        if isinstance(bias, torch.Tensor):
            values = values + bias.detach().double()
        outputs.append(values - one.get_buffer("norm.running_mean") if name == "first" else values)
    dense = outputs[0] if name == "bare" else outputs[0] - outputs[0].mean(dim=0)
    return outputs[0] - outputs[1], float(dense.square().sum())


@pytest.mark.parametrize("name", ["first", "grouped", "bare", "linear"])
@pytest.mark.parametrize("criterion", ["l1", "obs"])
def test_fitted_weights_are_the_least_squares_of_their_rows(
    network: nn.Module, name: str, criterion: str, tmp_path: Path
) -> None:
    levels = levels_of(network, name, tmp_path, criterion)
    inputs = inputs_of(network, name)
    for kept, error in zip(LEVELS, levels.errors(), strict=True):
        pruned = written(network, levels, kept)
        matrix = pruned.get_parameter(f"{name}.weight").detach().reshape(levels.dense.shape)
        assert ((matrix != 0).numpy() == levels.mask(kept)).all()
        difference, energy = lost(network, pruned, name)
        assert float(difference.square().sum()) / energy == pytest.approx(error, rel=0.05, abs=2e-4)
        for row in range(len(matrix)):
            seen = inputs[row * len(inputs) // len(matrix)][:, torch.from_numpy(levels.mask(kept)[row])]
            residual = difference[:, row]
            assert float((seen.mT @ residual).abs().max() if seen.shape[1] else 0.0) <= 1e-2 * energy
    assert (np.diff(levels.errors()) <= 1e-12).all()


def test_obs_loses_less_than_magnitude(network: nn.Module, tmp_path: Path) -> None:
    for name in ("first", "grouped", "bare", "linear"):
        greedy, smallest = (levels_of(network, name, tmp_path, criterion).errors() for criterion in ("obs", "l1"))
        assert (greedy[1:] < smallest[1:]).all()


def test_without_a_fit_the_weights_are_the_dense_ones(network: nn.Module, tmp_path: Path) -> None:
    levels = levels_of(network, "grouped", tmp_path, "l1", fitted=False)
    pruned = written(network, levels, 20)
    mask = torch.from_numpy(levels.mask(20)).reshape(8, 3, 3, 3)
    dense = network.get_parameter("grouped.weight")
    assert torch.equal(pruned.get_parameter("grouped.weight"), dense * mask)
    assert torch.equal(pruned.get_parameter("grouped.bias"), network.get_parameter("grouped.bias"))
    assert not any(tmp_path.iterdir())  # nothing was measured


@pytest.mark.parametrize("name", ["first", "grouped", "bare", "linear"])
def test_shared_weights_are_few_and_fitted_to_the_outputs(network: nn.Module, name: str, tmp_path: Path) -> None:
    shared = levels_of(network, name, tmp_path, codebook=16)
    pruned = written(network, shared, 100)
    matrix = pruned.get_parameter(f"{name}.weight").detach()
    assert len(np.unique(matrix[matrix != 0].numpy())) <= 15
    assert ((matrix.reshape(shared.dense.shape) != 0).numpy() == shared.mask(100)).all()
    consumers = row_consumers(shared.layer, shared._calibration.moments(name), torch.from_numpy(shared.dense))
    before = np.where(shared.mask(100), shared.dense, 0.0)
    grams = [consumer.gram.numpy() for consumer in consumers]
    means, fitted = (error_of(share(before, 16, by), shared.dense, grams) for by in ((), consumers))
    assert fitted < means


def error_of(matrix: NDArray[np.float64], dense: NDArray[np.float64], grams: list[NDArray[np.float64]]) -> float:
    parts = np.split(dense - matrix, len(grams))
    return sum(float(np.einsum("rc,cd,rd", part, gram, part)) for part, gram in zip(parts, grams, strict=True))


def test_a_second_problem_reads_what_the_first_kept(network: nn.Module, tmp_path: Path) -> None:
    first = levels_of(network, "linear", tmp_path, codebook=16)
    first.prepare(error_curves=True)
    files = {path.name for path in tmp_path.iterdir()}
    second = levels_of(network, "linear", tmp_path, codebook=16)
    second._calibration.__dict__["_batches"] = lambda: pytest.fail("measured again")
    assert torch.equal(
        written(network, first, 60).get_parameter("linear.weight"),
        written(network, second, 60).get_parameter("linear.weight"),
    )
    assert {path.name for path in tmp_path.iterdir()} == files


def test_moving_codes_lowers_the_error_below_that_of_fitted_values(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = levels_of(network, "first", tmp_path)
    consumers = row_consumers(levels.layer, levels._calibration.moments("first"), torch.from_numpy(levels.dense))
    before = np.where(levels.mask(100), levels.dense, 0.0)
    grams = [consumer.gram.numpy() for consumer in consumers]
    moved = share(before, 8, consumers)
    monkeypatch.setattr("amc_env.pruning.sharing._ROUNDS", 0)
    fitted = share(before, 8, consumers)
    assert error_of(moved, levels.dense, grams) < 0.98 * error_of(fitted, levels.dense, grams)
    assert ((moved != 0) == (before != 0)).all()
    assert len(np.unique(moved[moved != 0])) <= 7


class Wide(nn.Module):
    """A linear layer of which there are fewer rows, one for each image, than columns."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 64, 3, padding=1)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.linear(F.relu(self.features(x)).mean((2, 3))))


@pytest.mark.parametrize(("criterion", "optimism"), [("l1", 1.2), ("obs", 2.5)])  # obs fits its order to the rows too
def test_where_rows_are_few_ridge_and_errors_are_those_of_cross_validation(
    criterion: str, optimism: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = randomised(Wide())

    def missed(folder: str) -> tuple[float, float]:
        """Of half the weights: squared error on other images, relative to their variance, and what the curve says."""
        levels = levels_of(network, "linear", tmp_path / folder, criterion, kept=(320,))
        pruned = copy.deepcopy(network)
        levels.write(pruned, 320)
        with torch.no_grad():
            dense, thin = (one(images(400, seed=2)).double() for one in (network, pruned))
        variance = float((dense - dense.mean(dim=0)).square().sum())
        return float((dense - thin).square().sum()) / variance, float(levels.errors()[0])

    found, told = missed("chosen")
    assert found / optimism < told < found * 1.2
    monkeypatch.setattr("amc_env.pruning.weight_levels.choose_ridge", lambda consumers, rows: RIDGE)
    assert found < 0.6 * missed("as with many rows")[0]
