"""Watching a forward pass: every operation has a number, and the calls of stored layers are told apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes


@dataclass(frozen=True)
class LayerCall:
    """One call of a convolution or a linear layer.

    Attributes:
        name: qualified name of the module.
        image: its input, (n, channels, height, width), or (rows, features) of a linear layer.
        weight: the stored parameter.
        stride, padding, dilation: (height, width) of a convolution; groups: its groups.
        linear: whether it is a linear layer.
    """

    name: str
    image: torch.Tensor
    weight: torch.Tensor
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    linear: bool = False

    @property
    def images(self) -> int:
        return self.image.shape[0]


class LayerWatcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs with a forward pass; a subclass looks at (or changes the weights of) each layer before it runs.

    Attributes:
        index: number of the operation at hand, from 0.
        operations: names of the operations so far.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index = -1
        self.operations: list[str] = []
        self._layers = dict(_layer_weights(network))
        self._aliases: dict[int, int] = {}  # transposed view -> stored weight
        self._alive: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.index += 1
        operation = func.overloadpacket.__name__
        self.operations.append(operation)
        call = self._layer_call(operation, args)
        if call is not None:
            with _disable_current_modes():  # what it computes is no part of the pass that other modes watch
                self.before_layer(call)
        result = func(*args, **(kwargs or {}))
        if operation == "t" and id(args[0]) in self._layers:
            self._aliases[id(result)] = id(args[0])
            self._alive.append(result)
        with _disable_current_modes():
            self.after_operation(operation, call, (*args, *(kwargs or {}).values()), result)
        return result

    def before_layer(self, call: LayerCall) -> None:
        """Called before each convolution and linear layer runs."""

    def after_operation(self, operation: str, call: LayerCall | None, args: Any, result: Any) -> None:
        """Called after each operation; `args` are those by position, then those by keyword."""

    def _layer_call(self, operation: str, args: Any) -> LayerCall | None:
        if operation == "convolution":
            image, weight, _, stride, padding, dilation, _, _, groups = args[:9]
            if id(weight) not in self._layers:
                return None
            name, stored = self._layers[id(weight)]
            return LayerCall(name, image, stored, _pair(stride), _pair(padding), _pair(dilation), groups)
        if operation in ("addmm", "mm"):
            image, weight = args[1:3] if operation == "addmm" else args[:2]
            if id(weight) not in self._aliases:
                return None
            name, stored = self._layers[self._aliases[id(weight)]]
            return LayerCall(name, image, stored, linear=True)
        return None


def _layer_weights(network: nn.Module) -> Iterator[tuple[int, tuple[str, torch.Tensor]]]:
    for name, parameter in network.named_parameters():
        if name.endswith("weight") and parameter.ndim in (2, 4):
            yield id(parameter), (name.removesuffix(".weight"), parameter)


def _pair(values: Any) -> tuple[int, int]:
    first, *rest = values
    return int(first), int(rest[0] if rest else first)
