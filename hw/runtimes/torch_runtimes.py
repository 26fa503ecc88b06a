"""PyTorch itself as a runtime: eager on the CPU or a GPU, and compiled."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from hw.layers import LayerShape
from hw.runtimes.base import NetworkFamily, ProfiledNetwork, Runtime, RuntimeUnavailableError
from hw.timing import FloatArray
from hw.torch_threads import torch_threads


class TorchEager(Runtime):
    """Eager PyTorch on the CPU. Layer times lie between marks that hooks set when a layer begins."""

    name = "torch"
    folds_batchnorm = False
    device = "cpu"

    def family(self, network: nn.Module, example: torch.Tensor, layers: Sequence[LayerShape]) -> NetworkFamily:
        modules = dict(network.named_modules())
        for layer in layers:
            if layer.name not in modules:
                raise RuntimeUnavailableError(
                    f"{self.name}: the weights of layer {layer.name!r} are no module's, so it cannot be timed by "
                    f"itself; make it an nn.Conv2d or nn.Linear, or take runtime onnxruntime"
                )
        return _TorchFamily(self, example, [layer.name for layer in layers])

    def prepare(self, network: nn.Module, example: torch.Tensor) -> Callable[[torch.Tensor], Any]:
        """The network as it is run."""
        return network

    def mark(self) -> Any:
        """A point in time."""
        return time.perf_counter()

    def elapsed(self, marks: Sequence[Any]) -> FloatArray:
        """Milliseconds between successive marks."""
        return np.diff(np.array(marks)) * 1e3


class TorchCuda(TorchEager):
    """Eager PyTorch on a GPU, timed with CUDA events."""

    name = "cuda"
    device = "cuda"

    def __init__(self, threads: int = 1) -> None:
        if not torch.cuda.is_available():
            raise RuntimeUnavailableError("runtime cuda: torch sees no GPU here; take onnxruntime or torch")
        super().__init__(threads)

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def elapsed(self, marks: Sequence[Any]) -> FloatArray:
        marks[-1].synchronize()
        return np.array([first.elapsed_time(second) for first, second in pairwise(marks)])


class TorchCompile(TorchEager):
    """`torch.compile` (inductor) on the CPU. It compiles for each network anew, tens of seconds for a large one.

    Compiled code shows nothing of its layers, so a table takes each layer's time from eager PyTorch, and the
    correction from whole compiled networks.
    """

    name = "torch.compile"
    folds_batchnorm = True
    profiles = False

    def prepare(self, network: nn.Module, example: torch.Tensor) -> Callable[[torch.Tensor], Any]:
        compiled = torch.compile(network)
        compiled(example)
        return compiled


class _TorchFamily(NetworkFamily):
    def __init__(self, runtime: TorchEager, example: torch.Tensor, layers: Sequence[str]) -> None:
        self._runtime, self._layers = runtime, layers
        self._example = example.to(runtime.device)

    def load(self, network: nn.Module) -> _Module:
        return _Module(self._runtime, network, self._example)

    def profile(self, network: nn.Module) -> _ProfiledModule:
        if not self._runtime.profiles:
            raise RuntimeUnavailableError(f"{self._runtime.name} times whole networks only, not their layers")
        return _ProfiledModule(self._runtime, network, self._example, self._layers)


class _Module:
    """One network in PyTorch."""

    def __init__(self, runtime: TorchEager, network: nn.Module, example: torch.Tensor) -> None:
        self._runtime, self._example = runtime, example
        network = network.to(runtime.device, memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]
        with torch_threads(runtime.threads), torch.inference_mode():
            self._forward = runtime.prepare(network, example)

    def run(self) -> float:
        with torch_threads(self._runtime.threads), torch.inference_mode():
            start = self._runtime.mark()
            self._forward(self._example)
            return float(self._runtime.elapsed([start, self._runtime.mark()])[0])


class _ProfiledModule(_Module, ProfiledNetwork):
    def __init__(self, runtime: TorchEager, network: nn.Module, example: torch.Tensor, layers: Sequence[str]) -> None:
        super().__init__(runtime, network, example)
        self._marks: list[Any] = []
        self._rows: list[FloatArray] = []
        self._layers = len(layers)
        modules = dict(network.named_modules())
        for name in dict.fromkeys(layers):
            modules[name].register_forward_pre_hook(self._enter)

    def run(self) -> float:
        with torch_threads(self._runtime.threads), torch.inference_mode():
            self._marks = [self._runtime.mark()]
            self._forward(self._example)
            marks = [self._marks[0], *self._marks[2:], self._runtime.mark()]  # what runs before the first layer is its
        if len(marks) != self._layers + 1:
            raise RuntimeUnavailableError(
                f"{self._runtime.name}: expected {self._layers} calls of layers, the network made {len(marks) - 1}"
            )
        row = self._runtime.elapsed(marks)
        self._rows.append(row)
        return float(row.sum())

    def layer_times(self) -> FloatArray:
        return np.array(self._rows)

    def _enter(self, *_: Any) -> None:
        self._marks.append(self._runtime.mark())
