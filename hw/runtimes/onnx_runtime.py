"""onnxruntime on the CPU: what people deploy, and the default.

A network is exported once; the other members of its family take the same graph with their own weights, which is a
hundred times faster than exporting each and gives the same graph. Members are compared with torch until each weight
that changes was compared at another shape.

Layer times come from onnxruntime's own profiler, in the optimised graph, while the whole network runs: convolution,
activation and residual sum fused, layout changes counted where they happen, caches as the network leaves them.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hw.layers import LayerShape
from hw.runtimes.base import NetworkFamily, ProfiledNetwork, Runtime, RuntimeUnavailableError
from hw.timing import FloatArray

_INPUT = "images"
_LARGEST_DIFFERENCE = 1e-3  # between onnxruntime's and torch's outputs, relative to the largest
_AS_IT_IS = "the exported network does not do what it does in torch ({}); take runtime torch"
_CHANGED = (
    "a network with other channel counts cannot take the exported graph ({}): the graph holds channel numbers as "
    "constants. Use nn.Flatten or x.flatten(1) instead of a view with numbers, or runtime torch"
)


class OnnxRuntime(Runtime):
    """onnxruntime's CPU execution provider, all graph optimisations on, one session per network."""

    name = "onnxruntime"

    @property
    def pause(self) -> float:
        return 0.0 if self.threads == 1 else 0.003

    def family(self, network: nn.Module, example: torch.Tensor, layers: Sequence[LayerShape]) -> NetworkFamily:
        return _OnnxFamily(network, example, layers, self.threads)

    def versions(self) -> Mapping[str, str]:
        import onnxruntime

        return {"onnxruntime": onnxruntime.__version__, "torch": torch.__version__}


def onnx_model(network: nn.Module, example: torch.Tensor) -> Any:
    """A network, or a single convolution or linear layer, as an ONNX model with its weights, for `load_onnx`.

    Args:
        network: in evaluation mode.
        example: its input, as many images as each run takes.
    """
    return _layer_model(network, example) if type(network) in (nn.Linear, nn.Conv2d) else _export(network, example)


def load_onnx(model: Any, example: torch.Tensor, threads: int, *, int8: bool = False) -> Session:
    """A model in onnxruntime.

    Args:
        model: of `onnx_model`.
        example: its input.
        threads: of one run.
        int8: with weights of 8 bits, and activations quantised to 8 bits in each run ("dynamic quantisation").
    """
    if not int8:
        return Session(model.SerializeToString(), example, threads)
    from onnxruntime import quantization

    del model.graph.value_info[:]  # shapes of weights that the quantisation turns around
    with tempfile.TemporaryDirectory() as folder, _less_said():
        path = Path(folder) / "int8.onnx"
        quantization.quantize_dynamic(model, path, weight_type=quantization.QuantType.QUInt8)
        return Session(path.read_bytes(), example, threads)


def _layer_model(layer: Any, example: torch.Tensor) -> Any:
    """One operator, written down at once: the exporter takes a second for it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    parameters = [("weight", layer.weight), *([] if layer.bias is None else [("bias", layer.bias)])]
    names = [name for name, _ in parameters]
    if isinstance(layer, nn.Linear):
        node = helper.make_node("Gemm", [_INPUT, *names], ["y"], transB=1)
    else:
        node = helper.make_node(
            "Conv", [_INPUT, *names], ["y"], kernel_shape=layer.kernel_size, strides=layer.stride,
            pads=[*layer.padding, *layer.padding], dilations=layer.dilation, group=layer.groups,
        )  # fmt: skip
    shape = list(layer(example).shape)
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info(_INPUT, TensorProto.FLOAT, list(example.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.ascontiguousarray(tensor.detach().numpy()), name) for name, tensor in parameters],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


@contextlib.contextmanager
def _less_said() -> Iterator[None]:
    """Without the advice that onnxruntime's quantisation gives through the root logger."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


class _OnnxFamily(NetworkFamily):
    def __init__(self, network: nn.Module, example: torch.Tensor, layers: Sequence[LayerShape], threads: int) -> None:
        self._layers, self._threads = tuple(layers), threads
        self._example = example
        self._template = _export(_distinct(network), example)
        _free_reshapes(self._template)
        _name_by_layer(self._template, [f"{layer.name}.weight" for layer in layers])
        self._compared: set[str] | None = None  # weights of another shape than the template's, in members compared

    def load(self, network: nn.Module) -> Session:
        return Session(self._member(network), self._example, self._threads)

    def profile(self, network: nn.Module) -> _ProfiledSession:
        return _ProfiledSession(self._member(network), self._example, self._threads, len(self._layers))

    def _member(self, network: nn.Module) -> bytes:
        stored = network.state_dict()
        model = _with_weights(self._template, stored)
        changed = {
            weight.name
            for weight in self._template.graph.initializer
            if weight.name in stored and tuple(weight.dims) != tuple(stored[weight.name].shape)
        }
        if self._compared is None or not changed <= self._compared:
            difference = self._difference(model, network)
            if difference:
                raise RuntimeUnavailableError(f"onnxruntime: {_CHANGED if changed else _AS_IT_IS}".format(difference))
            self._compared = changed | (self._compared or set())
        return model

    def _difference(self, model: bytes, network: nn.Module) -> str:
        """In what the model does not do what the network does in torch; empty if it does."""
        from onnxruntime.capi import onnxruntime_pybind11_state as states

        try:
            actual = Session(model, self._example, self._threads).outputs()
        except (
            states.Fail, states.InvalidArgument, states.InvalidGraph, states.NotImplemented, states.RuntimeException,
        ) as error:  # fmt: skip
            return str(error)
        with torch.inference_mode():
            expected = network(self._example).numpy()
        same = actual.shape == expected.shape
        difference = float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-12)) if same else np.inf
        if difference <= _LARGEST_DIFFERENCE:
            return ""
        return f"outputs differ by {difference:.1e} of the largest, allowed {_LARGEST_DIFFERENCE:.0e}"


class Session:
    """One network in onnxruntime."""

    def __init__(self, model: bytes, example: torch.Tensor, threads: int, profile: Path | None = None) -> None:
        self._inputs = {_INPUT: example.numpy()}
        self._session = _session(model, threads, profile)

    def run(self) -> float:
        start = time.perf_counter()
        self.outputs()
        return (time.perf_counter() - start) * 1e3

    def outputs(self) -> NDArray[np.float32]:
        """Run once; returns the first output."""
        outputs: NDArray[np.float32] = self._session.run(None, self._inputs)[0]
        return outputs


class _ProfiledSession(Session, ProfiledNetwork):
    def __init__(self, model: bytes, example: torch.Tensor, threads: int, layers: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._layers = layers
        super().__init__(model, example, threads, Path(self._folder.name) / "profile")

    def layer_times(self) -> FloatArray:
        events = json.loads(Path(self._session.end_profiling()).read_text())
        self._folder.cleanup()
        return layer_times(events, self._layers)


def layer_times(events: Sequence[Mapping[str, Any]], layers: int) -> FloatArray:
    """Milliseconds per run and layer, float64 (runs, layers), from the events of onnxruntime's profiler.

    A node whose name does not tell its layer (a layout change) counts with the layer that ran before it.
    """
    runs = []
    current, layer = np.zeros(layers), 0
    for event in events:
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            named = re.search(r"\bL(\d+)_", event["name"])
            layer = int(named.group(1)) if named else layer
            current[layer] += event["dur"] / 1e3
        elif event["name"] == "model_run":
            runs.append(current)
            current, layer = np.zeros(layers), 0
    return np.array(runs)


def _session(model: bytes, threads: int, profile: Path | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _export(network: nn.Module, example: torch.Tensor) -> Any:
    import onnx

    with exporting_quietly(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        torch.onnx.export(
            network, (example,), path, dynamo=True, input_names=[_INPUT], external_data=False, verbose=False
        )
        return onnx.load(path)


def _distinct(network: nn.Module) -> nn.Module:
    """A copy with random weights: an exporter joins tensors that are equal and drops those that are zero."""
    network = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return network


def _name_by_layer(model: Any, weights: Sequence[str]) -> None:
    """Name each node and its output L<layer>_<node>, for the profiler reports fused nodes by one of these names.

    A node without weights belongs to the latest of the layers that lead to it.
    """
    unused = list(enumerate(weights))
    layer_of: dict[str, int] = {}
    renamed: dict[str, str] = {}
    outputs = {output.name for output in model.graph.output}
    for index, node in enumerate(model.graph.node):
        own = next((place for place, (_, name) in enumerate(unused) if name in node.input), None)
        if own is not None:
            layer = unused.pop(own)[0]
        else:
            layer = max((layer_of[name] for name in node.input if name in layer_of), default=0)
        node.name = f"L{layer}_{index}"
        for place, name in enumerate(node.output):
            layer_of[name] = layer
            if name not in outputs:
                renamed[name] = f"{node.name}_{place}"
    if unused:
        raise RuntimeUnavailableError(
            f"onnxruntime: the exported graph does not use the weight {unused[0][1]!r} where it was expected"
        )
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    del model.graph.value_info[:]


def _free_reshapes(model: Any) -> None:
    """Let every constant reshape fit other channel counts, as far as shapes tell.

    The dimensions up to the first that it changes are taken from its input; of the rest, the batch left out, the
    largest follows from the others: it holds channels.
    """
    from onnx import numpy_helper

    sizes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.value_info)
    }
    constants = {constant.name: numpy_helper.to_array(constant) for constant in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = constants[node.input[1]].copy()
        pairs = zip(shape.tolist(), sizes.get(node.input[0], ()), strict=False)
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        shape[:kept] = 0  # as in the input
        free = max(kept, 1) if len(shape) > 1 else kept
        if free < len(shape):
            shape[free + np.argmax(shape[free:])] = -1
        node.input[1] = f"{node.output[0]}_shape"  # reshapes of different inputs may share one constant
        model.graph.initializer.append(numpy_helper.from_array(shape, node.input[1]))
        del node.attribute[:]  # allowzero would make a 0 mean nothing at all


def _with_weights(template: Any, stored: Mapping[str, torch.Tensor]) -> bytes:
    """The template's graph with these tensors, serialised; a grouped convolution gets as many groups as fit."""
    from onnx import numpy_helper

    model = copy.deepcopy(template)
    ratio = {}
    for weight in model.graph.initializer:
        if weight.name in stored:
            values = np.ascontiguousarray(stored[weight.name].numpy())
            if values.ndim:
                ratio[weight.name] = (len(values), weight.dims[0])
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Conv" and attribute.name == "group" and attribute.i > 1 and node.input[1] in ratio:
                kept, dense = ratio[node.input[1]]
                attribute.i = attribute.i * kept // dense
    serialised: bytes = model.SerializeToString()
    return serialised


@contextlib.contextmanager
def exporting_quietly() -> Iterator[None]:
    """Around torch.onnx.export, which prints its progress and warns of its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
