"""Traces which channels belong together by running the network once and following every channel through its operations.

Each output channel of a convolution or linear layer is an atom. Sums and products unite the atoms that meet;
a grouped convolution unites the inputs and outputs of each of its groups (depthwise is the case of one channel
each); what meets the network's input, its output or a layer norm is fixed. The united sets that the same layers
produce are the interchangeable units of one group, and one decision is taken per group.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from amc_env.pruning.graph import ChannelGraph, IntArray, is_block
from amc_env.pruning.units import UnitFinder
from hw.layers import LayerShape


class UntraceableNetworkError(ValueError):
    """The network does something with its channels that the tracer cannot follow; the message says what and where."""


def trace_channels(network: nn.Module, example: torch.Tensor) -> ChannelGraph:
    """The channel graph of a network.

    Args:
        network: in evaluation mode; not changed.
        example: float32 (n, channels, height, width) of the size that the network will see; n is best 2.

    Raises:
        UntraceableNetworkError: an operation mixes or moves channels in a way that is not understood.
    """
    if network.training:
        raise ValueError("trace_channels: expected the network in evaluation mode; call network.eval() first")
    return _traced(network, example, _Tracer(network, example))


def trace_layers(network: nn.Module, example: torch.Tensor) -> ChannelGraph:
    """The layers of a network, for what needs no channels: those that cannot be followed are fixed.

    Args:
        network: in evaluation mode; not changed.
        example: as of `trace_channels`, or int64 token ids (n, length).

    Raises:
        UntraceableNetworkError: layers run inside an operation that hides them.
    """
    if network.training:
        raise ValueError("trace_layers: expected the network in evaluation mode; call network.eval() first")
    return _traced(network, example, _LayerTracer(network, example))


def _traced(network: nn.Module, example: torch.Tensor, tracer: _Tracer) -> ChannelGraph:
    with torch.no_grad(), _module_names(network, tracer), tracer:
        output = network(example)
    for tensor in tree_leaves(output):
        if isinstance(tensor, torch.Tensor) and (channels := tracer.channels_of(tensor)) is not None:
            tracer.units.fix(channels.atoms)
    tracer.units.foldable = tracer.foldable()
    return tracer.units.graph()


@dataclass(frozen=True)
class _Channels:
    """Which dimension of a tensor holds channels, and the atom of each index along it."""

    dim: int
    atoms: IntArray


class _Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the channels through the ATen operations of one forward pass."""

    def __init__(self, network: nn.Module, example: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.units = UnitFinder()
        self.module_stack: list[str] = [""]
        self._batch = example.shape[0]
        self._modules = dict(network.named_modules())
        self._stored = {id(tensor): name for name, tensor in _named_tensors(network)}
        self._learnable = {name for name, _ in network.named_parameters()}
        self._channels: dict[int, _Channels] = {}
        self._uses = Counter[int]()  # of each traced tensor, and of each stored one
        self._convolved: dict[int, tuple[str, int]] = {}  # output -> module and weight of its convolution
        self._normalised: list[tuple[int, str, int]] = []  # input, module and weight of each batch norm
        self._alive: list[torch.Tensor] = []  # ids stay unique only as long as the tensors live
        image = self.units.new_atoms(example.shape[1], producer=None)
        self.units.fix(image)
        self._remember(example, _Channels(1, image))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self._uses.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf))
        if name in ("t", "view", "detach", "alias") and id(args[0]) in self._stored:
            self._alias(args[0], result)
        elif self._concerns(name, [leaf for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)]):
            self._follow(func, name, args, result)
        return result

    def _concerns(self, name: str, tensors: list[torch.Tensor]) -> bool:
        """Whether an operation has to do with channels that are followed."""
        return any(self.channels_of(tensor) is not None for tensor in tensors)

    def channels_of(self, tensor: torch.Tensor) -> _Channels | None:
        return self._channels.get(id(tensor))

    def _remember(self, tensor: torch.Tensor, channels: _Channels) -> None:
        self._alive.append(tensor)
        self._channels[id(tensor)] = channels

    def _alias(self, stored: torch.Tensor, result: torch.Tensor) -> None:
        self._alive.append(result)
        self._stored[id(result)] = self._stored[id(stored)]

    def _follow(self, func: Any, name: str, args: Any, result: Any) -> None:
        handler = _HANDLERS.get(name.rstrip("_"))
        self._note_order(name)
        if handler is not None:
            handler(self, args, result)
        elif torch.Tag.pointwise in func.tags:
            self._pointwise([leaf for leaf in tree_leaves(args) if _is_tensor(leaf)], result)
        else:
            raise self.refusal(f"operation '{name}' on channels is not supported")

    def leave(self, module: nn.Module, output: Any) -> None:
        """The module that is running is done."""
        name = self.module_stack.pop()
        channels = self.channels_of(output) if _is_tensor(output) else None
        if channels is not None and is_block(name, module):
            self.units.blocks[name] = (channels.dim, channels.atoms)

    def _note_order(self, name: str) -> None:
        """Which operations run between one layer and the next: they share the layer's entry in a latency table."""
        if name in ("convolution", "addmm", "mm"):
            self.units.followers.append([])
        elif self.units.followers and name not in _FREE:
            self.units.followers[-1].append(_PLAIN_NAMES.get(name.strip("_"), name.strip("_")))

    def foldable(self) -> list[tuple[str, str]]:
        """Modules of convolutions and batch norms, each called once, where only the norm sees the convolution."""
        pairs = []
        for features, norm, scale in self._normalised:
            convolution, weight = self._convolved.get(features, ("", 0))
            modules = self._modules.get(convolution), self._modules[norm]
            called_once = self._uses[features] == self._uses[weight] == self._uses[scale] == 1
            if not (isinstance(modules[0], nn.Conv2d) and isinstance(modules[1], nn.BatchNorm2d)):
                continue
            if called_once and modules[1].track_running_stats:
                pairs.append((convolution, norm))
        return pairs

    def refusal(self, reason: str) -> UntraceableNetworkError:
        where = self.module_stack[-1]
        kind = type(self._modules[where]).__name__ if where in self._modules else "network"
        place = f"module {where!r} ({kind})" if where else f"the forward of {kind}"
        return UntraceableNetworkError(
            f"the network's channels cannot be traced: in {place}, {reason}. "
            f"Networks of convolutions, linear layers, batch norm, sums, products, concatenations and pooling can be "
            f"pruned."
        )

    # one method per kind of operation; args are those of the ATen operation

    def _convolution(self, args: Any, result: torch.Tensor) -> None:
        image, weight, bias, stride, padding, dilation, transposed, _, groups = args[:9]
        channels = self._expect(image, dim=1)
        if transposed or weight.ndim != 4:
            raise self.refusal(
                f"a convolution that is transposed or not two-dimensional (weight {tuple(weight.shape)})"
            )
        name = self._layer_name(weight)
        outputs = self.units.new_atoms(weight.shape[0], producer=name)
        shape = LayerShape(
            name.removesuffix(".weight"), "conv", weight.shape[1] * groups, weight.shape[0], groups=groups,
            kernel_size=_pair(weight.shape[2:]), stride=_pair(stride), padding=_pair(padding), dilation=_pair(dilation),
            input_size=_pair(image.shape[2:]), output_size=_pair(result.shape[2:]), bias=bias is not None,
        )  # fmt: skip
        self.units.layer(shape, name, channels.atoms, outputs)
        self.units.slice(name, 0, outputs)
        if groups == 1:
            self.units.slice(name, 1, channels.atoms, consumes=True)
        else:
            self.units.unite_groups(channels.atoms, outputs, groups)
        if bias is not None:
            self.units.slice(self._layer_name(bias), 0, outputs)
        self._convolved[id(result)] = (self.module_stack[-1], id(weight))
        self._remember(result, _Channels(1, outputs))

    def _linear(self, features: torch.Tensor, weight: torch.Tensor, bias: Any, result: torch.Tensor) -> None:
        channels = self._expect(features, dim=features.ndim - 1)
        name = self._layer_name(weight)
        outputs = self.units.new_atoms(result.shape[-1], producer=name)
        positions = features.numel() // features.shape[-1] // self._batch
        side = math.isqrt(positions)
        size = (side, side) if side * side == positions else (positions, 1)
        shape = LayerShape(
            name.removesuffix(".weight"), "linear", features.shape[-1], result.shape[-1],
            input_size=size, output_size=size, bias=bias is not None,
        )  # fmt: skip
        self.units.layer(shape, name, channels.atoms, outputs)
        self.units.slice(name, 0, outputs)
        self.units.slice(name, 1, channels.atoms, consumes=True)
        if bias is not None:
            self.units.slice(self._layer_name(bias), 0, outputs)
        self._remember(result, _Channels(result.ndim - 1, outputs))

    def _addmm(self, args: Any, result: torch.Tensor) -> None:
        self._linear(args[1], args[2], args[0], result)

    def _mm(self, args: Any, result: torch.Tensor) -> None:
        self._linear(args[0], args[1], None, result)

    def _batch_norm(self, args: Any, result: Any) -> None:
        channels = self._expect(args[0], dim=1)
        names = [self._stored.get(id(tensor)) for tensor in args[1:5] if tensor is not None]
        for name in names:
            if name is None:
                raise self.refusal("batch norm with statistics that are not stored in a module")
            self.units.slice(name, 0, channels.atoms)
        if args[1] is not None:
            self._per_channel_layer("norm", self._layer_name(args[1]), channels.atoms, args[0])
            self._normalised.append((id(args[0]), self.module_stack[-1], id(args[1])))
        self._remember(result[0], channels)

    def _fixing_norm(self, args: Any, result: Any) -> None:
        """Layer norm and group norm: removing a channel would change the statistics of the others."""
        channels = self._channels[id(args[0])]
        self.units.fix(channels.atoms)
        for tensor in tree_leaves(args[1:]):
            if _is_tensor(tensor) and (name := self._stored.get(id(tensor))) in self._learnable:
                self._per_channel_layer("scale", str(name), channels.atoms, args[0])
        self._remember(result[0], channels)

    def _pointwise(self, tensors: list[torch.Tensor], result: torch.Tensor) -> None:
        labelled = [(tensor, self._channels[id(tensor)]) for tensor in tensors if id(tensor) in self._channels]
        first, channels = labelled[0]
        from_end = channels.dim - first.ndim
        for tensor, other in labelled[1:]:
            if other.dim - tensor.ndim != from_end or len(other.atoms) != len(channels.atoms):
                raise self.refusal(
                    f"shapes {tuple(first.shape)} and {tuple(tensor.shape)} meet in different dimensions"
                )
            self.units.unite(channels.atoms, other.atoms)
        for tensor in tensors:
            if id(tensor) not in self._channels:
                self._combine_constant(tensor, from_end, channels.atoms, first)
        self._remember(result, _Channels(result.ndim + from_end, channels.atoms))

    def _combine_constant(self, tensor: torch.Tensor, from_end: int, atoms: IntArray, features: torch.Tensor) -> None:
        """A tensor without traced channels meets a traced one: a stored one per channel, or the same for all."""
        if tensor.ndim < -from_end or tensor.shape[from_end] == 1:
            return
        name = self._stored.get(id(tensor))
        if name is None or tensor.numel() != len(atoms):
            raise self.refusal(
                f"a tensor of shape {tuple(tensor.shape)} that is no per-channel parameter meets the channels"
            )
        stored_dim = int(np.argmax(self._tensor(name).shape))
        self.units.slice(name, stored_dim, atoms)
        if name in self._learnable:
            self._per_channel_layer("scale", name, atoms, features)

    def _same_channels(self, args: Any, result: Any) -> None:
        """Pooling, resizing and copies: dimension 1 (or the known one) keeps its channels."""
        channels = self._channels[id(args[0])]
        output = result[0] if isinstance(result, (tuple, list)) else result
        if output.ndim != args[0].ndim or output.shape[channels.dim] != len(channels.atoms):
            raise self.refusal(f"shape {tuple(args[0].shape)} becomes {tuple(output.shape)}")
        self._remember(output, channels)

    def _mean(self, args: Any, result: torch.Tensor) -> None:
        channels = self._channels[id(args[0])]
        dims = [dim % args[0].ndim for dim in (args[1] if len(args) > 1 and args[1] else range(args[0].ndim))]
        if channels.dim in dims:
            raise self.refusal("a reduction over the channels")
        kept_dims = result.ndim == args[0].ndim
        moved = channels.dim if kept_dims else channels.dim - sum(dim < channels.dim for dim in dims)
        self._remember(result, _Channels(moved, channels.atoms))

    def _permute(self, args: Any, result: torch.Tensor) -> None:
        channels = self._channels[id(args[0])]
        order = [dim % args[0].ndim for dim in args[1]]
        self._remember(result, _Channels(order.index(channels.dim), channels.atoms))

    def _transpose(self, args: Any, result: torch.Tensor) -> None:
        order = list(range(args[0].ndim))
        first, second = args[1] % args[0].ndim, args[2] % args[0].ndim
        order[first], order[second] = order[second], order[first]
        self._permute((args[0], order), result)

    def _view(self, args: Any, result: torch.Tensor) -> None:
        """A reshape may merge dimensions before or after the channels, and flatten trailing ones into them."""
        channels, before, after = self._channels[id(args[0])], args[0].shape, result.shape
        ahead = math.prod(before[: channels.dim])
        trailing = math.prod(before[channels.dim + 1 :])
        for dim in range(len(after)):
            if math.prod(after[:dim]) != ahead:
                continue
            if after[dim] == before[channels.dim]:
                return self._remember(result, _Channels(dim, channels.atoms))
            if after[dim] == before[channels.dim] * trailing and ahead == before[0]:
                return self._remember(result, _Channels(dim, np.repeat(channels.atoms, trailing)))
        raise self.refusal(f"a reshape of {tuple(before)} to {tuple(after)} splits or mixes the channels")

    def _unsqueeze(self, args: Any, result: torch.Tensor) -> None:
        channels = self._channels[id(args[0])]
        self._remember(result, _Channels(channels.dim + (args[1] % result.ndim <= channels.dim), channels.atoms))

    def _squeeze(self, args: Any, result: torch.Tensor) -> None:
        self._view(args, result)

    def _slice(self, args: Any, result: torch.Tensor) -> None:
        channels = self._channels[id(args[0])]
        if result.shape[channels.dim] != len(channels.atoms):
            raise self.refusal("a slice takes some of the channels")
        self._remember(result, channels)

    def _split(self, args: Any, result: Any) -> None:
        dim = args[2] % args[0].ndim if len(args) > 2 else 0
        channels = self._channels[id(args[0])]
        if dim == channels.dim:
            raise self.refusal("a split divides the channels")
        for part in result:
            self._remember(part, channels)

    def _cat(self, args: Any, result: torch.Tensor) -> None:
        dim = (args[1] if len(args) > 1 else 0) % result.ndim
        parts = [self._channels.get(id(tensor)) for tensor in args[0]]
        if any(part is None or part.dim != dim for part in parts):
            raise self.refusal(f"a concatenation along dimension {dim}, which does not hold the channels of all parts")
        self._remember(result, _Channels(dim, np.concatenate([part.atoms for part in parts if part is not None])))

    def _pad(self, args: Any, result: torch.Tensor) -> None:
        channels = self._channels[id(args[0])]
        from_end = args[0].ndim - 1 - channels.dim
        widths = list(args[1]) + [0] * (2 * args[0].ndim - len(args[1]))
        before, after = widths[2 * from_end], widths[2 * from_end + 1]
        if (before, after) != (0, 0):
            module = self.module_stack[-1]
            if getattr(self._modules[module], "channel_padding", None) != (before, after):
                raise self.refusal(
                    f"{before} and {after} channels are padded by a function; put the padding in a module of its own "
                    f"that reads them from an attribute channel_padding = ({before}, {after}), so that it can be pruned"
                )
            zeros_before, zeros_after = self.units.pad(module, before, after)
            channels = replace(channels, atoms=np.concatenate([zeros_before, channels.atoms, zeros_after]))
        self._remember(result, channels)

    def _expect(self, tensor: torch.Tensor, dim: int) -> _Channels:
        channels = self.channels_of(tensor)
        if channels is None or channels.dim != dim:
            raise self.refusal(f"an input of shape {tuple(tensor.shape)} whose channels are not in dimension {dim}")
        return channels

    def _layer_name(self, tensor: torch.Tensor) -> str:
        name = self._stored.get(id(tensor))
        if name is None:
            raise self.refusal(f"a weight of shape {tuple(tensor.shape)} that is not a stored parameter")
        return name

    def _per_channel_layer(self, op: Any, name: str, atoms: IntArray, features: torch.Tensor) -> None:
        size = _pair(features.shape[2:]) if features.ndim == 4 else (1, 1)
        shape = LayerShape(name, op, len(atoms), len(atoms), input_size=size, output_size=size)
        self.units.layer(shape, name, atoms, atoms)

    def _tensor(self, name: str) -> torch.Tensor:
        module, _, attribute = name.rpartition(".")
        tensor: torch.Tensor = getattr(self._modules[module], attribute)
        return tensor


class _LayerTracer(_Tracer):  # type: ignore[no-untyped-call]
    """Finds every layer: what it cannot follow has new channels, which are fixed."""

    def _concerns(self, name: str, tensors: list[torch.Tensor]) -> bool:
        return name in _LAYERS or name in _HIDING or super()._concerns(name, tensors)

    def _follow(self, func: Any, name: str, args: Any, result: Any) -> None:
        if name in _HIDING:
            raise UntraceableNetworkError(
                f"the network's layers cannot be seen: in module {self.module_stack[-1]!r}, operation {name!r} hides "
                f"them; write attention with an nn.Linear each for queries, keys, values and output, as "
                f"amc_env.text_classifier does"
            )
        try:
            super()._follow(func, name, args, result)
        except UntraceableNetworkError:
            return  # the result has no channels

    def _expect(self, tensor: torch.Tensor, dim: int) -> _Channels:
        channels = self.channels_of(tensor)
        if channels is not None and channels.dim == dim:
            return channels
        atoms = self.units.new_atoms(tensor.shape[dim], producer=None)
        self.units.fix(atoms)
        return _Channels(dim, atoms)


_LAYERS = frozenset({"convolution", "addmm", "mm"})
_HIDING = frozenset({"_native_multi_head_attention", "_transformer_encoder_layer_fwd"})
#: operations that move nothing, and plainer names of others
_FREE = frozenset({"view", "_unsafe_view", "t", "detach", "alias", "unsqueeze", "squeeze", "permute", "transpose"})
_PLAIN_NAMES = {
    "native_batch_norm": "batch_norm", "native_batch_norm_legit_no_training": "batch_norm", "hardtanh": "clip",
    "native_layer_norm": "layer_norm", "native_group_norm": "group_norm", "max_pool2d_with_indices": "max_pool2d",
}  # fmt: skip
_Handler = Callable[[_Tracer, Any, Any], None]
_SAME = (
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d",
    "upsample_bilinear2d", "detach", "alias", "clone", "_to_copy", "contiguous", "hardswish", "as_strided",
)  # fmt: skip
_HANDLERS: dict[str, _Handler] = dict.fromkeys(_SAME, _Tracer._same_channels) | {
    "convolution": _Tracer._convolution, "addmm": _Tracer._addmm, "mm": _Tracer._mm,
    "native_batch_norm": _Tracer._batch_norm, "_native_batch_norm_legit_no_training": _Tracer._batch_norm,
    "native_layer_norm": _Tracer._fixing_norm, "native_group_norm": _Tracer._fixing_norm,
    "mean": _Tracer._mean, "sum": _Tracer._mean, "permute": _Tracer._permute, "transpose": _Tracer._transpose,
    "view": _Tracer._view, "_unsafe_view": _Tracer._view, "unsqueeze": _Tracer._unsqueeze, "squeeze": _Tracer._squeeze,
    "slice": _Tracer._slice, "split": _Tracer._split, "split_with_sizes": _Tracer._split, "cat": _Tracer._cat,
    "constant_pad_nd": _Tracer._pad,
}  # fmt: skip


def _named_tensors(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


@contextmanager
def _module_names(network: nn.Module, tracer: _Tracer) -> Iterator[None]:
    """Keep the name of the module that is running on top of the tracer's stack."""
    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: tracer.module_stack.append(name)))
        handles.append(module.register_forward_hook(lambda module, _, output: tracer.leave(module, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _pair(values: Iterable[int]) -> tuple[int, int]:
    height, width = list(values) * (2 if len(list(values)) == 1 else 1)
    return int(height), int(width)
