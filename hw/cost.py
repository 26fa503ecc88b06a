"""Cost models: what a network of given layer shapes costs. Latency tables implement the same protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hw.layers import LayerShape

IntArray = NDArray[np.int64]

#: cost(kept_in, kept_out): both int64 of shape (layers,), channels that each layer keeps.
CostFunction = Callable[[IntArray, IntArray], float]


class CostModel(Protocol):
    """What work costs on a device, as a function of the layers' channel counts.

    Attributes:
        name: the key that a budget uses, e.g. "macs".
        unit: the unit in which the cost is counted, e.g. "MACs", "bytes", "ms".
    """

    name: str
    unit: str

    def bind(self, layers: Sequence[LayerShape]) -> CostFunction:
        """Prepare for one network. The result must not fall when a channel count grows."""
        ...


class MacCount:
    """Multiply-accumulates of convolutions and linear layers for one image (1 MAC = 2 FLOPs).

    Pruning papers print MACs under the name FLOPs. BatchNorm, activations and pooling count nothing.
    """

    name = "macs"
    unit = "MACs"

    def bind(self, layers: Sequence[LayerShape]) -> CostFunction:
        per_product = np.array([_per_product(layer, layer.macs) for layer in layers], dtype=np.int64)
        grouped = np.array([layer.groups > 1 for layer in layers])

        def macs(kept_in: IntArray, kept_out: IntArray) -> float:
            return int((per_product * kept_out * np.where(grouped, 1, kept_in)).sum())

        return macs


class WeightSize:
    """Bytes of all learnable parameters (weights, biases, scales and shifts), as stored in `bytes_per_weight` each."""

    name = "size"
    unit = "bytes"

    def __init__(self, bytes_per_weight: int = 4) -> None:
        self.bytes_per_weight = bytes_per_weight

    def bind(self, layers: Sequence[LayerShape]) -> CostFunction:
        dense = [layer.weights - _per_channel(layer) * layer.out_channels for layer in layers]
        per_product = np.array(
            [_per_product(layer, count) for layer, count in zip(layers, dense, strict=True)], dtype=np.int64
        )
        per_channel = np.array([_per_channel(layer) for layer in layers], dtype=np.int64)
        grouped = np.array([layer.groups > 1 for layer in layers])

        def size(kept_in: IntArray, kept_out: IntArray) -> float:
            products = per_product * np.where(grouped, 1, kept_in)
            return int((kept_out * (products + per_channel)).sum()) * self.bytes_per_weight

        return size


#: the cost models that a budget can name without further data
COST_MODELS: Mapping[str, Callable[[], CostModel]] = {"macs": MacCount, "size": WeightSize}


def _per_product(layer: LayerShape, count: int) -> int:
    """`count` divided by the channel product it is proportional to (a grouped layer is linear in its outputs)."""
    return count // (layer.out_channels * (layer.in_channels if layer.groups == 1 else 1))


def _per_channel(layer: LayerShape) -> int:
    """Parameters that the layer owns per output channel beside its kernel."""
    if not layer.owns_weights:
        return 0
    return {"norm": 2, "scale": 1}.get(layer.op, int(layer.bias))
