"""Putting sparse layers into a network where they are faster."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn

from hw.sparse.choice import CHANNELS_LAST, DENSE, Case, KernelTable
from hw.sparse.jit import check_threads
from hw.sparse.modules import LINEAR_KERNELS, SparseConv2d, SparseLinear
from hw.torch_threads import torch_threads

#: name of the kernel of convolutions
CONV = "conv"
#: a layer with a larger share of non-zero weights is not tried
LARGEST_DENSITY = 0.75
#: a layer is replaced if it becomes faster by this factor
SMALLEST_GAIN = 1.05
_SMALL_BATCH = 16  # below it the kernels for single vectors are tried

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class LayerChoice:
    """What was decided about one layer.

    Attributes:
        name: of the module in the network.
        kernel: that runs it now; "dense" if it was left as it was.
        reason: why, in a sentence.
        density: share of its weights that are not zero.
        milliseconds: what each kernel took, by name; empty if nothing was measured.
    """

    name: str
    kernel: str
    reason: str
    density: float
    milliseconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sparsified:
    """A network with sparse layers.

    Attributes:
        network: the new network, in evaluation mode; it shares nothing with the one it was made from.
        layers: each convolution and linear layer, in the network's order.
    """

    network: nn.Module
    layers: tuple[LayerChoice, ...]

    @property
    def kernels(self) -> dict[str, str]:
        """The kernel of each replaced layer, by name: what `sparsify` takes to make the same network again."""
        return {layer.name: layer.kernel for layer in self.layers if layer.kernel != DENSE}


def sparsify(
    network: nn.Module,
    example: torch.Tensor,
    *,
    threads: int = 1,
    kernels: Mapping[str, str] | None = None,
    table: KernelTable | None = None,
) -> Sparsified:
    """A copy of a pruned network in which the layers that gain by it are sparse.

    Each convolution and linear layer is timed as it is, a convolution also with images and weights channels last, and
    with every sparse kernel that fits, on the input that it gets when the network runs on `example`. A sparse kernel
    takes its place if it gains at least 5 % on the faster of the dense ones.

    Args:
        network: whose zeros are weights that were removed.
        example: input like those to come, as many at once: kernels are chosen for its batch and its zeros.
        threads: of one layer, dense or sparse.
        kernels: for some layers by name, instead of measuring; the other layers stay dense.
        table: what was measured before; new cases are added to it.

    Raises:
        ValueError: `kernels` names a layer or a kernel that does not exist.
    """
    check_threads(threads)
    network = copy.deepcopy(network).eval()
    layers = {name: layer for name, layer in network.named_modules() if type(layer) in (nn.Linear, nn.Conv2d)}
    if kernels is not None:
        choices = [_prescribed(name, layer, kernels) for name, layer in layers.items()]
        unknown = sorted(set(kernels) - set(layers))
        if unknown:
            raise ValueError(f"kernels: expected names of convolutions and linear layers, got {', '.join(unknown)}")
    else:
        inputs = layer_inputs(network, layers, example)
        table = KernelTable() if table is None else table
        with torch_threads(threads):
            choices = [_chosen(name, layer, inputs.get(name), threads, table) for name, layer in layers.items()]
    for choice in choices:
        if choice.kernel != DENSE:
            network = _replaced(network, choice.name, sparse_layer(layers[choice.name], choice.kernel, threads))
    return Sparsified(network, tuple(choices))


def _chosen(name: str, layer: Layer, x: torch.Tensor | None, threads: int, table: KernelTable) -> LayerChoice:
    density = density_of(layer)
    obstacle = _obstacle(layer, x, density)
    if x is None or obstacle:
        return LayerChoice(name, DENSE, obstacle, density)
    kernels: dict[str, Callable[[], object]] = {DENSE: partial(layer, x)}
    if isinstance(layer, nn.Conv2d) and x.ndim == 4:
        turned = copy.deepcopy(layer).to(memory_format=torch.channels_last)
        kernels[CHANNELS_LAST] = partial(turned, x.contiguous(memory_format=torch.channels_last))
    for kernel in candidates(layer, x):
        sparse = sparse_layer(layer, kernel, threads)
        kernels[kernel] = partial(sparse, x)
    with torch.inference_mode():
        measured = table.choose(_case(layer, x, density, threads), kernels)
    fastest, gain = measured.fastest, measured.gain
    times = ", ".join(f"{kernel} {value:.3f} ms" for kernel, value in measured.milliseconds.items())
    if gain < SMALLEST_GAIN:
        return LayerChoice(
            name, DENSE, f"no kernel is {SMALLEST_GAIN} times faster: {times}", density, measured.milliseconds
        )
    return LayerChoice(name, fastest, f"{gain:.2f} times faster: {times}", density, measured.milliseconds)


def _prescribed(name: str, layer: Layer, kernels: Mapping[str, str]) -> LayerChoice:
    kernel = kernels.get(name, DENSE)
    known = (DENSE, *((CONV,) if isinstance(layer, nn.Conv2d) else LINEAR_KERNELS))
    if kernel not in known:
        raise ValueError(f"kernels: expected one of {', '.join(known)} for {name!r}, got {kernel!r}")
    return LayerChoice(name, kernel, "as told", density_of(layer))


def pads_with_zeros(layer: Layer) -> bool:
    """Whether a layer has no padding, or zeros, so many pixels of them: what sparse convolutions can do."""
    return not isinstance(layer, nn.Conv2d) or (layer.padding_mode == "zeros" and not isinstance(layer.padding, str))


def _obstacle(layer: Layer, x: torch.Tensor | None, density: float) -> str:
    """Why a layer is not tried; empty if it is."""
    if x is None:
        return "the network does not call it"
    if density > LARGEST_DENSITY:
        return f"{density:.0%} of its weights are not zero, tried up to {LARGEST_DENSITY:.0%}"
    if not pads_with_zeros(layer):
        return f"padding {layer.padding!r} with {layer.padding_mode}; expected zeros, in pixels"
    if x.dtype != torch.float32 or x.device.type != "cpu":
        return f"{x.dtype} on {x.device}; expected float32 on the CPU"
    return ""


def candidates(layer: Layer, x: torch.Tensor) -> tuple[str, ...]:
    """Names of the sparse kernels that are tried for a layer and its input."""
    if isinstance(layer, nn.Conv2d):
        return (CONV,)
    return tuple(LINEAR_KERNELS) if x.numel() // x.shape[-1] < _SMALL_BATCH else ("panels",)


def _case(layer: Layer, x: torch.Tensor, density: float, threads: int) -> Case:
    if isinstance(layer, nn.Linear):
        kind, batch = f"linear {layer.in_features} -> {layer.out_features}", x.numel() // x.shape[-1]
    else:
        size = "x".join(str(pixels) for pixels in x.shape[-2:])
        kind, batch = f"{layer} at {size}", len(x) if x.ndim == 4 else 1
    shared = len(torch.unique(layer.weight)) <= 16  # with 0
    return Case(kind, round(density, 4), round(share_of(x), 4), shared, batch, threads)


def density_of(layer: Layer) -> float:
    """Share of its weights that are not zero."""
    return share_of(layer.weight)


def share_of(tensor: torch.Tensor) -> float:
    """Share of it that is not zero."""
    return int(torch.count_nonzero(tensor)) / max(tensor.numel(), 1)


def sparse_layer(layer: Layer, kernel: str, threads: int) -> SparseConv2d | SparseLinear:
    """The layer with one of its `candidates`."""
    if isinstance(layer, nn.Conv2d):
        return SparseConv2d.from_conv(layer, threads=threads)
    return SparseLinear.from_linear(layer, kernel=kernel, threads=threads)


def _replaced(network: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    if not name:
        return layer  # it is the whole network
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, layer)
    return network


def layer_inputs(network: nn.Module, layers: Mapping[str, Layer], example: torch.Tensor) -> dict[str, torch.Tensor]:
    """The first input of each layer when the network runs."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(layer: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            seen.setdefault(name, arguments[0].clone())

        return hook

    handles = [layer.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        with torch.inference_mode():
            network(example)
    finally:
        for handle in handles:
            handle.remove()
    return seen
