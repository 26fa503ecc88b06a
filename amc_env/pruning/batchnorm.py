"""Batch norm of a pruned network: fresh running statistics, and folding into the convolutions for fast scoring."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def recalibrate_batchnorm(
    network: nn.Module, batches: Iterable[torch.Tensor], forward: Callable[[torch.Tensor], Any] | None = None
) -> None:
    """Replace the running mean and variance of every batch norm by their averages over the batches, in place.

    Each statistic is the mean over batches of the batch statistic, with every layer normalising by the statistics of
    the batch at hand, as in training (EagleEye, arXiv 2007.02491, section 3.3). No weight changes.

    Args:
        forward: runs the network on a batch; the network itself unless told.
    """
    run = network if forward is None else forward
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
        norm.train()
    with torch.no_grad():
        for batch in batches:
            run(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum


def correct_statistics(pruned: nn.Module, dense: nn.Module, recalibrated: nn.Module) -> None:
    """Make the renewed statistics of a pruned network relative to those of the dense one, in place.

    With s^2 = renewed variance / the dense network's renewed variance of a channel: var = s^2 * the dense variance, and
    mean = renewed mean + s * (dense mean - the dense network's renewed mean), which moves no channel that pruning has
    silenced.

    Args:
        pruned: after `recalibrate_batchnorm`.
        dense: with the statistics of its training.
        recalibrated: the dense network after `recalibrate_batchnorm` on the same images.
    """
    for name, norm in pruned.named_modules():
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not norm.track_running_stats:
            continue
        (mean, var), (dense_mean, dense_var), (renewed_mean, renewed_var) = (
            (one.get_buffer(f"{name}.running_mean"), one.get_buffer(f"{name}.running_var"))
            for one in (pruned, dense, recalibrated)
        )
        scale = torch.sqrt(var / (renewed_var + norm.eps))
        mean.add_(scale * (dense_mean - renewed_mean))
        var.copy_(scale.square() * dense_var)


def fold_batchnorm(network: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Fold batch norms into the convolutions before them, in place; the network's function stays (evaluation mode).

    Args:
        network: in evaluation mode.
        pairs: names of a convolution and of the batch norm that alone sees its output.
    """
    for convolution, norm in pairs:
        folded = fuse_conv_bn_eval(network.get_submodule(convolution), network.get_submodule(norm))  # type: ignore[arg-type,type-var]
        network.set_submodule(convolution, folded)
        network.set_submodule(norm, nn.Identity())
