"""Geometry and cost of single layers, against hand counts."""

from __future__ import annotations

import pytest

from hw import LayerShape


def test_counts_macs_of_a_convolution_by_hand() -> None:
    # MobileNet-V1's first layer: 112 * 112 positions, 32 filters of 3 * 3 * 3
    layer = LayerShape("features.0", "conv", 3, 32, (3, 3), (2, 2), input_size=(224, 224), output_size=(112, 112))
    assert layer.macs == 112 * 112 * 32 * 27 == 10_838_016
    assert layer.weights == 32 * 27


def test_a_depthwise_convolution_sees_one_input_per_output() -> None:
    layer = LayerShape("dw", "conv", 32, 32, (3, 3), groups=32, output_size=(112, 112), bias=True)
    assert layer.macs == 112 * 112 * 32 * 9
    assert layer.weights == 32 * 9 + 32


@pytest.mark.parametrize(("op", "weights"), [("norm", 2 * 16), ("scale", 16)])
def test_per_channel_layers_hold_weights_but_no_macs(op: str, weights: int) -> None:
    layer = LayerShape("bn", op, 16, 16, output_size=(8, 8))  # type: ignore[arg-type]
    assert (layer.macs, layer.weights) == (0, weights)


def test_a_second_call_costs_macs_but_no_weights() -> None:
    layer = LayerShape("shared", "linear", 10, 5, bias=True, owns_weights=False)
    assert (layer.macs, layer.weights) == (50, 0)


def test_a_grouped_convolution_loses_whole_groups() -> None:
    layer = LayerShape("conv", "conv", 32, 64, (3, 3), groups=4)
    pruned = layer.pruned(24, 48)
    assert (pruned.groups, pruned.in_channels, pruned.out_channels) == (3, 24, 48)
    assert pruned.weights * 4 == layer.weights * 3
    with pytest.raises(ValueError, match="layer 'conv': a convolution of 4 groups keeps whole groups, got 20 of 32"):
        layer.pruned(20, 48)
    with pytest.raises(ValueError, match="keeps whole groups"):
        layer.pruned(24, 32)


def test_refuses_shapes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="3 groups do not divide 32 input and 64 output channels"):
        LayerShape("conv", "conv", 32, 64, groups=3)
    with pytest.raises(ValueError, match="channels and groups must be at least 1, got 0 in"):
        LayerShape("conv", "conv", 0, 64)
    with pytest.raises(ValueError, match=r"expected 1..8 kept inputs and 1..8 kept outputs, got 0 and 8"):
        LayerShape("conv", "conv", 8, 8).pruned(0, 8)
