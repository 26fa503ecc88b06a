"""Training that keeps what pruning made of a weight: zeros stay zero, and weights that share a value go on sharing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


def hold_pattern(weight: nn.Parameter, *, shared: bool) -> None:
    """From now on the gradient of a weight is zero where the weight is, and the same for all that share a value.

    Sharers get the mean of their gradients, which is the gradient step of each projected onto shared values; Deep
    Compression (arXiv 1510.00149, section 3.3) takes their sum, which is as many times as long as there are sharers.
    With an optimiser that treats all elements alike (SGD with momentum and weight decay) the pattern then stays, bit
    for bit. It is the weight at the time of this call that tells.

    Args:
        weight: of a layer.
        shared: whether equal non-zero weights share their value.
    """
    if not weight.requires_grad:
        return
    with torch.no_grad():
        if shared:
            weight.register_hook(_shared_gradient(weight))  # type: ignore[no-untyped-call]
        else:
            hold_zeros(weight, weight != 0)


def hold_zeros(weight: nn.Parameter, stays: torch.Tensor) -> RemovableHandle:
    """From now on the gradient of a weight is zero where it does not stay; what it is there, is for the caller to set.

    Args:
        weight: of a layer.
        stays: bool of its shape, on its device.

    Returns:
        What ends it.
    """
    gone = ~stays
    handle: RemovableHandle = weight.register_hook(lambda gradient: gradient.masked_fill(gone, 0.0))  # type: ignore[no-untyped-call]
    return handle


def _shared_gradient(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    stays = weight != 0
    values, codes, counts = torch.unique(weight, return_inverse=True, return_counts=True)

    def mean(gradient: torch.Tensor) -> torch.Tensor:
        sums = gradient.new_zeros(len(values)).index_add_(0, codes.reshape(-1), gradient.reshape(-1))
        means: torch.Tensor = (sums / counts)[codes]
        return means * stays

    return mean
