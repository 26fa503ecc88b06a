"""How often the channels of a layer are active: the zeros that follow the ReLU behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from amc_env.pruning.layer_calls import LayerCall, LayerWatcher

_RELUS = ("relu", "relu_")
_CLIPPED = ("hardtanh", "hardtanh_")  # ReLU6 is one from 0 to 6


def zero_shares(network: nn.Module, layers: Sequence[str], batches: Iterable[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Average percentage of zeros of each channel of these layers, as a fraction: float64 (channels,) in [0, 1].

    Hu et al., Network trimming, arXiv 1607.03250. The ReLU (or ReLU6) behind a layer is the first on each
    way of its outputs through operations that keep images and channels apart, such as batch norm, pooling and the sum
    of a residual block; where it follows such a sum, the zeros are those of the sum.

    Args:
        network: in evaluation mode.
        layers: names of convolutions and linear layers.
        batches: images.

    Raises:
        ValueError: no ReLU follows one of the layers.
    """
    zeros: dict[str, torch.Tensor] = {}
    seen: dict[str, int] = {}
    for images in batches:
        watcher = _ReluWatcher(network)
        with torch.no_grad(), watcher:
            network(images)
        for name, count in watcher.zeros.items():
            zeros[name] = zeros.get(name, 0.0) + count
            seen[name] = seen.get(name, 0) + watcher.seen[name]
    for name in layers:
        if name not in zeros:
            raise ValueError(
                f"layer {name!r}: apoz counts the zeros after the ReLU that follows, and none does; keep the layer, or "
                f"take another criterion"
            )
    return {name: zeros[name] / seen[name] for name in layers}


class _ReluWatcher(LayerWatcher):  # type: ignore[no-untyped-call]
    """Follows the outputs of every layer to the next ReLU.

    Attributes:
        zeros: of each layer, by channel, float64 (channels,).
        seen: of how many values each channel's are.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.zeros: dict[str, torch.Tensor] = {}
        self.seen: dict[str, int] = {}
        self._origins: dict[int, frozenset[str]] = {}  # tensor -> the layers whose outputs it holds

    def after_operation(self, operation: str, call: LayerCall | None, args: Any, result: Any) -> None:
        output = result[0] if isinstance(result, tuple | list) else result
        if not isinstance(output, torch.Tensor) or output.ndim < 2:
            return
        if call is not None:
            origins = frozenset([call.name])
        else:
            kept = (arg for arg in args if isinstance(arg, torch.Tensor) and arg.shape[:2] == output.shape[:2])
            origins = frozenset().union(*(self._origins.get(id(arg), frozenset()) for arg in kept))
        if operation in _RELUS or (operation in _CLIPPED and args[1] == 0):
            self._count(origins, output)
            origins = frozenset()
        self._origins[id(output)] = origins
        self._alive.append(output)  # ids stay unique only as long as the tensors live

    def _count(self, origins: frozenset[str], output: torch.Tensor) -> None:
        zeros = (output == 0).transpose(0, 1).flatten(1).sum(dim=1).double()
        for name in origins:
            self.zeros[name] = self.zeros.get(name, 0.0) + zeros
            self.seen[name] = self.seen.get(name, 0) + output.numel() // len(zeros)
