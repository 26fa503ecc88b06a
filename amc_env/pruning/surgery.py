"""Removing channels for real: a plan of kept indices per tensor, which replays on a fresh copy of the network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from amc_env.pruning.graph import ChannelGraph, KeptUnits
from amc_env.pruning.trace import UntraceableNetworkError

#: JSON form of what to keep: {"version": 1, "tensors": {name: {dim: [indices]}}, "paddings": {module: [before, after]}}
PruningPlan = dict[str, Any]


def make_plan(graph: ChannelGraph, kept: KeptUnits) -> PruningPlan:
    """The plan by which each group keeps these units; tensors that stay whole are not named."""
    mask = graph.keep_mask(kept)
    tensors: dict[str, dict[str, list[int]]] = {}
    for part in graph.slices:
        stays = mask[part.units]
        if not stays.all():
            tensors.setdefault(part.tensor, {})[str(part.dim)] = np.flatnonzero(stays).tolist()
    paddings = {
        padding.module: [int(mask[padding.before].sum()), int(mask[padding.after].sum())] for padding in graph.paddings
    }
    return {"version": 1, "tensors": tensors, "paddings": paddings}


def apply_plan(network: nn.Module, plan: Mapping[str, Any]) -> nn.Module:
    """A new network with the planned channels only; `network` (as it was when the plan was made) is not changed.

    Raises:
        ValueError: the plan is of another version or names tensors or indices that the network does not have.
    """
    if plan.get("version") != 1:
        raise ValueError(f"expected a pruning plan of version 1, got {plan.get('version')!r}")
    stored = dict(network.state_dict(keep_vars=True))
    kept_tensors = {id(tensor): tensor for tensor in stored.values()}
    pruned = copy.deepcopy(network, dict(kept_tensors))  # shares the tensors, copies the modules
    modules = dict(pruned.named_modules())
    for name, tensor in stored.items():
        module, _, attribute = name.rpartition(".")
        with torch.no_grad():
            value = _gather(name, tensor.detach(), plan["tensors"].get(name, {}))
        if isinstance(tensor, nn.Parameter):
            value = nn.Parameter(value, requires_grad=tensor.requires_grad)
        setattr(modules[module], attribute, value)
    for name in plan["tensors"]:
        if name not in stored:
            raise ValueError(f"the plan prunes {name!r}, which the network does not have")
        _update_sizes(modules[name.rpartition(".")[0]])
    for name, (before, after) in plan["paddings"].items():
        modules[name].channel_padding = (before, after)
    return pruned


def prune_network(network: nn.Module, graph: ChannelGraph, kept: KeptUnits) -> nn.Module:
    """A new, thin network in which each group keeps these units."""
    return apply_plan(network, make_plan(graph, kept))


def mask_network(network: nn.Module, graph: ChannelGraph, kept: KeptUnits) -> nn.Module:
    """A full-width copy in which every layer ignores the removed channels: the reference for `prune_network`."""
    masked = copy.deepcopy(network)
    stored = masked.state_dict(keep_vars=True)
    mask = graph.keep_mask(kept)
    with torch.no_grad():
        for part in graph.slices:
            if part.consumes:
                gone = torch.from_numpy(np.flatnonzero(~mask[part.units]))
                stored[part.tensor].index_fill_(part.dim, gone.to(stored[part.tensor].device), 0.0)
    return masked


def check_surgery(network: nn.Module, graph: ChannelGraph, example: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Prune half of each group, and refuse a network whose thin form differs from its masked form.

    Raises:
        UntraceableNetworkError: the thin network fails or its output differs; its code counts on channel numbers.
    """
    kept = [np.arange(group.size)[:: 2 if group.size > 1 else 1] for group in graph.groups]
    with torch.no_grad():
        expected = _flat(mask_network(network, graph, kept)(example))
        try:
            actual = _flat(prune_network(network, graph, kept)(example))
        except RuntimeError as error:
            raise UntraceableNetworkError(
                f"the pruned network does not run, so its code must count on channel numbers: {error}"
            ) from error
    difference = float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
    if not difference <= tolerance:
        raise UntraceableNetworkError(
            f"removing channels does not equal masking them: outputs differ by {difference:.1e} of their largest value "
            f"(allowed {tolerance:.0e}), so the network uses its channels in a way that was not traced"
        )


def _flat(outputs: Any) -> torch.Tensor:
    """All numbers that the network returns, in whatever structure."""
    return torch.cat([leaf.reshape(-1) for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)])


def _gather(name: str, tensor: torch.Tensor, kept: Mapping[str, list[int]]) -> torch.Tensor:
    value = tensor.clone() if not kept else tensor
    for dim, indices in kept.items():
        if int(dim) >= tensor.ndim or not indices or max(indices) >= tensor.shape[int(dim)]:
            raise ValueError(f"the plan does not fit {name!r} of shape {tuple(tensor.shape)} in dimension {dim}")
        value = value.index_select(int(dim), torch.tensor(indices, device=tensor.device))
    return value


def _update_sizes(module: nn.Module) -> None:
    """Make a module's size attributes agree with its tensors."""
    if isinstance(module, nn.Conv2d):
        per_group = module.out_channels // module.groups
        grouped = module.groups > 1
        module.out_channels = module.weight.shape[0]
        module.groups = module.out_channels // per_group if grouped else 1
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
        module.num_features = len(module.running_mean)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
