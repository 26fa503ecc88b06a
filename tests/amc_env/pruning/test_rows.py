"""Rows against torch's unfold, and against what the layer itself puts out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from amc_env.pruning.layer_calls import LayerCall, LayerWatcher
from amc_env.pruning.rows import sample_rows

ALL = 10**9  # rows: more than any layer here has


class Calls(LayerWatcher):  # type: ignore[no-untyped-call]
    """Keeps the calls of all layers, and their outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.calls: list[LayerCall] = []
        self.outputs: list[torch.Tensor] = []

    def after_operation(self, operation: str, call: LayerCall | None, args: Any, result: Any) -> None:
        if call is not None:
            self.calls.append(call)
            self.outputs.append(result)


def watch(network: nn.Module, images: torch.Tensor) -> tuple[list[LayerCall], list[torch.Tensor]]:
    with torch.no_grad(), Calls(network) as calls:
        network(images)
    return calls.calls, calls.outputs


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, torch.Tensor]:
    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    kernel, stride, padding, dilation = pair(1, 3), pair(1, 3), pair(0, 2), pair(1, 2)
    groups = draw(st.sampled_from([1, 2, 4]))
    per_group = draw(st.integers(1, 2))
    conv = nn.Conv2d(groups * per_group, 4, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))
    with torch.no_grad():
        for index, parameter in enumerate(conv.parameters()):
            parameter.copy_(seeded(*parameter.shape, seed=index))
    size = (draw(st.integers(5, 7)), draw(st.integers(5, 7)))
    return conv, seeded(draw(st.integers(1, 3)), conv.in_channels, *size, seed=9)


@settings(max_examples=60)
@given(convolutions(), st.integers(1, 60), st.booleans())
def test_rows_are_the_columns_of_unfold_and_give_the_outputs(
    case: tuple[nn.Conv2d, torch.Tensor], rows: int, channels_last: bool
) -> None:
    conv, images = case
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    (call,), (output,) = watch(conv, images)
    sample = sample_rows(call, rows, torch.Generator().manual_seed(3))
    inputs = sample.gather_inputs(images)
    taps = conv.kernel_size[0] * conv.kernel_size[1]
    assert inputs.shape == (min(rows, output.numel() // 4), taps, conv.in_channels)
    assert len(set(sample.outputs.tolist())) == len(sample.outputs)
    unfolded = F.unfold(images, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # type: ignore[arg-type]
    unfolded = unfolded.reshape(len(images), conv.in_channels, taps, -1).permute(0, 3, 2, 1).flatten(0, 1)
    assert torch.equal(inputs, unfolded[sample.outputs])
    per_group = conv.in_channels // conv.groups
    grouped = inputs.reshape(len(inputs), taps, conv.groups, per_group)
    weight = conv.weight.detach().reshape(conv.groups, 4 // conv.groups, per_group, taps)
    product = torch.einsum("rtgi,goit->rgo", grouped, weight).flatten(1)
    bias = 0.0 if conv.bias is None else conv.bias.detach()
    torch.testing.assert_close(sample.gather_outputs(output), product + bias, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5)], ids=["rows", "tokens"])
def test_rows_of_linear_layers(*, shape: tuple[int, ...], bias: bool) -> None:
    linear, features = nn.Linear(5, 3, bias=bias), seeded(*shape)
    (call,), (output,) = watch(linear, features)
    assert call.linear
    sample = sample_rows(call, 4, torch.Generator().manual_seed(0))
    inputs = sample.gather_inputs(call.image)
    assert inputs.shape == (4, 1, 5)
    expected = linear(inputs.squeeze(1)).detach()
    torch.testing.assert_close(sample.gather_outputs(output.reshape(-1, 3)), expected)
    assert torch.equal(inputs.squeeze(1), features.reshape(-1, 5)[sample.outputs])


def test_same_seed_draws_the_same_rows_and_all_of_them_in_order_if_they_are_few() -> None:
    conv = nn.Conv2d(2, 3, 3, padding=1)
    (call,), _ = watch(conv, seeded(2, 2, 4, 4))
    draws = [sample_rows(call, 5, torch.Generator().manual_seed(7)).outputs.tolist() for _ in range(2)]
    assert draws[0] == draws[1] == sorted(draws[0])
    assert sample_rows(call, ALL, torch.Generator()).outputs.tolist() == list(range(32))


def test_the_watcher_tells_layers_apart_and_numbers_all_operations() -> None:
    first, second = nn.Conv2d(2, 3, 1), nn.Linear(3 * 16, 2)
    network = nn.Sequential(first, nn.ReLU(), nn.Flatten(), second)
    images = seeded(2, 2, 4, 4)
    with torch.no_grad(), Calls(network) as watcher:
        network(images)
    assert [(call.name, call.linear, call.images) for call in watcher.calls] == [("0", False, 2), ("3", True, 2)]
    assert watcher.calls[0].weight is first.weight
    assert watcher.calls[1].weight is second.weight
    assert watcher.index + 1 == len(watcher.operations)
    assert watcher.operations[0] == "convolution"
    assert watcher.operations[-1] == "addmm"
