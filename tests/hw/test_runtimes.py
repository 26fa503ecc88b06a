from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hw.host import RUNTIME_NAMES
from hw.layers import LayerShape
from hw.runtimes import RUNTIMES, RuntimeUnavailableError, find_runtime
from hw.runtimes.onnx_runtime import OnnxRuntime, layer_times
from hw.runtimes.torch_runtimes import TorchCompile, TorchEager
from tests.contracts.runtime_contract import EXAMPLE, Block, RuntimeContract, block_layers


class TestOnnxRuntime(RuntimeContract):
    runtime = OnnxRuntime()


class TestOnnxRuntimeTwoThreads(RuntimeContract):
    runtime = OnnxRuntime(2)


class TestTorchEager(RuntimeContract):
    runtime = TorchEager()


def test_the_names_are_those_of_the_runtimes() -> None:
    assert tuple(RUNTIMES) == RUNTIME_NAMES


def test_an_unknown_runtime_names_the_known_and_the_nearest() -> None:
    with pytest.raises(
        ValueError,
        match=r"expected one of onnxruntime, torch, torch.compile, cuda, got 'onxruntime'; did you mean 'onnxruntime'",
    ):
        find_runtime("onxruntime")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused() -> None:
    with pytest.raises(RuntimeUnavailableError, match="runtime cuda: torch sees no GPU here; take onnxr"):
        find_runtime("cuda")


class Viewing(nn.Module):
    """Counts on its number of channels in a way that an exported graph keeps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)
        self.channels = channels

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.conv(image) * torch.arange(self.channels).view(1, -1, 1, 1)
        return features


CONV = LayerShape("conv", "conv", 3, 16, input_size=(24, 24), output_size=(24, 24))


def test_a_graph_with_channel_numbers_in_it_is_refused() -> None:
    family = OnnxRuntime().family(Viewing(16).eval(), EXAMPLE, [CONV])
    family.load(Viewing(16).eval())
    with pytest.raises(RuntimeUnavailableError) as caught:
        family.load(Viewing(8).eval())
    said = str(caught.value)
    assert said.startswith(
        "onnxruntime: a network with other channel counts cannot take the exported graph ([ONNXRuntimeError] : "
    )
    assert said.endswith(
        "): the graph holds channel numbers as constants. Use nn.Flatten or x.flatten(1) instead of a view with "
        "numbers, or runtime torch"
    )


class Untold(nn.Module):
    """Does something else whenever it is exported."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.conv(image)
        return features * 2 if torch.compiler.is_exporting() else features


def test_a_graph_that_differs_as_it_is_is_not_laid_to_channel_numbers() -> None:
    family = OnnxRuntime().family(Untold().eval(), EXAMPLE, [CONV])
    with pytest.raises(
        RuntimeUnavailableError,
        match=r"^onnxruntime: the exported network does not do what it does in torch \(outputs differ by 1.0e\+00 "
        r"of the largest, allowed 1e-03\); take runtime torch$",
    ):
        family.load(Untold().eval())


class Places(nn.Module):
    """Turns its pixels into one dimension, which is larger than that of the channels."""

    def __init__(self, channels: int, wide: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1)
        self.next = nn.Conv1d(channels, wide, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.next(self.conv(image).flatten(2))
        return features


def test_pixels_that_become_one_dimension_leave_the_channels_free() -> None:
    family = OnnxRuntime().family(Places(16).eval(), EXAMPLE, [CONV])
    for channels in (16, 8, 5, 1):
        assert family.load(Places(channels).eval()).run() > 0


class Doubling(Viewing):
    """Is right at any number of channels of its first convolution, but not of its second."""

    def __init__(self, first: int, channels: int) -> None:
        super().__init__(channels)
        self.first, self.conv = nn.Conv2d(3, first, 1), nn.Conv2d(first, channels, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return super().forward(self.first(image))


def test_members_are_compared_until_each_weight_was_seen_at_another_shape() -> None:
    family = OnnxRuntime().family(Doubling(4, 16).eval(), EXAMPLE, [replace(CONV, name="first")])
    for first in (4, 2, 1):
        assert family.load(Doubling(first, 16).eval()).run() > 0
    with pytest.raises(RuntimeUnavailableError, match="cannot take the exported graph"):
        family.load(Doubling(4, 8).eval())


def test_a_layer_that_is_no_module_cannot_be_timed_in_torch() -> None:
    layers = [LayerShape("weight", "linear", 2, 2)]
    with pytest.raises(RuntimeUnavailableError, match="torch: the weights of layer 'weight' are no module's"):
        TorchEager().family(nn.Linear(2, 2), EXAMPLE, layers)


def test_a_layer_that_is_not_called_as_often_as_traced_is_refused() -> None:
    network = TorchEager().family(Block().eval(), EXAMPLE, block_layers()[:3]).profile(Block().eval())
    assert network.run() > 0
    layers = [*block_layers(), block_layers()[0]]
    network = TorchEager().family(Block().eval(), EXAMPLE, layers).profile(Block().eval())
    with pytest.raises(RuntimeUnavailableError, match="torch: expected 6 calls of layers, the network made 5"):
        network.run()


def test_threads_are_put_back() -> None:
    torch.set_num_threads(1)
    TorchEager(2).family(Block().eval(), EXAMPLE, block_layers()).load(Block().eval()).run()
    assert torch.get_num_threads() == 1


def test_times_of_a_profile_go_to_the_layers_of_the_names() -> None:
    def node(name: str, microseconds: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds}

    run: dict[str, object] = {"cat": "Session", "name": "model_run", "dur": 999}
    events = [
        node("L0_0", 5), node("L1_3_0_nchwc", 7), node("ReorderOutput", 2), node("fused L1_4", 1), node("L2_5", 4), run,
        node("ReorderInput", 1), node("L0_0", 6), node("L2_5", 3), run,
    ]  # fmt: skip
    assert layer_times(events, 3) == pytest.approx(np.array([[0.005, 0.01, 0.004], [0.007, 0.0, 0.003]]))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_networks_are_timed_whole() -> None:
    """Not the whole contract: compiling takes seconds for each network."""
    runtime = TorchCompile()
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    layers = [LayerShape("0", "conv", 3, 4, input_size=(24, 24), output_size=(24, 24))]
    family = runtime.family(network, EXAMPLE, layers)
    assert 0 < family.load(network).run() < 60_000
    with pytest.raises(RuntimeUnavailableError, match=r"torch\.compile times whole networks only, not their layers"):
        family.profile(network)
