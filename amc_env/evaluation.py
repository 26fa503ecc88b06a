"""The pruning problem of a trained network: prune, repair by least squares or batch norm, score on the search split."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.cost_map import ChannelMap
from amc_env.image_problem import ImageProblem, check_fitted
from amc_env.problem import Decision, RewardForm, Score, Widths
from amc_env.pruning.batchnorm import fold_batchnorm
from amc_env.pruning.calibration import OnProgress
from amc_env.pruning.consumers import Layer, find_layers, readers
from amc_env.pruning.criteria import importance, needs_calibration, removal_order
from amc_env.pruning.gradients import LabelledBatch
from amc_env.pruning.graph import ChannelGraph, ChannelGroup, IntArray
from amc_env.pruning.prefix import PrefixReconstruction
from amc_env.pruning.reuse import ActivationReuse, Reuse
from amc_env.pruning.sequential import SequentialReconstruction
from amc_env.pruning.surgery import PruningPlan, apply_plan, check_surgery, make_plan
from amc_env.settings import EvaluationSettings, PruningSettings
from amc_env.splits import DataSplits
from amc_env.training.hints import KeptOfBlocks
from hw.cost import CostModel


class NetworkProblem(ImageProblem):
    """A trained network whose channels are removed, its data, and budgets.

    Evaluations in a search fit the thin network on some of the calibration images (`evaluation.images`); the network
    that `prune` gives and `measure` scores is fitted on all of them.

    Args:
        network: a trained network; it is put into evaluation mode and onto the device, and not changed otherwise.
        data: calibration images and the two disjoint splits.
        budget, reward, cost_models, feature_cost: as of `PruningProblem`.
        settings: how channels are removed.
        evaluation: how a pruned network is evaluated.

    Raises:
        UntraceableNetworkError: the network's channels cannot be traced.
        InfeasibleBudgetError: no policy meets a budget.
        ValueError: nothing can be removed, the objective or the device is not there, or networks are to be fine-tuned
            and the calibration images have no class indices.
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
        cost_models: Sequence[CostModel] = (),
        feature_cost: str = "macs",
    ) -> None:
        self._open(network, data, evaluation)
        self.settings = settings
        check_surgery(self.network, self.graph, self._images(data.search, slice(0, 2)))
        if evaluation.fidelity != "magnitude" or settings.criterion not in ("l1", "l2", "input_l1"):
            check_fitted(self.network, self.graph)
        choices = [_choices(group, settings) for group in self.graph.groups]
        kept_whole = _matching(self.graph, settings.keep)
        self._decided = [index for index, allowed in enumerate(choices) if len(allowed) > 1 and index not in kept_whole]
        if not self._decided:
            raise ValueError(
                f"no channels of the network can be removed with round_to {settings.round_to}, max_ratio "
                f"{settings.max_ratio} and keep {list(settings.keep)}; lower round_to, raise max_ratio or keep less"
            )
        groups = [self.graph.groups[index] for index in self._decided]
        self.channels = channel_map(self.graph, groups)
        super().__init__(
            [
                Decision(group.name, group.size, choices[index], self.graph.layers[group.layer])
                for index, group in zip(self._decided, groups, strict=True)
            ],
            self.graph.layers,
            self.channels,
            budget=budget,
            reward=reward,
            cost_models=cost_models,
            feature_cost=feature_cost,
        )

    def calibrate(self, on_progress: OnProgress = lambda done, total: None, *, error_curves: bool = False) -> None:
        if error_curves or needs_calibration(self.settings.criterion) or self.evaluation.fidelity == "prefix":
            self.calibration.prepare(on_progress)
        _ = self.orders

    def prepare(self, on_progress: OnProgress = lambda done, total: None) -> None:
        """Do now what else the first evaluation does: `calibrate`, and factorise or record."""
        self.calibrate(on_progress)
        if self.evaluation.fidelity == "prefix":
            self.prefix.prepare(self._choices_of_groups())
        if self.evaluation.fidelity == "sequential":
            _ = self._sequential

    def score(self, widths: Widths) -> Score:
        give_up_at = self.hopeless_error(widths) if self.evaluation.stop_early else None
        if tuple(widths) == self.dense_widths:  # it is not repaired: others cannot build on its activations
            return self._score(self._thin(widths), "search", give_up_at=give_up_at)
        if self.evaluation.finetune.steps > 0:
            self.forget_activations()  # layers that are taken over are not fitted: such a network cannot be trained
        reuse = self._activations.begin(widths)
        score = self._score(self._thin(widths, reuse), self._searched(widths), reuse, give_up_at)
        if score.fraction == 1.0:
            reuse.end()
        return score

    def plan(self, widths: Widths) -> PruningPlan:
        """Which indices of which tensors stay when each decision keeps this many units."""
        return make_plan(self.graph, self._kept(widths))

    def kept_of_blocks(self, widths: Widths) -> KeptOfBlocks:
        return self.graph.kept_of_blocks(self._kept(widths))

    def prune(self, widths: Widths) -> nn.Module:
        """The thin network, repaired as the settings say with all calibration images; float32."""
        return self._thin(widths)

    def thin_shape(self, widths: Widths, *, folded: bool) -> nn.Module:
        """A network of these widths to be timed, on the CPU: which channels stay is arbitrary, nothing is fitted.

        Args:
            folded: whether batch norm is folded into the convolutions.
        """
        kept: list[IntArray] = [np.arange(group.size) for group in self.graph.groups]
        for index, width in zip(self._decided, widths, strict=True):
            kept[index] = np.arange(width)
        thin = apply_plan(self.network, make_plan(self.graph, kept)).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        if folded:
            fold_batchnorm(thin, self.graph.foldable)
        return thin  # type: ignore[no-any-return]

    def reconstruction_errors(self) -> tuple[NDArray[np.float64], ...]:
        """See `PrefixReconstruction.errors`; the calibration images are measured first if they were not yet."""
        return tuple(
            self.prefix.errors(group)[list(decision.choices)]
            for group, decision in zip(self._decided, self.decisions, strict=True)
        )

    def removal_scores(self) -> tuple[NDArray[np.float64], ...]:
        """See `importance`; by the criteria "energy" and "obs" there are none."""
        groups = [self.graph.groups[index] for index in self._decided]
        scores = [self._importance[group.first_unit : group.first_unit + group.size] for group in groups]
        return tuple(own[self.orders[index]] for own, index in zip(scores, self._decided, strict=True))

    def forget_activations(self) -> None:
        """Evaluate the next plan from scratch: take nothing over from those before it."""
        self.__dict__.pop("_activations", None)

    @cached_property
    def orders(self) -> list[IntArray]:
        """For each group its units from the last to the first removed."""
        criterion = self.settings.criterion
        if needs_calibration(criterion):
            return removal_order(self.network, self.graph, criterion, self.calibration)
        return removal_order(self.network, self.graph, criterion, scores=self._importance)

    @cached_property
    def _importance(self) -> NDArray[np.float64]:
        """Scores of the units of the decided groups, float64 (units,) of all groups."""
        criterion, settings = self.settings.criterion, self.settings.saliency
        groups = [self.graph.groups[index] for index in self._decided]

        def compute(batches: Iterable[LabelledBatch] | None) -> dict[str, NDArray[np.float64]]:
            return {"units": importance(self.network, self.graph, criterion, batches, settings, groups)}

        name = f"units of {', '.join(group.name for group in groups)}"
        return self._remember_scores(name, criterion, settings, compute)["units"]

    @cached_property
    def prefix(self) -> PrefixReconstruction:
        """Reconstruction on the dense network's inputs, and its error curves."""
        return PrefixReconstruction(self.network, self.graph, self.orders, self.calibration)

    def _calibrated_layers(self) -> list[Layer]:
        """Those that can lose some of their inputs."""
        return readers(find_layers(self.graph))

    @cached_property
    def _sequential(self) -> SequentialReconstruction:
        count = min(self.evaluation.images, len(self.data.calibration))
        images = self._images(self.data.calibration, slice(0, count))
        return SequentialReconstruction(self.network, self.graph, images, rows=self.evaluation.rows)

    @cached_property
    def _final_sequential(self) -> SequentialReconstruction:
        total = len(self.data.calibration)
        if total <= self.evaluation.images:
            return self._sequential
        rows = self.evaluation.rows * total // self.evaluation.images
        images = self._images(self.data.calibration, slice(0, total))
        return SequentialReconstruction(self.network, self.graph, images, rows=rows, dtype=torch.float64)

    @cached_property
    def _activations(self) -> ActivationReuse:
        first = [self.graph.first_layer(self.graph.groups[index]) for index in self._decided]
        order = sorted(range(len(first)), key=first.__getitem__)
        return ActivationReuse([self.graph.layers[first[position]].name for position in order], order)

    def _candidate(self, widths: Widths) -> nn.Module:
        return self._thin(widths, Reuse(self._activations, None, None))

    def _thin(self, widths: Widths, reuse: Reuse | None = None) -> nn.Module:
        """The repaired thin network: the final one, or with `reuse` the one that a search scores."""
        kept = self._kept(widths)
        thin: nn.Module = apply_plan(self.network, make_plan(self.graph, kept))
        thin.to(memory_format=torch.channels_last)
        if tuple(widths) == self.dense_widths:
            return thin
        if self.evaluation.fidelity == "prefix":
            self.prefix.apply(thin, kept)
        elif self.evaluation.fidelity == "sequential":
            (self._final_sequential if reuse is None else self._sequential).fit(thin, kept, reuse)
        self._finish(thin, widths, reuse, final=reuse is None)
        return thin

    def _kept(self, widths: Widths) -> list[IntArray]:
        """Units of each group of the graph that stay, ascending."""
        kept: list[IntArray] = [np.arange(group.size) for group in self.graph.groups]
        for index, width in zip(self._decided, widths, strict=True):
            kept[index] = np.sort(self.orders[index][:width])
        return kept

    def _choices_of_groups(self) -> list[tuple[int, ...]]:
        choices: list[tuple[int, ...]] = [(group.size,) for group in self.graph.groups]
        for index, decision in zip(self._decided, self.decisions, strict=True):
            choices[index] = decision.choices
        return choices


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
