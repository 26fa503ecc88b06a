"""The pruning problem of a trained network: prune, recalibrate batch norm, score on the search split."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.problem import ChannelMap, Decision, PruningProblem, RewardForm, Score, Widths
from amc_env.pruning.batchnorm import fold_batchnorm, recalibrate_batchnorm
from amc_env.pruning.criteria import removal_order
from amc_env.pruning.graph import ChannelGraph, ChannelGroup, IntArray
from amc_env.pruning.surgery import PruningPlan, apply_plan, check_surgery, make_plan
from amc_env.pruning.trace import trace_channels
from amc_env.settings import EvaluationSettings, PruningSettings
from amc_env.splits import DataSplits, Split
from hw.cost import CostModel

SplitName = Literal["search", "test"]
# Images of about so many pixels go through the network at once, and at least so many images.
_CALIBRATION_BATCH = (250 * 32 * 32, 50)  # the statistics of each batch must mean something
_SCORED_BATCH = (100 * 32 * 32, 1)  # small feature maps stay in the processor's caches


class NetworkProblem(PruningProblem):
    """A trained network, its data, and budgets.

    Args:
        network: a trained classifier; it is put into evaluation mode and not changed otherwise.
        data: calibration images and the two disjoint splits.
        budget, reward, cost_models: as of `PruningProblem`.
        settings: how channels are removed.
        evaluation: how a pruned network is evaluated.

    Raises:
        UntraceableNetworkError: the network's channels cannot be traced.
        InfeasibleBudgetError: no policy meets a budget.
    """

    def __init__(
        self,
        network: nn.Module,
        data: DataSplits,
        *,
        budget: Mapping[str, float | str],
        reward: RewardForm = "error",
        settings: PruningSettings = PruningSettings(),
        evaluation: EvaluationSettings = EvaluationSettings(),
        cost_models: Sequence[CostModel] | None = None,
    ) -> None:
        self.network = network.eval()
        self.data = data
        self.settings = settings
        self.evaluation = evaluation
        example = data.preprocessing(data.search.images[:2])
        self.graph = trace_channels(self.network, example)
        check_surgery(self.network, self.graph, example)
        choices = [_choices(group, settings) for group in self.graph.groups]
        kept_whole = _matching(self.graph, settings.keep)
        self._decided = [index for index, allowed in enumerate(choices) if len(allowed) > 1 and index not in kept_whole]
        self._order = removal_order(self.network, self.graph, settings.criterion)
        if not self._decided:
            raise ValueError(
                f"no channels of the network can be removed with round_to {settings.round_to}, max_ratio "
                f"{settings.max_ratio} and keep {list(settings.keep)}; lower round_to, raise max_ratio or keep less"
            )
        groups = [self.graph.groups[index] for index in self._decided]
        super().__init__(
            [
                Decision(group.name, group.size, choices[index], self.graph.layers[group.layer])
                for index, group in zip(self._decided, groups, strict=True)
            ],
            self.graph.layers,
            channel_map(self.graph, groups),
            budget=budget,
            reward=reward,
            cost_models=cost_models,
        )

    def score(self, widths: Widths) -> Score:
        return self.measure(widths, "search")

    def measure(self, widths: Widths, split: SplitName) -> Score:
        """Error and top-1 accuracy of the pruned network on a split."""
        images = self.data.search if split == "search" else self.data.test
        network = self.prune(widths)
        fold_batchnorm(network, self.graph.foldable)
        accuracy = top1_accuracy(network, self._batches(images, _SCORED_BATCH))
        return Score(1.0 - accuracy, accuracy)

    def plan(self, widths: Widths) -> PruningPlan:
        """Which indices of which tensors stay when each decision keeps this many units."""
        kept: list[IntArray] = [np.arange(group.size) for group in self.graph.groups]
        for index, width in zip(self._decided, widths, strict=True):
            kept[index] = np.sort(self._order[index][:width])
        return make_plan(self.graph, kept)

    def prune(self, widths: Widths) -> nn.Module:
        """The thin network; batch norm recalibrated if the settings say so and anything was removed."""
        pruned = apply_plan(self.network, self.plan(widths)).to(memory_format=torch.channels_last)
        if self.evaluation.recalibrates and tuple(widths) != self.dense_widths:
            batches = self._batches(self.data.calibration, _CALIBRATION_BATCH)
            recalibrate_batchnorm(pruned, (images for images, _ in batches))
        return pruned

    def _batches(self, split: Split, batch: tuple[int, int]) -> Iterator[tuple[torch.Tensor, NDArray[np.int64]]]:
        pixels, fewest = batch
        size = max(fewest, pixels // math.prod(split.images.shape[2:]))
        for first in range(0, len(split), size):
            images = self.data.preprocessing(split.images[first : first + size])
            yield images.contiguous(memory_format=torch.channels_last), split.labels[first : first + size]


def top1_accuracy(network: nn.Module, batches: Iterator[tuple[torch.Tensor, NDArray[np.int64]]]) -> float:
    """Fraction of images whose largest logit is their label."""
    correct = total = 0
    with torch.inference_mode():
        for images, labels in batches:
            predicted = network(images).argmax(dim=1).numpy()
            correct += int((predicted == labels).sum())
            total += len(labels)
    return correct / total


def channel_map(graph: ChannelGraph, groups: Sequence[ChannelGroup]) -> ChannelMap:
    """How the channels of the layers follow from the widths of these groups (the others stay whole).

    Raises:
        ValueError: a layer uses the units of a group unevenly.
    """
    parts = []
    for labels in (graph.inputs, graph.outputs):
        per_unit = np.zeros((len(labels), len(groups)), dtype=np.int64)
        for row, units in enumerate(labels):
            counts = np.bincount(units[units >= 0], minlength=graph.groups[-1].first_unit + graph.groups[-1].size)
            for column, group in enumerate(groups):
                mine = counts[group.first_unit : group.first_unit + group.size]
                if (mine != mine[0]).any():
                    raise ValueError(f"layer {graph.layers[row].name!r} uses the channels of {group.name!r} unevenly")
                per_unit[row, column] = mine[0]
        widths = np.array([group.size for group in groups], dtype=np.int64)
        dense = np.array([len(units) for units in labels], dtype=np.int64)
        parts.append((dense - per_unit @ widths, per_unit))
    (fixed_in, in_per_unit), (fixed_out, out_per_unit) = parts
    return ChannelMap(fixed_in, in_per_unit, fixed_out, out_per_unit)


def _matching(graph: ChannelGraph, patterns: Sequence[str]) -> set[int]:
    """Indices of the groups whose name matches a pattern.

    Raises:
        ValueError: a pattern matches no group.
    """
    names = [group.name for group in graph.groups]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"keep: pattern {pattern!r} matches none of the groups {', '.join(names)}")
    return {index for index, name in enumerate(names) if any(fnmatch.fnmatch(name, p) for p in patterns)}


def _choices(group: ChannelGroup, settings: PruningSettings) -> tuple[int, ...]:
    """The unit counts of a group that may be kept: channel counts are multiples of `round_to`, or all of them."""
    step = settings.round_to // math.gcd(settings.round_to, group.channels_per_unit)
    fewest = max(1, math.ceil(group.size * (1.0 - settings.max_ratio) - 1e-9))
    first = -(-fewest // step) * step
    return (*range(first, group.size, step), group.size)
