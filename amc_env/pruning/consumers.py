"""The layers that read a group's channels, as least-squares problems over the columns of their inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from amc_env.pruning.calibration import Moments
from amc_env.pruning.graph import FIXED, ChannelGraph, ChannelGroup, IntArray
from amc_env.pruning.least_squares import Consumer


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a network, as stored.

    Attributes:
        name: qualified name of the module.
        groups: of the convolution.
        taps: kernel elements.
        inputs, outputs: unit labels of its channels (see `ChannelGraph`).
        norm: the batch norm that alone sees its outputs, if there is one.
        intercept: whether an intercept can be stored: in its own bias, or in the mean of `norm`.
    """

    name: str
    groups: int
    taps: int
    inputs: IntArray
    outputs: IntArray
    norm: str | None
    intercept: bool

    @property
    def columns(self) -> int:
        return self.taps * len(self.inputs)

    def columns_of(self, channels: IntArray) -> IntArray:
        """Columns of these input channels, int64 (channels, taps); column = tap * in_channels + channel."""
        return channels[:, None] + len(self.inputs) * np.arange(self.taps)[None, :]

    def unit_columns(self, group: ChannelGroup) -> IntArray:
        """Columns of each unit of a group, int64 (units, columns per unit)."""
        units = self.inputs - group.first_unit
        channels = np.flatnonzero((units >= 0) & (units < group.size))
        by_unit = channels[np.argsort(units[channels], kind="stable")].reshape(group.size, -1)
        columns: IntArray = self.columns_of(by_unit.reshape(-1)).reshape(group.size, -1)
        return columns


def find_layers(graph: ChannelGraph) -> dict[str, Layer]:
    """All convolutions and linear layers by name, in forward order; one that is called again counts once."""
    norms = dict(graph.foldable)
    layers: dict[str, Layer] = {}
    for shape, inputs, outputs in zip(graph.layers, graph.inputs, graph.outputs, strict=True):
        if shape.op in ("conv", "linear") and shape.name not in layers:
            taps = shape.kernel_size[0] * shape.kernel_size[1]
            norm = norms.get(shape.name)
            intercept = shape.bias or norm is not None
            layers[shape.name] = Layer(shape.name, shape.groups, taps, inputs, outputs, norm, intercept)
    return layers


def readers(layers: dict[str, Layer], group: ChannelGroup | None = None) -> list[Layer]:
    """The layers that a removal of the group's (or any group's) channels robs of inputs they sum over."""
    first, last = (0, np.inf) if group is None else (group.first_unit, group.first_unit + group.size)
    return [
        layer
        for layer in layers.values()
        if layer.groups == 1 and bool(((layer.inputs > FIXED) & (layer.inputs >= first) & (layer.inputs < last)).any())
    ]


def consumer(network: nn.Module, layer: Layer, moments: Moments) -> Consumer:
    """The layer's inputs and weights, columns as in `Layer.columns_of`."""
    gram = moments.gram if layer.intercept else moments.gram + torch.outer(moments.total, moments.mean)
    return Consumer(gram, dense_weights(network, layer))


def dense_weights(network: nn.Module, layer: Layer) -> torch.Tensor:
    """The layer's weights, float64 (columns, outputs), columns as in `Layer.columns_of`."""
    weight = network.get_parameter(f"{layer.name}.weight").detach().cpu().double()
    return weight.reshape(*weight.shape[:2], -1).permute(2, 1, 0).reshape(layer.columns, -1)


def write_layer(network: nn.Module, layer: Layer, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Store weights and bias of a layer in place; a layer without a bias leaves it to the mean of its batch norm.

    Args:
        weight: of the layer's own shape.
        bias: (outputs,), what the layer should add to its outputs. Ignored if it cannot be stored.
    """
    module = network.get_submodule(layer.name)
    with torch.no_grad():
        network.get_parameter(f"{layer.name}.weight").copy_(weight)
        if isinstance(module.bias, torch.Tensor):
            module.bias.copy_(bias)
        elif layer.norm is not None:
            mean = network.get_buffer(f"{layer.norm}.running_mean")
            mean.sub_(bias.to(mean.device))
