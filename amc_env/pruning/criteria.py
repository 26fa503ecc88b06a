"""Criteria: in which order the units of a group are removed. A plan of any width keeps a prefix of one fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.pruning.calibration import Calibration
from amc_env.pruning.consumers import Layer, consumer, find_layers, readers
from amc_env.pruning.gradients import LabelledBatch
from amc_env.pruning.graph import ChannelGraph, ChannelGroup, IntArray
from amc_env.pruning.least_squares import Consumer, greedy_order, output_energy
from amc_env.pruning.saliency import Saliency, SaliencySettings, check_criterion, filter_scores

Criterion = Literal["input_l1", "energy", "obs", Saliency]
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)

_NORMS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "l1": torch.abs,
    "l2": torch.square,
    "input_l1": torch.abs,
}


def importance(
    network: nn.Module,
    graph: ChannelGraph,
    criterion: Criterion = "l1",
    batches: Iterable[LabelledBatch] | None = None,
    settings: SaliencySettings = SaliencySettings(),
    groups: Sequence[ChannelGroup] | None = None,
) -> NDArray[np.float64]:
    """How much each unit matters, float64 (units,): the sum over the filters that produce the unit's channels.

    "l1" sums |w|, "l2" sums w^2 over the filters of all convolutions and linear layers that produce the unit's
    channels (layers that meet in a residual sum count together; Li et al., arXiv 1608.08710, section 3.1). "input_l1"
    sums |w| over the weights that read them, as the published code of [AMC] does. The others sum `filter_scores`.

    Args:
        network: in evaluation mode.
        graph: its channels.
        criterion: any but "energy" and "obs", which order one group by what it does to the layers that read it.
        batches: images and labels, where the criterion needs them.
        settings: what else it reads.
        groups: whose layers have to have what the criterion needs, say a batch norm; None: of all groups. The scores of
            other groups mean nothing.

    Raises:
        ValueError: the criterion is unknown or none of these, or as of `filter_scores`.
    """
    check_criterion(criterion, CRITERIA)
    if needs_calibration(criterion):
        raise ValueError(
            f"criterion {criterion!r}: orders the units of a group by what their removal does to the layers that read "
            f"it, and gives no scores that compare between groups; take another, or the agent reconstruction"
        )
    total = np.zeros(sum(group.size for group in graph.groups) + 1)  # the last one gathers what always stays
    if criterion not in _NORMS:
        layers = _producers(graph, graph.groups if groups is None else groups)
        names, norms = [layer.name for layer in layers], dict(graph.foldable)
        scores = filter_scores(network, names, criterion, batches, norms=norms, settings=settings)  # type: ignore[arg-type]
        for layer in layers:
            np.add.at(total, layer.outputs, scores[layer.name].cpu().numpy())
        return total[:-1]
    stored = network.state_dict()
    wanted_dim = 1 if criterion == "input_l1" else 0
    for part in graph.slices:
        weight = stored[part.tensor]
        if part.dim == wanted_dim and weight.ndim > 1:
            norms_of = _NORMS[criterion](weight.double()).transpose(0, wanted_dim).flatten(1).sum(dim=1)
            np.add.at(total, part.units, norms_of.cpu().numpy())
    return total[:-1]


def _producers(graph: ChannelGraph, groups: Sequence[ChannelGroup]) -> list[Layer]:
    """The layers that produce channels of these groups."""
    units = np.concatenate([np.arange(group.first_unit, group.first_unit + group.size) for group in groups])
    return [layer for layer in find_layers(graph).values() if np.isin(layer.outputs, units).any()]


def needs_calibration(criterion: Criterion) -> bool:
    """Whether the order depends on the moments of the layers' inputs."""
    return criterion in ("energy", "obs")


def removal_order(
    network: nn.Module,
    graph: ChannelGraph,
    criterion: Criterion = "l1",
    calibration: Calibration | None = None,
    scores: NDArray[np.float64] | None = None,
) -> list[IntArray]:
    """For each group its units from the last to the first removed; of equals the first stays longer.

    "energy" orders by the variance that a unit brings to the outputs of the layers that read it; "obs" removes greedily
    the unit whose loss of reconstruction is least (`greedy_order`); a group that no layer reads is ordered by "l2". All
    others order by `importance`.

    Args:
        network, graph: as of `importance`.
        criterion: which.
        calibration: of the layers that read groups; needed by "energy" and "obs".
        scores: as of `importance`, where they are known already.

    Raises:
        ValueError: the criterion is unknown or misses what it needs.
    """
    check_criterion(criterion, CRITERIA)
    if scores is None:
        scores = importance(network, graph, "l2" if needs_calibration(criterion) else criterion)
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
