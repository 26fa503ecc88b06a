"""Criteria: in which order the units of a group are removed. A plan of any width keeps a prefix of one fixed order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.pruning.calibration import Calibration
from amc_env.pruning.consumers import consumer, find_layers, readers
from amc_env.pruning.graph import ChannelGraph, ChannelGroup, IntArray
from amc_env.pruning.least_squares import Consumer, greedy_order, output_energy

Criterion = Literal["l1", "l2", "input_l1", "energy", "obs"]
CRITERIA: tuple[Criterion, ...] = ("l1", "l2", "input_l1", "energy", "obs")

_NORMS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "l1": torch.abs,
    "l2": torch.square,
    "input_l1": torch.abs,
}


def importance(network: nn.Module, graph: ChannelGraph, criterion: Criterion = "l1") -> NDArray[np.float64]:
    """Magnitude of the weights of each unit, float64 (units,).

    "l1" sums |w|, "l2" sums w^2 over the filters of all convolutions and linear layers that produce the unit's
    channels (layers that meet in a residual sum count together; Li et al., arXiv 1608.08710, section 3.1). "input_l1"
    sums |w| over the weights that read them, as the published code of [AMC] does.

    Raises:
        ValueError: the criterion is unknown.
    """
    if criterion not in _NORMS:
        known = ", ".join(_NORMS)
        raise ValueError(f"criterion: expected one of {known}, got {criterion!r}")
    stored = network.state_dict()
    total = np.zeros(sum(group.size for group in graph.groups) + 1)
    wanted_dim = 1 if criterion == "input_l1" else 0
    for part in graph.slices:
        weight = stored[part.tensor]
        if part.dim == wanted_dim and weight.ndim > 1:
            norms = _NORMS[criterion](weight.double()).transpose(0, wanted_dim).flatten(1).sum(dim=1)
            np.add.at(total, part.units, norms.cpu().numpy())
    return total[:-1]


def needs_calibration(criterion: Criterion) -> bool:
    """Whether the order depends on the network's activations."""
    return criterion not in _NORMS


def removal_order(
    network: nn.Module, graph: ChannelGraph, criterion: Criterion = "l1", calibration: Calibration | None = None
) -> list[IntArray]:
    """For each group its units from the last to the first removed; of equals the first stays longer.

    "l1", "l2" and "input_l1" order by `importance`; "energy" by the variance that a unit brings to the outputs of the
    layers that read it; "obs" removes greedily the unit whose loss of reconstruction is least (`greedy_order`). A group
    that no layer reads is ordered by "l2".

    Args:
        calibration: of the layers that read groups; needed by "energy" and "obs".

    Raises:
        ValueError: the criterion is unknown, or needs a calibration that is not given.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion: expected one of {', '.join(CRITERIA)}, got {criterion!r}")
    scores = importance(network, graph, criterion if criterion in _NORMS else "l2")
    orders = [
        np.argsort(-scores[group.first_unit : group.first_unit + group.size], kind="stable") for group in graph.groups
    ]
    if not needs_calibration(criterion):
        return orders
    if calibration is None:
        raise ValueError(f"criterion {criterion!r}: needs a calibration, got None")
    for index, group in enumerate(graph.groups):
        if readers(find_layers(graph), group):
            compute = partial(_by_outputs, network, graph, group, criterion, calibration)
            orders[index] = calibration.remember_order(f"{criterion}-{group.name}", compute)
    return orders


def _by_outputs(
    network: nn.Module, graph: ChannelGraph, group: ChannelGroup, criterion: Criterion, calibration: Calibration
) -> IntArray:
    """The order of one group by what it does to the outputs of the layers that read it."""
    consumers: list[tuple[Consumer, IntArray]] = [
        (consumer(network, layer, calibration.moments(layer.name)), layer.unit_columns(group))
        for layer in readers(find_layers(graph), group)
    ]
    if criterion == "obs":
        return greedy_order(consumers)
    return np.argsort(-output_energy(consumers).numpy(), kind="stable")
