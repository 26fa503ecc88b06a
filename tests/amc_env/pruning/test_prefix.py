"""The tables of reconstructed weights against lstsq on the dense network's inputs, for every kind of consumer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.pruning.calibration import Calibration
from amc_env.pruning.consumers import Layer, find_layers, readers
from amc_env.pruning.criteria import removal_order
from amc_env.pruning.graph import ChannelGraph, IntArray
from amc_env.pruning.layer_calls import LayerCall, LayerWatcher
from amc_env.pruning.prefix import PrefixReconstruction
from amc_env.pruning.rows import sample_rows
from amc_env.pruning.surgery import prune_network
from amc_env.pruning.trace import trace_channels
from tests.amc_env.pruning.small_networks import CONSUMERS, SMALL_KNOWN, images, random_units, randomised

RIDGE = 1e-10  # so small that it does not show
ALL = 10**9  # rows: every position of every image
Array = NDArray[np.float64]


class Rows(LayerWatcher):  # type: ignore[no-untyped-call]
    """All rows of each layer's inputs and outputs, float64 (rows, columns), of its first call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.inputs: dict[str, Array] = {}
        self.outputs: dict[str, Array] = {}

    def after_operation(self, operation: str, call: LayerCall | None, args: Any, result: Any) -> None:
        if call is not None and call.name not in self.inputs:
            sample = sample_rows(call, ALL, torch.Generator())
            self.inputs[call.name] = sample.gather_inputs(call.image).flatten(1).double().numpy()
            self.outputs[call.name] = sample.gather_outputs(result).double().numpy()


def reconstruction(
    network: nn.Module, folder: Path, batch: torch.Tensor, **options: Any
) -> tuple[ChannelGraph, list[IntArray], PrefixReconstruction]:
    graph = trace_channels(network, batch[:2])
    layers = {layer.name: layer.columns for layer in readers(find_layers(graph))}
    parts = torch.split(batch, 20)
    calibration = Calibration(network, layers, lambda: iter(parts), images=len(batch), rows=ALL, folder=folder)
    orders = removal_order(network, graph, "l2")
    return graph, orders, PrefixReconstruction(network, graph, orders, calibration, **{"ridge": RIDGE, **options})


def rows_of(network: nn.Module, batch: torch.Tensor) -> Rows:
    rows = Rows(network)
    with torch.no_grad(), rows:
        network(batch)
    return rows


def effective(network: nn.Module, layer: Layer) -> tuple[Array, Array]:
    """Weights (columns, outputs) and what is added to the outputs, a shift of the batch norm's mean included."""
    weight = network.get_parameter(f"{layer.name}.weight").detach().double()
    matrix = weight.reshape(*weight.shape[:2], -1).permute(2, 1, 0).flatten(0, 1).numpy()
    bias = getattr(network.get_submodule(layer.name), "bias", None)
    added = np.zeros(matrix.shape[1]) if bias is None else bias.detach().double().numpy()
    if layer.norm is not None:
        added = added - network.get_buffer(f"{layer.norm}.running_mean").double().numpy()
    return matrix, added


def close(actual: Array, expected: Array, tolerance: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", CONSUMERS)
def test_weights_equal_lstsq_on_the_kept_columns(name: str, tmp_path: Path) -> None:
    network, batch = randomised(CONSUMERS[name]()), images(40)
    graph, orders, prefix = reconstruction(network, tmp_path, batch)
    rows = rows_of(network, batch)
    for seed in range(4):
        kept = random_units(graph, orders, seed)
        stays = graph.keep_mask(kept)
        thin = prune_network(network, graph, kept)
        prefix.apply(thin, kept)
        for layer in readers(find_layers(graph)):
            inputs, outputs = rows.inputs[layer.name], rows.outputs[layer.name][:, stays[layer.outputs]]
            columns = inputs[:, np.tile(stays[layer.inputs], layer.taps)]
            if layer.intercept:
                columns = np.hstack([columns, np.ones((len(columns), 1))])
            if layer.norm is not None:
                mean = network.get_buffer(f"{layer.norm}.running_mean").double().numpy()
                outputs = outputs - mean[stays[layer.outputs]]
            expected = np.asarray(np.linalg.lstsq(columns, outputs, rcond=None)[0], dtype=np.float64)
            weights, added = effective(thin, layer)
            close(weights, expected[: len(weights)])
            if layer.intercept:
                close(added, expected[-1])


@pytest.mark.parametrize("name", CONSUMERS)
def test_with_nothing_removed_it_is_the_dense_network(name: str, tmp_path: Path) -> None:
    network, batch = randomised(CONSUMERS[name]()), images(20)
    graph, orders, prefix = reconstruction(network, tmp_path, batch)
    thin = prune_network(network, graph, [np.arange(group.size) for group in graph.groups])
    prefix.apply(thin, [np.sort(order) for order in orders])
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, thin.state_dict()[key]), key


@pytest.mark.parametrize("name", CONSUMERS)
def test_errors_are_the_measured_residuals(name: str, tmp_path: Path) -> None:
    network, batch = randomised(CONSUMERS[name]()), images(40)
    graph, orders, prefix = reconstruction(network, tmp_path, batch)
    rows = rows_of(network, batch)
    for index, group in enumerate(graph.groups):
        expected = np.zeros(group.size + 1)
        for layer in readers(find_layers(graph), group):
            inputs, outputs = rows.inputs[layer.name], rows.outputs[layer.name]
            if layer.intercept:
                inputs, outputs = inputs - inputs.mean(axis=0), outputs - outputs.mean(axis=0)
            for width in range(group.size + 1):
                removed = np.isin(layer.inputs, group.first_unit + orders[index][width:])
                columns = inputs[:, np.tile(~removed, layer.taps)]
                residual = outputs
                if columns.shape[1]:
                    residual = outputs - columns @ np.linalg.lstsq(columns, outputs, rcond=None)[0]
                error = (residual**2).sum() / (outputs**2).sum()
                if len(inputs) < 4 * inputs.shape[1]:  # generalised cross-validation
                    error /= (1.0 - columns.shape[1] / (len(inputs) - 1)) ** 2
                expected[width] += error
        errors = prefix.errors(index)
        assert errors == pytest.approx(np.minimum.accumulate(expected), rel=1e-4, abs=1e-6)
        assert errors[-1] == 0.0


@pytest.mark.parametrize("name", ["3x3", "concatenation", "residual"])
def test_what_does_not_fit_into_memory_is_solved_again(name: str, tmp_path: Path) -> None:
    network, batch = randomised(CONSUMERS[name]()), images(20)
    graph, orders, stored = reconstruction(network, tmp_path, batch)
    *_, solved = reconstruction(network, tmp_path, batch, most_bytes=0)
    widths = [tuple(range(1, group.size + 1)) for group in graph.groups]
    stored.prepare(widths)
    solved.prepare(widths)
    for seed in range(4):
        kept = random_units(graph, orders, seed)
        first, second, third = (prune_network(network, graph, kept) for _ in range(3))
        stored.apply(first, kept)
        solved.apply(second, kept)
        solved.apply(third, kept)
        for key, tensor in first.state_dict().items():
            assert torch.equal(tensor, second.state_dict()[key])
            assert torch.equal(tensor, third.state_dict()[key])


def test_the_dense_network_is_not_changed(tmp_path: Path) -> None:
    network, batch = randomised(CONSUMERS["residual"]()), images(20)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    graph, orders, prefix = reconstruction(network, tmp_path, batch)
    kept = random_units(graph, orders, 0)
    prefix.apply(prune_network(network, graph, kept), kept)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("make", SMALL_KNOWN.values(), ids=SMALL_KNOWN)
def test_known_networks_stay_finite(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    network, batch = randomised(make()), images(12, size=32)
    graph, orders, prefix = reconstruction(network, tmp_path, batch, ridge=1e-4)
    kept = random_units(graph, orders, 0)
    thin = prune_network(network, graph, kept)
    prefix.apply(thin, kept)
    with torch.no_grad():
        assert thin(batch).isfinite().all()
    for index in range(len(graph.groups)):
        errors = prefix.errors(index)
        assert np.isfinite(errors).all()
        assert (np.diff(errors) <= 0).all()


def test_where_rows_are_few_the_ridge_is_that_of_cross_validation(tmp_path: Path) -> None:
    network, batch = randomised(CONSUMERS["linear after flatten"]()), images(400)
    few, other = batch[:12], batch[12:]
    layer = next(iter(readers(find_layers(trace_channels(network, few[:2])))))
    inputs, outputs = rows_of(network, other).inputs[layer.name], rows_of(network, other).outputs[layer.name]
    assert len(few) < layer.columns

    def missed(**options: Any) -> tuple[float, float]:
        """Mean squared error on the other images, relative to their variance, and what the curve says of it."""
        graph, orders, prefix = reconstruction(network, tmp_path, few, **options)
        half = graph.groups[0].size // 2
        kept = [np.sort(order[:half]) for order in orders]
        thin = prune_network(network, graph, kept)
        prefix.apply(thin, kept)
        weight, added = effective(thin, find_layers(graph)[layer.name])
        columns = inputs[:, np.tile(np.isin(layer.inputs, graph.groups[0].first_unit + kept[0]), layer.taps)]
        residual = outputs - columns @ weight - added
        return float((residual**2).sum() / ((outputs - outputs.mean(axis=0)) ** 2).sum()), prefix.errors(0)[half]

    chosen, told = missed(ridge=None)
    assert chosen < 0.5 * missed(ridge=1e-4)[0]
    assert told == pytest.approx(chosen, rel=0.4)
