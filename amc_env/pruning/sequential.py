"""Sequential reconstruction: each layer is fitted, in forward order, on the inputs that the pruned part gives it.

The targets are the outputs of the dense network; where a layer's outputs meet another tensor in a sum, they are what
the dense sum leaves after the pruned network's other operand, so that the fit takes over the error of the shortcut
too (He et al., Channel Pruning, arXiv 1707.06168, section 3.3 and "multi-branch"). What a following ReLU or ReLU6
cuts off need not be met: there a target only says on which side of the bound the output lies (Zhang et al.,
arXiv 1411.4229, section 3.2, fit through ReLU for the same reason).
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import MutableMapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from amc_env.pruning.batchnorm import fold_batchnorm
from amc_env.pruning.consumers import Layer, find_layers, write_layer
from amc_env.pruning.graph import ChannelGraph, KeptUnits
from amc_env.pruning.layer_calls import LayerCall, LayerWatcher
from amc_env.pruning.least_squares import Bounds, solve_rows
from amc_env.pruning.reuse import Reuse
from amc_env.pruning.rows import RowSample, sample_rows

_ACTIVATIONS = ("relu", "relu_", "hardtanh", "hardtanh_")  # ReLU6 is a hardtanh
_SMALLEST_SCALE = 1e-5  # of a batch norm; what has a smaller one puts out its shift
_ROWS_PER_COLUMN = 100  # more tell nothing new of a depthwise layer's nine weights


@dataclass
class _Target:
    """What one layer should put out at its sampled rows, with the batch norm that alone sees it folded into it.

    Attributes:
        operation: number of its operation.
        rows: sampled output positions.
        outputs: (rows, channels), of the dense layer, or the dense sum if `other` is given.
        other: number of the operation that made the other operand of the sum that the outputs meet, if they do.
        bounds: between which the activation lets values pass that alone reads the outputs, or their sum.
    """

    operation: int
    rows: RowSample
    outputs: torch.Tensor
    other: int | None = None
    bounds: tuple[float, float] | None = None

    def wanted(self, kept: torch.Tensor, held: dict[int, torch.Tensor]) -> tuple[torch.Tensor, Bounds | None]:
        """The outputs, (rows, kept channels), that make the sum dense, and the bounds beyond which all are alike."""
        outputs = self.outputs[:, kept]
        added = torch.zeros_like(outputs[:1]) if self.other is None else self.rows.gather_outputs(held[self.other])
        bounds = None if self.bounds is None else (self.bounds[0] - added, self.bounds[1] - added)
        return outputs - added, bounds


class SequentialReconstruction:
    """Fits thin networks to one dense network.

    Args:
        network: dense, in evaluation mode.
        graph: its channels.
        images: (n, ...), preprocessed; all go through the network at once.
        rows: samples of each layer, but no more than 100 for each weight of an output.
        ridge: as a fraction of the mean diagonal of each layer's Gram matrix; 500 / rows unless told, which is of
            one size whatever the sample.
        dtype: of the fits, which in float32 are faster and in float64 exact to 1e-5.
    """

    def __init__(
        self,
        network: nn.Module,
        graph: ChannelGraph,
        images: torch.Tensor,
        *,
        rows: int,
        ridge: float | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._graph, self._images, self._dtype = graph, images, dtype
        self._ridge = 500 / rows if ridge is None else ridge
        self._layers = find_layers(graph)
        dense = _folded(network, graph)
        recorder = _Recorder(dense, rows)
        with torch.no_grad(), recorder:
            dense(images)
        recorder.finish()
        self._targets, self._operations = recorder.targets, recorder.operations

    def fit(self, thin: nn.Module, kept: KeptUnits, reuse: Reuse | None = None) -> None:
        """Fit the layers of the thin network, in which each group keeps these units, in place.

        With `reuse`, the layers before the first that is computed are not fitted: nobody runs them.

        Raises:
            RuntimeError: the thin network does not run the operations of the dense one.
        """
        stays = self._graph.keep_mask(kept)
        outputs = {
            name: torch.from_numpy(np.flatnonzero(stays[layer.outputs])).to(self._images.device)
            for name, layer in self._layers.items()
        }
        first_layer = None if reuse is None else reuse.first_layer
        folded = _folded(thin, self._graph)
        fitter = _Fitter(folded, self._layers, self._targets, outputs, self._ridge, self._dtype, first_layer)
        with torch.no_grad(), nullcontext() if reuse is None else reuse.one_pass(folded, "fit"), fitter:
            folded(self._images)
        if fitter.operations != self._operations:
            raise RuntimeError(
                "sequential reconstruction: the pruned network runs other operations than the dense one, so its "
                "forward depends on channel counts; take the fidelity 'prefix' or 'magnitude'"
            )
        with torch.no_grad():
            for name in fitter.fitted:
                _take_over(thin, folded, self._layers[name])


def _folded(network: nn.Module, graph: ChannelGraph) -> nn.Module:
    """A copy in which each batch norm is part of the layer before it: targets are what is summed and activated."""
    copied = copy.deepcopy(network)
    fold_batchnorm(copied, graph.foldable)
    return copied


def _take_over(thin: nn.Module, folded: nn.Module, layer: Layer) -> None:
    """Write a layer's weights and bias back from where its batch norm is folded into it to where it is not."""
    weight: torch.Tensor = folded.get_parameter(f"{layer.name}.weight")
    bias = folded.state_dict().get(f"{layer.name}.bias", torch.zeros(len(weight)).to(weight))
    if layer.norm is not None:
        norm = cast(nn.BatchNorm2d, thin.get_submodule(layer.norm))
        mean, variance = cast(torch.Tensor, norm.running_mean), cast(torch.Tensor, norm.running_var)
        scale, shift = torch.rsqrt(variance + norm.eps), torch.zeros_like(mean)
        if norm.affine:
            scale, shift = scale * norm.weight, norm.bias
        inverse = torch.where(scale.abs() > _SMALLEST_SCALE, 1.0 / scale, 0.0)
        weight, bias = weight * inverse.reshape(-1, 1, 1, 1), mean + (bias - shift) * inverse
    write_layer(thin, layer, weight, bias)


class _Recorder(LayerWatcher):  # type: ignore[no-untyped-call]
    """Notes the targets of each layer during a pass of the dense network."""

    def __init__(self, network: nn.Module, rows: int) -> None:
        super().__init__(network)
        self.targets: dict[str, _Target] = {}
        self._rows = rows
        self._generator = torch.Generator().manual_seed(0)
        self._producer: MutableMapping[torch.Tensor, int] = (
            WeakTensorKeyDictionary()
        )  # tensor -> number of the operation that wrote it last
        self._reads = Counter[int]()  # of what each operation put out
        self._layer_of: dict[int, str] = {}  # operation -> the layer that it is
        self._sum_of: dict[int, str] = {}  # operation -> the layer that takes over the errors of that sum
        self._activated: list[tuple[str, tuple[int, ...], tuple[float, float]]] = []

    def after_operation(self, operation: str, call: LayerCall | None, args: Any, result: Any) -> None:
        output = result[0] if isinstance(result, tuple | list) else result
        self._reads.update(self._number(arg) for arg in tree_leaves(args))
        if call is not None and call.name not in self.targets:
            columns = call.weight[0].numel()
            rows = sample_rows(call, min(self._rows, _ROWS_PER_COLUMN * columns), self._generator)
            self.targets[call.name] = _Target(self.index, rows, rows.gather_outputs(output))
            self._layer_of[self.index] = call.name
        elif operation in ("add", "add_") and _is_plain_sum(args):
            self._summed(args[0], args[1], output)
        elif operation in _ACTIVATIONS:
            self._bounded(operation, args)
        if isinstance(output, torch.Tensor):
            self._producer[output] = self.index

    def finish(self) -> None:
        """All operations are known: only what an activation alone reads may lie anywhere beyond its bounds."""
        for layer, operations, bounds in self._activated:
            if all(self._reads[operation] == 1 for operation in operations):
                self.targets[layer].bounds = bounds

    def _number(self, value: Any) -> int:
        return self._producer.get(value, -1) if isinstance(value, torch.Tensor) else -1

    def _summed(self, first: torch.Tensor, second: torch.Tensor, total: torch.Tensor) -> None:
        producers = self._number(first), self._number(second)
        if -1 in producers:
            return
        for own, other in (producers, producers[::-1]):
            layer = self._layer_of.get(own)
            if layer is not None and other < own:
                target = self.targets[layer]
                target.other, target.outputs = other, target.rows.gather_outputs(total)
                self._sum_of[self.index] = layer
                return

    def _bounded(self, operation: str, args: Any) -> None:
        number = self._number(args[0])
        layer = self._sum_of.get(number) or self._layer_of.get(number)
        if layer is not None:
            bounds = (0.0, math.inf) if operation.startswith("relu") else (*args[1:], *(-1.0, 1.0)[len(args) - 1 :])
            self._activated.append((layer, (number, self.targets[layer].operation), bounds))


def _is_plain_sum(args: Any) -> bool:
    """Whether two tensors of one shape were added, with no factor on the second."""
    return len(args) == 2 and isinstance(args[1], torch.Tensor) and args[0].shape == args[1].shape


class _Fitter(LayerWatcher):  # type: ignore[no-untyped-call]
    """Fits each layer of a thin network before it runs."""

    def __init__(
        self,
        thin: nn.Module,
        layers: dict[str, Layer],
        targets: dict[str, _Target],
        outputs: dict[str, torch.Tensor],
        ridge: float,
        dtype: torch.dtype,
        first_layer: str | None,
    ) -> None:
        super().__init__(thin)
        self._first_layer = first_layer  # those before it are not computed
        self._thin, self._layers_by_name, self._targets = thin, layers, targets
        self._outputs, self._ridge, self._dtype = outputs, ridge, dtype
        self._needed = {target.other for target in targets.values()}
        self._held: dict[int, torch.Tensor] = {}
        self._exact = True
        self.fitted: set[str] = set()  # names of layers

    def before_layer(self, call: LayerCall) -> None:
        layer = self._layers_by_name[call.name]
        if layer.groups == 1 and call.image.shape[1] < len(layer.inputs):
            self._exact = False
        if call.name == self._first_layer:
            self._first_layer = None
        if self._exact or self._first_layer is not None or call.name in self.fitted:
            return
        self.fitted.add(call.name)
        target = self._targets[call.name]
        wanted, bounds = target.wanted(self._outputs[call.name], self._held)
        inputs = target.rows.gather_inputs(call.image).to(self._dtype)
        weight, bias = fit_layer(call, inputs, wanted, self._ridge, layer.intercept, bounds)
        write_layer(self._thin, layer, weight, bias)

    def after_operation(self, operation: str, call: LayerCall | None, args: Any, result: Any) -> None:
        if self.index in self._needed:
            self._held[self.index] = result[0] if isinstance(result, tuple | list) else result


def fit_layer(
    call: LayerCall,
    inputs: torch.Tensor,
    wanted: torch.Tensor,
    ridge: float,
    intercept: bool,
    bounds: Bounds | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares of one layer on sampled rows, each group of a grouped convolution by itself.

    Args:
        call: the layer as it is called; its weights are those that the ridge draws to.
        inputs: (rows, taps, in_channels), of the dtype of the fit.
        wanted: (rows, out_channels).
        bounds: as of `solve_rows`, each (rows or 1, out_channels).

    Returns:
        Weights of the layer's shape and a bias (out_channels,).
    """
    weight, groups = call.weight.detach().to(inputs.dtype), call.groups
    outputs, per_group = weight.shape[:2]
    rows, taps, _ = inputs.shape

    def grouped(values: torch.Tensor) -> torch.Tensor:
        return values.to(inputs.dtype).reshape(-1, groups, outputs // groups).transpose(0, 1).contiguous()

    columns = inputs.reshape(rows, taps, groups, per_group).permute(2, 0, 1, 3).reshape(groups, rows, -1).contiguous()
    prior = weight.reshape(groups, outputs // groups, per_group, taps).permute(0, 3, 2, 1).flatten(1, 2)
    limits = None if bounds is None else (grouped(bounds[0]), grouped(bounds[1]))
    solved, bias = solve_rows(columns, grouped(wanted), prior, ridge, intercept=intercept, bounds=limits)
    fitted = solved.reshape(groups, taps, per_group, -1).permute(0, 3, 2, 1).reshape(weight.shape)
    return fitted, bias.reshape(-1)
