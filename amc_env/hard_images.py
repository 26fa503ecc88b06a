"""The images of a split that tell pruned networks apart: on most, every pruned network does what the dense one does.

Of ResNet-56 at half its MACs, 400 of 1,500 images hold 98 % of the divergence from the dense network, and the same 400
whatever the plan: the sum over those on which one plan diverges most correlates at 0.995 with the sum over all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from amc_env.objectives import Batch, KnownImages, Objective, find_objective, is_classification
from amc_env.pruning.graph import IntArray


@dataclass(frozen=True)
class HardImages:
    """What a search runs pruned networks on.

    Attributes:
        chosen: int64 (count,), ascending indices into the split.
        rest: the other images, as the reference network does on them.
    """

    chosen: IntArray
    rest: KnownImages


def choose_hard_images(
    network: Callable[[torch.Tensor], Any],
    batches: Iterable[Batch],
    dense_outputs: Iterable[Any],
    objective: Objective,
    count: int,
) -> HardImages:
    """The `count` images on which a reference network diverges most from the dense one (KL of the softmaxes).

    Args:
        network: of a typical plan at the budget.
        batches: all images and labels of the split.
        dense_outputs: of the dense network on the same batches: logits.
        objective: gives the errors of the rest.
        count: images to choose, fewer than there are.

    Raises:
        ValueError: the outputs are not logits, or the errors not as the objective needs them.
    """
    moved, errors, correct, classifies = [], [], [], True
    divergence = find_objective("agreement")
    with torch.inference_mode():
        for (images, given), dense in zip(batches, dense_outputs, strict=True):
            labels = torch.as_tensor(given, device=images.device)
            outputs = network(images)
            moved.append(divergence.errors(outputs, labels, dense))
            errors.append(objective.errors(outputs, labels, dense))
            classifies = classifies and is_classification(outputs, labels)
            correct.append(outputs.argmax(dim=1) == labels if classifies else torch.zeros(len(labels)))
    order = torch.cat(moved).argsort(descending=True, stable=True)
    rest = order[count:]
    right = int(torch.cat(correct)[rest].sum()) if classifies else None
    known = KnownImages(len(rest), float(torch.cat(errors)[rest].sum()), right)
    return HardImages(np.sort(order[:count].cpu().numpy()), known)
