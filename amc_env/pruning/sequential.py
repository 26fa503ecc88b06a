"""Sequential reconstruction: each layer is fitted, in forward order, on the inputs that the pruned part gives it.

The targets are the outputs of the dense network; where a layer's outputs meet another tensor in a sum, they are what
the dense sum leaves after the pruned network's other operand, so that the fit takes over the error of the shortcut
too (He et al., Channel Pruning, arXiv 1707.06168, section 3.3 and "multi-branch").
"""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from amc_env.pruning.consumers import Layer, find_layers, write_layer
from amc_env.pruning.graph import ChannelGraph, KeptUnits
from amc_env.pruning.layer_calls import LayerCall, LayerWatcher
from amc_env.pruning.least_squares import solve_rows
from amc_env.pruning.reuse import Reuse
from amc_env.pruning.rows import RowSample, sample_rows

_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training")
_ROWS_PER_COLUMN = 100  # more tell nothing new of a depthwise layer's nine weights
_SMALLEST_SCALE = 1e-5  # of a batch norm; below it the sum says nothing about the layer


@dataclass
class _Target:
    """What one layer should put out at its sampled rows.

    Attributes:
        operation: number of its operation.
        rows: sampled output positions.
        outputs: (rows, channels), of the dense layer.
        other: number of the operation that made the other operand of the sum that the outputs meet, if they do.
        total: (rows, channels), the dense sum.
        scale, shift: (channels,), of the batch norm between the layer and the sum.
    """

    operation: int
    rows: RowSample
    outputs: torch.Tensor
    other: int | None = None
    total: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    scale: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    shift: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def wanted(self, kept: torch.Tensor, held: dict[int, torch.Tensor]) -> torch.Tensor:
        """The outputs, (rows, kept channels), that make the sum dense."""
        outputs = self.outputs[:, kept]
        if self.other is None:
            return outputs
        scale = self.scale[kept]
        rest = self.total[:, kept] - self.rows.gather_outputs(held[self.other]) - self.shift[kept]
        return torch.where(scale.abs() > _SMALLEST_SCALE, rest / scale, outputs)


class SequentialReconstruction:
    """Fits thin networks to one dense network.

    Args:
        network: dense, in evaluation mode.
        graph: its channels.
        images: (n, ...), preprocessed; all go through the network at once.
        rows: samples of each layer, but no more than 100 for each weight of an output.
        ridge: as a fraction of the mean diagonal of each layer's Gram matrix; 500 / rows unless told, which is of
            one size whatever the sample.
    """

    def __init__(
        self, network: nn.Module, graph: ChannelGraph, images: torch.Tensor, *, rows: int, ridge: float | None = None
    ) -> None:
        self._graph, self._images = graph, images
        self._ridge = 500 / rows if ridge is None else ridge
        self._layers = find_layers(graph)
        recorder = _Recorder(network, rows)
        with torch.no_grad(), recorder:
            network(images)
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
        fitter = _Fitter(
            thin, self._layers, self._targets, outputs, self._ridge, None if reuse is None else reuse.first_layer
        )
        with torch.no_grad(), nullcontext() if reuse is None else reuse.one_pass(thin, "fit"), fitter:
            thin(self._images)
        if fitter.operations != self._operations:
            raise RuntimeError(
                "sequential reconstruction: the pruned network runs other operations than the dense one, so its "
                "forward depends on channel counts; take the fidelity 'prefix' or 'magnitude'"
            )


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
        self._layer_of: dict[int, str] = {}  # operation -> the layer whose outputs it puts out, normalised or not
        self._norms: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # operation -> scale and shift

    def after_operation(self, operation: str, call: LayerCall | None, args: Any, result: Any) -> None:
        output = result[0] if isinstance(result, tuple | list) else result
        if call is not None and call.name not in self.targets:
            columns = call.weight[0].numel()
            rows = sample_rows(call, min(self._rows, _ROWS_PER_COLUMN * columns), self._generator)
            self.targets[call.name] = _Target(self.index, rows, rows.gather_outputs(output))
            self._layer_of[self.index] = call.name
        elif operation in _BATCH_NORMS:
            self._normalised(args)
        elif operation in ("add", "add_") and _is_plain_sum(args):
            self._summed(args[0], args[1], output)
        if isinstance(output, torch.Tensor):
            self._producer[output] = self.index

    def _normalised(self, args: Any) -> None:
        layer = self._layer_of.get(self._producer.get(args[0], -1))
        if layer is not None:
            weight, bias, mean, variance = args[1:5]
            scale = (1.0 if weight is None else weight) / torch.sqrt(variance + args[-1])
            self._norms[self.index] = scale, (0.0 if bias is None else bias) - mean * scale
            self._layer_of[self.index] = layer

    def _summed(self, first: torch.Tensor, second: torch.Tensor, total: torch.Tensor) -> None:
        producers = self._producer.get(first, -1), self._producer.get(second, -1)
        if -1 in producers:
            return
        for own, other in (producers, producers[::-1]):
            layer = self._layer_of.get(own)
            if layer is not None and other < self.targets[layer].operation:
                target = self.targets[layer]
                target.other, target.total = other, target.rows.gather_outputs(total)
                unchanged = torch.ones_like(target.total[0]), torch.zeros_like(target.total[0])
                target.scale, target.shift = self._norms.get(own, unchanged)
                return


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
        first_layer: str | None,
    ) -> None:
        super().__init__(thin)
        self._first_layer = first_layer  # those before it are not computed
        self._thin, self._layers_by_name, self._targets = thin, layers, targets
        self._outputs, self._ridge = outputs, ridge
        self._needed = {target.other for target in targets.values()}
        self._held: dict[int, torch.Tensor] = {}
        self._exact = True
        self._fitted: set[str] = set()

    def before_layer(self, call: LayerCall) -> None:
        layer = self._layers_by_name[call.name]
        if layer.groups == 1 and call.image.shape[1] < len(layer.inputs):
            self._exact = False
        if call.name == self._first_layer:
            self._first_layer = None
        if self._exact or self._first_layer is not None or call.name in self._fitted:
            return
        self._fitted.add(call.name)
        target = self._targets[call.name]
        wanted = target.wanted(self._outputs[call.name], self._held)
        weight, bias = fit_layer(call, target.rows.gather_inputs(call.image), wanted, self._ridge, layer.intercept)
        write_layer(self._thin, layer, weight, bias)

    def after_operation(self, operation: str, call: LayerCall | None, args: Any, result: Any) -> None:
        if self.index in self._needed:
            self._held[self.index] = result[0] if isinstance(result, tuple | list) else result


def fit_layer(
    call: LayerCall, inputs: torch.Tensor, wanted: torch.Tensor, ridge: float, intercept: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares of one layer on sampled rows, each group of a grouped convolution by itself.

    Args:
        call: the layer as it is called; its weights are those that the ridge draws to.
        inputs: (rows, taps, in_channels).
        wanted: (rows, out_channels).

    Returns:
        Weights of the layer's shape and a bias (out_channels,).
    """
    weight, groups = call.weight.detach(), call.groups
    outputs, per_group = weight.shape[:2]
    rows, taps, _ = inputs.shape
    columns = inputs.reshape(rows, taps, groups, per_group).permute(2, 0, 1, 3).reshape(groups, rows, -1)
    targets = wanted.reshape(rows, groups, outputs // groups).transpose(0, 1)
    prior = weight.reshape(groups, outputs // groups, per_group, taps).permute(0, 3, 2, 1).flatten(1, 2)
    solved, bias = solve_rows(columns, targets, prior, ridge, intercept=intercept)
    fitted = solved.reshape(groups, taps, per_group, -1).permute(0, 3, 2, 1).reshape(weight.shape)
    return fitted, bias.reshape(-1)
