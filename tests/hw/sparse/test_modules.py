"""Layers and networks: the same function as torch's, saved and loaded, and refused where they cannot be used."""

from __future__ import annotations

import copy
import io
from typing import TypeVar

import pytest
import torch
from torch import nn

from hw.sparse import (
    CHANNELS_LAST,
    DENSE,
    Case,
    KernelTable,
    Measured,
    SparseConv2d,
    SparseLinear,
    Window,
    sparsify,
)

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def pruned(layer: Layer, ratio: float) -> Layer:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight *= torch.rand(layer.weight.shape, generator=generator) >= ratio
    return layer


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            pruned(nn.Conv2d(3, 8, 3, 2, 1), 0.8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding="same")
        )
        self.unused = nn.Linear(4, 4)
        self.head = pruned(nn.Linear(8 * 36, 10, bias=False), 0.9)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.features(image).flatten(1))
        return scores


IMAGES = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
KERNELS = {"features.0": "conv", "head": "columns"}


@pytest.mark.parametrize("kernel", ["auto", "lanes", "columns", "panels"])
@pytest.mark.parametrize("shape", [(50,), (3, 50), (20, 50), (2, 9, 50), (0, 50)])
def test_linear(kernel: str, shape: tuple[int, ...]) -> None:
    layer = pruned(nn.Linear(50, 30), 0.7)
    sparse = SparseLinear.from_linear(layer, kernel=kernel)
    x = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(sparse(x), layer(x))


def test_convolution() -> None:
    layer = pruned(nn.Conv2d(4, 6, 3, 2, 1, groups=2), 0.7)
    sparse, x = SparseConv2d.from_conv(layer), torch.randn(2, 4, 9, 8)
    with torch.inference_mode():
        torch.testing.assert_close(sparse(x), layer(x))
        torch.testing.assert_close(sparse(x[0]), layer(x[0]))


def test_a_state_dict_of_other_non_zeros_is_loaded() -> None:
    layer = pruned(nn.Linear(50, 30), 0.7)
    sparse = SparseLinear.from_linear(layer)
    file = io.BytesIO()
    torch.save(sparse.state_dict(), file)
    file.seek(0)
    other, x = SparseLinear(50, 30).eval(), torch.randn(1, 50)
    assert not other(x).any()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), sparse(x))
    assert str(other) == f"SparseLinear(30x50, density={layer.weight.count_nonzero() / 1500:.3f}, threads=1)"


def test_damaged_weights_are_refused() -> None:
    sparse = SparseLinear(50, 30)
    state = sparse.state_dict() | {"indices": torch.tensor([50], dtype=torch.int32)}
    with pytest.raises(RuntimeError, match="expected a column for each value, got 0 values and 1 columns"):
        sparse.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: \"values\""):
        sparse.load_state_dict({})


def test_layers_do_not_train() -> None:
    sparse = SparseLinear(4, 2).train()
    with pytest.raises(RuntimeError, match="SparseLinear: expected evaluation mode, got training mode; it cannot be"):
        sparse(torch.zeros(4))
    sparse.eval()
    x = torch.zeros(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="SparseLinear: expected an input without gradient"):
        sparse(x)
    with torch.no_grad():
        assert sparse(x).shape == (2,)
    with pytest.raises(RuntimeError, match=r"expected float32 on the CPU, got torch\.float64 on cpu"):
        sparse(torch.zeros(4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"SparseLinear: expected 4 features at the last axis, got the shape \(5,\)"):
        sparse(torch.zeros(5))
    with pytest.raises(ValueError, match="kernel: expected one of auto, lanes, columns, panels, got 'fast'"):
        SparseLinear(4, 2, kernel="fast")
    with pytest.raises(ValueError, match="expected padding with zeros, in pixels, got 'zeros', 'same'"):
        SparseConv2d.from_conv(nn.Conv2d(2, 2, 3, padding="same"))
    assert SparseConv2d(2, 3, Window((3, 3))).eval()(torch.ones(1, 2, 5, 5)).shape == (1, 3, 3, 3)


def test_prescribed_kernels() -> None:
    network = Network().eval()
    done = sparsify(network, IMAGES, kernels=KERNELS)
    assert done.kernels == KERNELS
    assert isinstance(done.network.get_submodule("features.0"), SparseConv2d)
    assert isinstance(network.features[0], nn.Conv2d)
    with torch.inference_mode():
        torch.testing.assert_close(done.network(IMAGES), network(IMAGES))
    again = sparsify(Network(), IMAGES, kernels=done.kernels).network
    again.load_state_dict(done.network.state_dict())
    copied = copy.deepcopy(again)
    with torch.inference_mode():
        assert torch.equal(copied(IMAGES), done.network(IMAGES))


def test_a_network_that_is_one_layer() -> None:
    done = sparsify(pruned(nn.Linear(8, 4), 0.5), torch.zeros(1, 8), kernels={"": "lanes"})
    assert isinstance(done.network, SparseLinear)


@pytest.mark.parametrize(
    ("kernels", "message"),
    [
        ({"tail": "lanes"}, "kernels: expected names of convolutions and linear layers, got tail"),
        ({"head": "conv"}, "kernels: expected one of dense, lanes, columns, panels for 'head', got 'conv'"),
        ({"features.0": "lanes"}, "kernels: expected one of dense, conv for 'features.0', got 'lanes'"),
    ],
)
def test_unknown_kernels_are_refused(kernels: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sparsify(Network(), IMAGES, kernels=kernels)


def test_layers_are_measured_or_the_reason_given() -> None:
    table = KernelTable()
    done = sparsify(Network(), IMAGES, table=table)
    by_name = {layer.name: layer for layer in done.layers}
    assert set(by_name["head"].milliseconds) == {DENSE, "lanes", "columns", "panels"}
    assert set(by_name["features.0"].milliseconds) == {DENSE, CHANNELS_LAST, "conv"}
    assert by_name["features.2"].reason == "100% of its weights are not zero, tried up to 75%"
    assert by_name["unused"].reason == "the network does not call it"
    assert [entry.case.layer for entry in table.measured][1] == "linear 288 -> 10"
    for layer in done.layers:
        assert (layer.kernel == DENSE) != isinstance(
            done.network.get_submodule(layer.name), SparseLinear | SparseConv2d
        )


def case(density: float = 0.1, batch: int = 1) -> Case:
    return Case("linear 4 -> 2", density, 1.0, True, batch, 1)


def refuse() -> None:
    raise AssertionError("was called")


def test_a_known_case_is_not_measured_again() -> None:
    table = KernelTable([Measured(case(), {DENSE: 2.0, "lanes": 0.5})])
    measured = table.choose(case(0.105), {DENSE: refuse, "lanes": refuse})
    assert (measured.fastest, measured.gain) == ("lanes", 4.0)
    assert table.find(case(0.12)) is None
    assert table.find(case(batch=2)) is None
    new = table.choose(case(batch=2), {DENSE: lambda: None, "lanes": lambda: None})
    assert table.measured[1] == new


def test_a_case_with_a_new_kernel_is_measured_again() -> None:
    table = KernelTable([Measured(case(), {DENSE: 2.0})])
    new = table.choose(case(), {DENSE: lambda: None, "lanes": lambda: None})
    assert table.measured == [new]
    assert table.choose(case(), {DENSE: refuse, "lanes": refuse}) == new


def test_a_kernel_gains_on_the_faster_dense_layout() -> None:
    assert Measured(case(), {DENSE: 2.0, CHANNELS_LAST: 1.0, "conv": 0.5}).gain == 2.0
    assert Measured(case(), {DENSE: 1.0, CHANNELS_LAST: 2.0, "conv": 0.5}).gain == 2.0
    beaten = Measured(case(), {DENSE: 2.0, CHANNELS_LAST: 1.0, "conv": 1.5})
    assert (beaten.fastest, beaten.gain) == (CHANNELS_LAST, 1.0)
