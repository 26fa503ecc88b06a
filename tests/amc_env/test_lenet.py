"""The LeNets: the sizes that papers report, and networks that both kinds of problem can prune."""

from __future__ import annotations

import pytest
import torch

from amc_env import zoo
from amc_env.pruning.trace import trace_channels


@pytest.mark.parametrize(
    ("name", "parameters", "macs"), [("lenet-300-100", 266_610, 266_200), ("lenet-5", 431_080, 2_293_000)]
)
def test_sizes_are_those_of_the_papers(name: str, parameters: int, macs: int) -> None:
    """267 k and 431 k weights in table 1 of Deep Compression (arXiv 1510.00149)."""
    network = zoo.lenet(name).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    graph = trace_channels(network, torch.zeros(2, 1, 28, 28))
    assert sum(layer.macs for layer in graph.layers) == macs
    assert network(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


def test_unknown_names_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="lenet: expected one of lenet-300-100, lenet-5, got 'lenet'"):
        zoo.lenet("lenet")
    with pytest.raises(ValueError, match="classes: expected at least 1, got 0"):
        zoo.lenet("lenet-5", 0)
