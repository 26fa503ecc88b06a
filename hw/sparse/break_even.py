"""Where sparsity pays: one layer, dense and sparse at several densities, side by side."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import nn

from hw.sparse.peers import DENSE, best_of, peers
from hw.sparse.replacement import Layer, candidates, density_of, sparse_layer
from hw.sparse.side_by_side import time_calls
from hw.torch_threads import torch_threads

#: densities at which a layer is tried beside its own
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.6)
Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class MeasuredLayer:
    """A layer on one input.

    Attributes:
        milliseconds: the 10th percentile of each of `peers`, and of each sparse kernel at the layer's own density.
        sparse: density and milliseconds of the fastest sparse kernel there, by rising density.
    """

    milliseconds: Mapping[str, float]
    sparse: Curve

    @property
    def break_even(self) -> float | None:
        """See `break_even`; the best dense float32 is what it is compared with."""
        dense = best_of(self.milliseconds, DENSE)
        return break_even(self.sparse, self.milliseconds[str(dense)])


def measure_layer(
    layer: Layer,
    x: torch.Tensor,
    *,
    threads: int,
    densities: Sequence[float] = DENSITIES,
    seed: int = 0,
) -> MeasuredLayer:
    """Time a layer in all ways there are, and its sparse kernels at other densities, in one interleaved run.

    At other densities the layer has its own values, drawn with replacement, at random places.

    Args:
        layer: with weights that are not zero; on the CPU, in evaluation mode.
        x: its input; a linear layer that is applied at several positions of it is timed on all of them as rows.
        threads: of one run.
        densities: to try beside the layer's own.
        seed: draws weights and the order of the runs.
    """
    if isinstance(layer, nn.Linear):
        x = x.reshape(-1, x.shape[-1])
    rng = np.random.default_rng(seed)
    own = density_of(layer)
    variants = {own: layer} | {density: thinned(layer, density, rng) for density in densities if density != own}
    kernels = candidates(layer, x)
    with torch_threads(threads), torch.inference_mode():
        calls = peers(layer, x, threads)
        names = list(calls)
        for density, variant in variants.items():
            for kernel in kernels:
                calls[_name(kernel, density)] = _call(variant, kernel, x, threads)
        times = {name: timing.p10 for name, timing in time_calls(calls, seed=seed).items()}
    curve = ((density, min(times[_name(kernel, density)] for kernel in kernels)) for density in sorted(variants))
    own_times = {kernel: times[_name(kernel, own)] for kernel in kernels}
    return MeasuredLayer({name: times[name] for name in names} | own_times, tuple(curve))


def break_even(sparse: Curve, dense: float) -> float | None:
    """The density below which a sparse layer is faster than `dense` milliseconds.

    Args:
        sparse: density and milliseconds, by rising density; linear between.
        dense: milliseconds.

    Returns:
        0 if it is slower at the lowest density already; None if it is faster at all.
    """
    before: tuple[float, float] | None = None
    for density, milliseconds in sparse:
        if milliseconds >= dense:
            if before is None:
                return 0.0
            share = (dense - before[1]) / (milliseconds - before[1])
            return before[0] + share * (density - before[0])
        before = density, milliseconds
    return None


def thinned(layer: Layer, density: float, rng: np.random.Generator) -> Layer:
    """The layer with random weights of this density: its own values that are not zero, drawn with replacement."""
    values = layer.weight.detach()[layer.weight != 0].numpy()
    weight = np.zeros(layer.weight.numel(), np.float32)
    places = rng.permutation(weight.size)[: max(1, round(density * weight.size))]
    weight[places] = rng.choice(values, len(places))
    result = copy.deepcopy(layer)
    result.weight.data = torch.from_numpy(weight).reshape(layer.weight.shape)
    return result


def _name(kernel: str, density: float) -> str:
    return f"{kernel} at {density}"


def _call(layer: Layer, kernel: str, x: torch.Tensor, threads: int) -> Callable[[], object]:
    return partial(sparse_layer(layer, kernel, threads), x)
