"""Criteria: in which order the units of a group are removed. A plan of any width keeps a prefix of one fixed order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.pruning.graph import ChannelGraph, IntArray

Criterion = Literal["l1", "l2"]

_NORMS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {"l1": torch.abs, "l2": torch.square}


def importance(network: nn.Module, graph: ChannelGraph, criterion: Criterion = "l1") -> NDArray[np.float64]:
    """Magnitude of the filters that produce each unit, float64 (units,).

    "l1" sums |w|, "l2" sums w^2 over the filters of all convolutions and linear layers that produce the unit's
    channels (layers that meet in a residual sum count together).

    Raises:
        ValueError: the criterion is unknown.
    """
    if criterion not in _NORMS:
        raise ValueError(f"criterion: expected one of {', '.join(_NORMS)}, got {criterion!r}")
    stored = network.state_dict()
    total = np.zeros(sum(group.size for group in graph.groups) + 1)
    for part in graph.slices:
        weight = stored[part.tensor]
        if part.dim == 0 and weight.ndim > 1:
            norms = _NORMS[criterion](weight.double()).flatten(1).sum(dim=1)
            np.add.at(total, part.units, norms.numpy())
    return total[:-1]


def removal_order(network: nn.Module, graph: ChannelGraph, criterion: Criterion = "l1") -> list[IntArray]:
    """For each group its units from the most to the least important; of equals the first stays longer."""
    scores = importance(network, graph, criterion)
    return [
        np.argsort(-scores[group.first_unit : group.first_unit + group.size], kind="stable") for group in graph.groups
    ]
