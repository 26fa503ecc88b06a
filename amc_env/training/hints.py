"""Hints: what the blocks of a pruned network give is held against what the dense network's give."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

_LEAST = 1e-12  # instead of a sum of squares that is 0


class Hints:
    """How far the outputs of two networks' blocks are apart; within its context their forward passes are watched.

    A block is a module that is made of modules, the network itself left out. Those are compared whose outputs are
    tensors of one shape in both networks: where the residual sums keep all channels, every residual block. After
    FitNets (Romero et al., arXiv 1412.6550, section 2.2), which takes the squared error of one layer; here that of all
    blocks counts, relative to their size, and nothing has to be learnt to bring them to one shape.
    """

    def __init__(self, network: nn.Module, teacher: nn.Module) -> None:
        self._networks = network, teacher
        self._seen: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> None:
        for network, seen in zip(self._networks, self._seen, strict=True):
            for name, module in network.named_modules():
                if name and any(True for _ in module.children()):
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
            if given.shape == wanted.shape and not any(given is other for other in counted):
                counted.append(given)
                squares = wanted.float().square().sum().clamp_min(_LEAST)
                errors.append((given.float() - wanted.float()).square().sum() / squares)
        learnt.clear()
        taught.clear()
        if not errors:
            raise ValueError(
                "fine-tuning: hints need a block, a module made of modules, whose outputs have the dense network's "
                "shape, and there is none; leave hints out"
            )
        return torch.stack(errors).mean()


def _note(seen: dict[str, Any], name: str, _module: nn.Module, _inputs: object, output: object) -> None:
    seen[name] = output
