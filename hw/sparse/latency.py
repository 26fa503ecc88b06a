"""Latency of a network whose single weights were removed, by how many stay: measured layer by layer, then looked up.

What a layer takes depends on its geometry, its density and the zeros of its input; the table holds it for each layer
at some densities, with the fastest kernel there, and is linear between them. A layer never takes longer than dense,
for then it stays dense.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numba
import numpy as np
import torch
from torch import nn

from hw.cost import SPARSE_LATENCY, CostFunction, FloatArray
from hw.files import write_atomically
from hw.host import Host, describe_host
from hw.layers import LayerShape
from hw.sparse.peers import torch_calls
from hw.sparse.replacement import Layer, candidates, layer_inputs, pads_with_zeros, sparse_layer
from hw.sparse.side_by_side import time_calls
from hw.torch_threads import torch_threads

_VERSION = 1


class SparseLatencyError(ValueError):
    """A file is no table of sparse latency."""


@dataclass(frozen=True)
class SparseLayerTimes:
    """One layer.

    Attributes:
        dense_ms: the layer dense, in torch.
        weights: how many stay, ascending; with more than the most of them it stays dense. None of a layer that no
            sparse kernel takes.
        milliseconds: of the fastest sparse kernel with so many.
    """

    dense_ms: float
    weights: tuple[int, ...]
    milliseconds: tuple[float, ...]

    def at(self, kept: int) -> float:
        """Milliseconds with so many weights, sparse or dense, whichever is faster; rises with them."""
        if not self.weights or kept > self.weights[-1]:
            return self.dense_ms
        rising = np.maximum.accumulate(self.milliseconds)
        return min(float(np.interp(kept, self.weights, rising)), self.dense_ms)


@dataclass(frozen=True)
class SparseLatencyTable:
    """A cost model of networks with single weights removed: the network in torch, with sparse layers where they gain.

    Attributes:
        threads, batch: of one run.
        rest_ms: what the network takes beside the layers.
        layers: by name.
        host: where it was measured.
    """

    threads: int
    batch: int
    rest_ms: float
    layers: Mapping[str, SparseLayerTimes]
    host: Host

    name = SPARSE_LATENCY
    unit = "ms"

    def bind(self, layers: Sequence[LayerShape]) -> CostFunction:
        """Not there: this latency does not follow from channels.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.name} follows from single weights, not from channels; limit latency_ms")

    def layer_costs(self, layers: Sequence[LayerShape]) -> FloatArray:
        """Milliseconds of each layer while it is dense, float64 (layers,); 0 of those that are not in the table."""
        return np.array([self.layers[shape.name].dense_ms if shape.name in self.layers else 0.0 for shape in layers])

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_atomically(path, json.dumps({"sparse_latency": _VERSION} | asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> SparseLatencyTable:
        """Read a table.

        Raises:
            SparseLatencyError: the file is none, or of another version.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("sparse_latency")
            layers = {
                name: SparseLayerTimes(times["dense_ms"], tuple(times["weights"]), tuple(times["milliseconds"]))
                for name, times in content.pop("layers").items()
            }
            table = cls(layers=layers, host=Host(**content.pop("host")), **content)
        except (ValueError, TypeError, LookupError) as error:
            raise SparseLatencyError(
                f"{path}: expected a table of sparse latency, got {error!r}; delete it to measure anew"
            ) from error
        if version != _VERSION:
            raise SparseLatencyError(f"{path}: expected version {_VERSION}, got {version}; delete it to measure anew")
        return table


def measure_sparse_latency(
    network: nn.Module,
    example: torch.Tensor,
    variants: Mapping[str, Mapping[int, Layer]],
    *,
    threads: int,
    seed: int = 0,
    on_layer: Callable[[int, int], None] = lambda done, total: None,
) -> SparseLatencyTable:
    """Measure the table of a network.

    Args:
        network: dense, in evaluation mode on the CPU, batch norms folded.
        example: input, as many images as each run takes; sparse kernels are timed on the zeros that it gives.
        variants: by name of a layer, the layer with so many weights left; a convolution that pads with anything but
            zeros, in pixels, is measured dense only.
        threads: of one run.
        seed: draws the order of the runs.
        on_layer: called with how many layers are measured, of how many.
    """
    layers = {name: network.get_submodule(name) for name in variants}
    inputs = layer_inputs(network, layers, example)  # type: ignore[arg-type]
    measured = {}
    with torch_threads(threads), torch.inference_mode():
        for done, (name, thinner) in enumerate(variants.items()):
            on_layer(done, len(variants))
            measured[name] = _times(layers[name], inputs[name], thinner, threads, seed)  # type: ignore[arg-type]
        whole = min(timing.p10 for timing in time_calls(torch_calls(network, example), seed=seed).values())
    on_layer(len(variants), len(variants))
    rest = max(whole - sum(times.dense_ms for times in measured.values()), 0.0)
    host = describe_host({"numba": numba.__version__, "torch": torch.__version__})
    return SparseLatencyTable(threads, len(example), rest, measured, host)


def _times(layer: Layer, x: torch.Tensor, variants: Mapping[int, Layer], threads: int, seed: int) -> SparseLayerTimes:
    if not pads_with_zeros(layer):  # no sparse kernel takes it
        variants = {}
    calls = torch_calls(layer, x)
    dense = tuple(calls)
    kernels = candidates(layer, x)
    for kept, variant in variants.items():
        for kernel in kernels:
            calls[f"{kernel} {kept}"] = partial(sparse_layer(variant, kernel, threads), x)
    times = {name: timing.p10 for name, timing in time_calls(calls, seed=seed).items()}
    weights = tuple(sorted(variants))
    return SparseLayerTimes(
        min(times[name] for name in dense),
        weights,
        tuple(min(times[f"{kernel} {kept}"] for kernel in kernels) for kept in weights),
    )
