"""What sparse layers compete with: each computes the layer's own function, and is there only where it can."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hw.sparse.peers import CSR, DENSE, INT8, best_of, peers, with_csr

LAYERS = [
    nn.Linear(20, 7),
    nn.Linear(20, 7, bias=False),
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2), bias=False),
    nn.Conv2d(4, 6, 1),
]


def an_input(layer: nn.Module, batch: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, 20) if isinstance(layer, nn.Linear) else torch.randn(batch, 4, 9, 8)


def thin(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        layer.weight *= torch.rand_like(layer.weight) < 0.3  # type: ignore[operator, arg-type]
    return layer.eval()


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_csr_is_the_same_function(layer: nn.Module, batch: int) -> None:
    x = an_input(thin(layer), batch)
    with torch.inference_mode():
        torch.testing.assert_close(with_csr(layer)(x), layer(x), rtol=1e-5, atol=1e-6)


def test_csr_takes_the_layers_inside_a_network_and_leaves_grouped_ones() -> None:
    network = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Sequential(nn.Conv2d(4, 6, 3)), nn.Flatten()).eval()
    x = an_input(network[0], 2)
    replaced = with_csr(network)
    assert [type(module).__name__ for module in replaced.modules()] == [
        "Sequential", "Conv2d", "Sequential", "CsrLayer", "Conv2d", "Flatten",
    ]  # fmt: skip
    with torch.inference_mode():
        torch.testing.assert_close(replaced(x), network(x), rtol=1e-5, atol=1e-6)
    assert isinstance(network[1][0], nn.Conv2d)  # type: ignore[index]


@pytest.mark.parametrize("padding", [{"padding": 1, "padding_mode": "reflect"}, {"padding": "same"}], ids=str)
def test_csr_leaves_convolutions_that_do_not_pad_with_so_many_zeros(padding: dict[str, Any]) -> None:
    network = nn.Sequential(nn.Conv2d(4, 6, 3, **padding)).eval()
    x = an_input(network[0], 2)
    replaced = with_csr(network)
    assert type(replaced[0]) is nn.Conv2d  # type: ignore[index]
    with torch.inference_mode():
        torch.testing.assert_close(replaced(x), network(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[2]], ids=str)
def test_every_peer_computes_the_layer(layer: nn.Module) -> None:
    x = an_input(thin(layer), 2)
    with torch.inference_mode():
        expected = layer(x)
    calls = peers(layer, x, threads=1)
    images = set() if isinstance(layer, nn.Linear) else {"torch, channels last"}
    assert set(calls) == {"torch", "onnxruntime", INT8, CSR} | images
    for name, call in calls.items():
        tolerance = 0.03 if name == INT8 else 1e-5  # 8 bits: a 256th of the range, of weights and of activations
        difference = (torch.as_tensor(call()) - expected).abs().max() / expected.abs().max()
        assert difference < tolerance, name


def test_the_best_of_some_is_the_fastest_that_was_timed() -> None:
    times = {"torch": 3.0, "onnxruntime": 2.0, CSR: 1.0}
    assert best_of(times, DENSE) == "onnxruntime"
    assert best_of(times, (CSR,)) == CSR
    assert best_of(times, (INT8,)) is None
