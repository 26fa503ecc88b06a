"""What every runtime must do. A test inherits it in one line: `class TestMine(RuntimeContract): runtime = Mine()`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from hw.layers import LayerShape
from hw.runtimes.base import NetworkFamily, Runtime, RuntimeUnavailableError


class Block(nn.Module):
    """A residual block between two other layers: a sum, a depthwise convolution, pooling and a linear layer."""

    def __init__(self, inner: int = 8, outer: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, outer, 3, padding=1)
        self.narrow = nn.Conv2d(outer, inner, 1)
        self.depthwise = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.wide = nn.Conv2d(inner, outer, 1)
        self.head = nn.Linear(outer, 5)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        stem = self.stem(image).relu()
        features = stem + self.wide(self.depthwise(self.narrow(stem).relu()).clamp(0, 6))
        logits: torch.Tensor = self.head(torch.flatten(features.relu().mean((2, 3)), 1))
        return logits


def block_layers(inner: int = 8, outer: int = 16) -> list[LayerShape]:
    """The layers of a `Block`, in the order in which they run."""

    def layer(name: str, ins: int, outs: int, kernel: int = 1, groups: int = 1) -> LayerShape:
        return LayerShape(
            name, "conv", ins, outs, (kernel, kernel), padding=(kernel // 2, kernel // 2), groups=groups,
            input_size=(24, 24), output_size=(24, 24),
        )  # fmt: skip

    return [
        layer("stem", 3, outer, 3),
        layer("narrow", outer, inner),
        layer("depthwise", inner, inner, 3, inner),
        layer("wide", inner, outer),
        LayerShape("head", "linear", outer, 5),
    ]


EXAMPLE = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))


class RuntimeContract:
    """Inherit and set `runtime`."""

    runtime: ClassVar[Runtime]

    @pytest.fixture(scope="class")
    @classmethod
    def family(cls) -> NetworkFamily:
        return cls.runtime.family(Block().eval(), EXAMPLE, block_layers())

    def test_times_a_network(self, family: NetworkFamily) -> None:
        network = family.load(Block().eval())
        assert all(0 < network.run() < 60_000 for _ in range(3))

    def test_times_members_of_other_widths(self, family: NetworkFamily) -> None:
        for inner, outer in ((4, 16), (8, 12), (1, 1)):
            assert family.load(Block(inner, outer).eval()).run() > 0

    def test_times_a_single_layer_and_a_block_of_layers(self) -> None:
        layer, features = nn.Conv2d(4, 6, 3).eval(), torch.rand(1, 4, 10, 10)
        shape = LayerShape("0", "conv", 4, 6, (3, 3), input_size=(10, 10), output_size=(8, 8))
        network = nn.Sequential(layer).eval()
        assert self.runtime.family(network, features, [shape]).load(network).run() > 0
        block = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(6, 2, 1)).eval()
        after = LayerShape("2", "conv", 6, 2, input_size=(8, 8), output_size=(8, 8))
        assert self.runtime.family(block, features, [shape, after]).load(block).run() > 0

    def test_torch_keeps_its_number_of_threads(self, family: NetworkFamily) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(before + 1)
        try:
            family.load(Block().eval()).run()
            assert torch.get_num_threads() == before + 1
        finally:
            torch.set_num_threads(before)

    def test_a_network_is_not_changed(self, family: NetworkFamily) -> None:
        network = Block().eval()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        family.load(network).run()
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

    def test_layer_times_are_of_each_run_and_lie_within_it(self, family: NetworkFamily) -> None:
        if not self.runtime.profiles:
            with pytest.raises(RuntimeUnavailableError, match="times whole networks only, not their layers"):
                family.profile(Block().eval())
            return
        network = family.profile(Block(4, 16).eval())
        totals = np.array([network.run() for _ in range(6)])
        times = network.layer_times()
        assert times.shape == (6, 5)
        assert (times >= 0).all()
        assert (times.sum(axis=1) <= totals + 0.05).all()
        assert (times.mean(axis=0) > 0).all()

    def test_names_its_libraries(self) -> None:
        versions = self.runtime.versions()
        assert versions
        assert all(version[0].isdigit() for version in versions.values())
