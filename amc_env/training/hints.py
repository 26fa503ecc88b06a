"""Hints: what the blocks of a pruned network give is held against what the dense network's give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from amc_env.pruning.graph import is_block

#: dimension and indices of what is left of the outputs of blocks, by the blocks' names
KeptOfBlocks = Mapping[str, tuple[int, Sequence[int]]]

_LEAST = 1e-12  # instead of a sum of squares that is 0


class Hints:
    """How far the outputs of two networks' blocks are apart; within its context their forward passes are watched.

    A block is a module that is made of modules, the network itself left out. Those are compared that return one tensor,
    of the channels that are left. After FitNets (Romero et al., arXiv 1412.6550, section 2.2), which takes the squared
    error of one layer; here that of all blocks counts, relative to their size, and nothing has to be learnt to bring
    them to one shape.

    Args:
        network: that learns.
        teacher: of the same modules.
        kept: of the blocks of which the network returns less, the dimension and the indices that are left of what the
            teacher returns, as `ChannelGraph.kept_of_blocks` tells.
    """

    def __init__(self, network: nn.Module, teacher: nn.Module, kept: KeptOfBlocks | None = None) -> None:
        self._networks = network, teacher
        self._kept = kept or {}
        self._seen: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        for network, seen in zip(self._networks, self._seen, strict=True):
            for name, module in network.named_modules():
                if is_block(name, module):
                    self._hooks.append(module.register_forward_hook(partial(_note, seen, name)))

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def distance(self, outputs: torch.Tensor) -> torch.Tensor:
        """Squared error over the teacher's sum of squares, on average over the blocks, in the pass just made.

        Args:
            outputs: what the network returned; a block that returned the same tensor does not count.

        Raises:
            ValueError: there is no such block.
        """
        learnt, taught = self._seen
        counted = [outputs]  # the last block of a larger one gives what that gives
        errors = []
        for name, given in learnt.items():
            wanted = taught.get(name)
            if not isinstance(given, torch.Tensor) or not isinstance(wanted, torch.Tensor):
                continue
            if name in self._kept:
                dim, indices = self._kept[name]
                wanted = wanted.index_select(dim, torch.tensor(indices, device=wanted.device))
            if given.shape == wanted.shape and not any(given is other for other in counted):
                counted.append(given)
                squares = wanted.float().square().sum().clamp_min(_LEAST)
                errors.append((given.float() - wanted.float()).square().sum() / squares)
        learnt.clear()
        taught.clear()
        if not errors:
            raise ValueError(
                "fine-tuning: hints need a block, a module made of modules, that returns channels of the dense "
                "network's, and there is none; leave hints out"
            )
        return torch.stack(errors).mean()


def _note(seen: dict[str, Any], name: str, _module: nn.Module, _inputs: object, output: object) -> None:
    seen[name] = output
