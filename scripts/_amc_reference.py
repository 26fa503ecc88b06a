"""What an episode of the original AMC code costs, on the same network and images: the work, written anew.

The original (search at the published defaults) masks the input channels of each 1x1 and linear layer by the L1 norm of
its weights, solves an ordinary least-squares problem without intercept for each of them in each episode, on 10 sampled
pixels of each image, and scores the full-width network with zeros where channels are gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from sklearn.linear_model import LinearRegression  # type: ignore[import-untyped]
from torch import nn

from amc_env.pruning.layer_calls import LayerCall, LayerWatcher
from amc_env.pruning.rows import RowSample, sample_rows

Rows = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class _RowCollector(LayerWatcher):  # type: ignore[no-untyped-call]
    """Inputs and outputs of the prunable layers at sampled pixels."""

    def __init__(self, network: nn.Module, layers: Sequence[str], rows: int) -> None:
        super().__init__(network)
        self.rows: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._wanted, self._count = set(layers), rows
        self._samples: dict[str, RowSample] = {}
        self._generator = torch.Generator().manual_seed(0)

    def before_layer(self, call: LayerCall) -> None:
        if call.name in self._wanted:
            self._samples[call.name] = sample_rows(call, self._count, self._generator)

    def after_operation(self, operation: str, call: LayerCall | None, args: object, result: torch.Tensor) -> None:
        if call is not None and call.name in self._wanted:
            sample = self._samples[call.name]
            inputs = sample.gather_inputs(call.image).flatten(1), sample.gather_outputs(result)
            known = self.rows.get(call.name)
            self.rows[call.name] = inputs if known is None else tuple(map(torch.cat, zip(known, inputs, strict=True)))  # type: ignore[assignment]


def collect_rows(
    network: nn.Module, layers: Sequence[str], batches: Sequence[torch.Tensor], pixels_per_image: int = 10
) -> Rows:
    """Once per search: (inputs, outputs) of each layer, float32 (rows, channels)."""
    collector = _RowCollector(network, layers, pixels_per_image * len(batches[0]))
    for images in batches:
        with torch.no_grad(), collector:
            network(images)
    return collector.rows


def fit_and_mask(network: nn.Module, kept: Mapping[str, int], rows: Rows) -> None:
    """Once per episode: least squares on the kept inputs of each layer, zeros elsewhere; in place."""
    for name, count in kept.items():
        weight = network.get_parameter(f"{name}.weight")
        importance = (
            weight.detach().abs().flatten(2).sum(dim=(0, 2)) if weight.ndim == 4 else weight.detach().abs().sum(0)
        )
        chosen = importance.argsort(descending=True)[:count].sort().values
        inputs, outputs = rows[name]
        solver = LinearRegression(fit_intercept=False).fit(inputs[:, chosen].numpy(), outputs.numpy())
        with torch.no_grad():
            weight.zero_()
            weight[:, chosen] = torch.from_numpy(solver.coef_).reshape(weight[:, chosen].shape)
