"""Cost models: what a network of given layer shapes costs. Latency tables implement the same protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hw.layers import LayerShape

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

#: cost(kept_in, kept_out): both int64 of shape (layers,), channels that each layer keeps.
CostFunction = Callable[[IntArray, IntArray], float]


@runtime_checkable
class ManyCost(Protocol):
    """A cost function that counts many plans at once."""

    def __call__(self, kept_in: IntArray, kept_out: IntArray) -> float:
        """As of any cost function."""
        ...

    def many(self, kept_in: IntArray, kept_out: IntArray) -> FloatArray:
        """Both int64 (plans, layers) -> float64 (plans,), the same numbers as one by one."""
        ...


class CostModel(Protocol):
    """What work costs on a device, as a function of the layers' channel counts.

    Attributes:
        name: the key that a budget uses, e.g. "macs".
        unit: the unit in which the cost is counted, e.g. "MACs", "bytes", "ms".
    """

    name: str
    unit: str

    def bind(self, layers: Sequence[LayerShape]) -> CostFunction:
        """Prepare for one network. The result should not fall when a channel count grows.

        Where it does (a runtime may be slower with fewer channels), plans are still brought within a budget, but
        perhaps not as close to it as can be.

        A cost that is a `BilinearCost` is best returned as one, any other as a `ManyCost`: agents that look at the
        costs of many plans are several times faster then.
        """
        ...

    def layer_costs(self, layers: Sequence[LayerShape]) -> FloatArray:
        """What each layer costs by itself, float64 (layers,)."""
        ...


@dataclass(frozen=True)
class BilinearCost:
    """cost = sum over the layers of kept_out * (per_product * kept_in + per_channel).

    Attributes:
        per_product, per_channel: int64 (layers,), in the unit of the cost.
    """

    per_product: IntArray
    per_channel: IntArray

    def __call__(self, kept_in: IntArray, kept_out: IntArray) -> float:
        return int(kept_out @ (self.per_product * kept_in + self.per_channel))


class MacCount:
    """Multiply-accumulates of convolutions and linear layers for one image (1 MAC = 2 FLOPs).

    Pruning papers print MACs under the name FLOPs. BatchNorm, activations and pooling count nothing.
    """

    name = "macs"
    unit = "MACs"

    def bind(self, layers: Sequence[LayerShape]) -> CostFunction:
        return _bilinear(layers, [layer.macs for layer in layers], [0] * len(layers))

    def layer_costs(self, layers: Sequence[LayerShape]) -> FloatArray:
        return np.array([layer.macs for layer in layers], dtype=np.float64)


class WeightSize:
    """Bytes of all learnable parameters (weights, biases, scales and shifts), as stored in `bytes_per_weight` each."""

    name = "size"
    unit = "bytes"

    def __init__(self, bytes_per_weight: int = 4) -> None:
        self.bytes_per_weight = bytes_per_weight

    def bind(self, layers: Sequence[LayerShape]) -> CostFunction:
        per_channel = [_per_channel(layer) * self.bytes_per_weight for layer in layers]
        kernels = [
            layer.weights * self.bytes_per_weight - own * layer.out_channels
            for layer, own in zip(layers, per_channel, strict=True)
        ]
        return _bilinear(layers, kernels, per_channel)

    def layer_costs(self, layers: Sequence[LayerShape]) -> FloatArray:
        return np.array([layer.weights * self.bytes_per_weight for layer in layers], dtype=np.float64)


class ActivationSize:
    """Peak bytes of activations for one image: the largest sum of one layer's input and output feature maps.

    It is what a layer needs while it runs (as MCUNet counts it, arXiv 2007.10319). A shortcut that waits beside the
    layer is not counted, and a runtime that keeps more alive needs more.
    """

    name = "activations"
    unit = "bytes"

    def __init__(self, bytes_per_value: int = 4) -> None:
        self.bytes_per_value = bytes_per_value

    def bind(self, layers: Sequence[LayerShape]) -> CostFunction:
        inputs, outputs = self._areas(layers)
        return lambda kept_in, kept_out: int((inputs * kept_in + outputs * kept_out).max())

    def layer_costs(self, layers: Sequence[LayerShape]) -> FloatArray:
        inputs, outputs = self._areas(layers)
        costs: FloatArray = (
            inputs * [layer.in_channels for layer in layers] + outputs * [layer.out_channels for layer in layers]
        ).astype(np.float64)
        return costs

    def _areas(self, layers: Sequence[LayerShape]) -> tuple[IntArray, IntArray]:
        """Bytes of one channel of each layer's input and output, int64 (layers,); none where nothing is multiplied."""
        sizes = np.array([(*layer.input_size, *layer.output_size) for layer in layers], dtype=np.int64)
        counted = np.array([layer.op in ("conv", "linear") for layer in layers]) * self.bytes_per_value
        return sizes[:, 0] * sizes[:, 1] * counted, sizes[:, 2] * sizes[:, 3] * counted


#: the cost of `hw.sparse.latency`, named here so that a budget can be checked without loading its kernels
SPARSE_LATENCY = "sparse_latency_ms"

#: the cost models that a budget can name without further data
COST_MODELS: Mapping[str, Callable[[], CostModel]] = {
    "macs": MacCount,
    "size": WeightSize,
    "activations": ActivationSize,
}

#: the unit of every cost that a budget can name
UNITS: Mapping[str, str] = {name: make().unit for name, make in COST_MODELS.items()} | {
    "latency_ms": "ms",
    SPARSE_LATENCY: "ms",
}


def _bilinear(layers: Sequence[LayerShape], kernels: Sequence[int], per_channel: Sequence[int]) -> BilinearCost:
    """The cost of kernels that cost `kernels` when dense and, beside them, `per_channel` for each output channel."""
    grouped = np.array([layer.groups > 1 for layer in layers])
    per_output = np.array([cost // layer.out_channels for cost, layer in zip(kernels, layers, strict=True)], np.int64)
    per_product = per_output // np.array([layer.in_channels for layer in layers], np.int64)
    # a grouped layer loses whole groups: what an output channel sees stays as it was
    return BilinearCost(
        np.where(grouped, 0, per_product), np.where(grouped, per_output, 0) + np.array(per_channel, np.int64)
    )


def _per_channel(layer: LayerShape) -> int:
    """Parameters that the layer owns per output channel beside its kernel."""
    if not layer.owns_weights:
        return 0
    return {"norm": 2, "scale": 1}.get(layer.op, int(layer.bias))
