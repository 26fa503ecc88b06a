"""The pruning problem of a trained network: prune, repair by least squares or batch norm, score on the search split."""

from __future__ import annotations

import copy
import fnmatch
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.cache import cache_folder
from amc_env.hard_images import HardImages, choose_hard_images
from amc_env.objectives import KnownImages, evaluate_objective, find_objective, network_outputs
from amc_env.problem import ChannelMap, Decision, PruningProblem, RewardForm, Score, Widths
from amc_env.pruning.batchnorm import fold_batchnorm, recalibrate_batchnorm
from amc_env.pruning.calibration import Calibration, OnProgress
from amc_env.pruning.consumers import find_layers, readers
from amc_env.pruning.criteria import needs_calibration, removal_order
from amc_env.pruning.graph import ChannelGraph, ChannelGroup, IntArray
from amc_env.pruning.prefix import PrefixReconstruction
from amc_env.pruning.reuse import ActivationReuse, Reuse
from amc_env.pruning.sequential import SequentialReconstruction
from amc_env.pruning.surgery import PruningPlan, apply_plan, check_surgery, make_plan
from amc_env.pruning.trace import trace_channels
from amc_env.settings import EvaluationSettings, PruningSettings, find_device
from amc_env.splits import DataSplits, Split
from amc_env.training.finetune import check_trainable, fine_tune
from amc_env.training.recipe import FineTuneSettings
from amc_env.weights import weights_digest
from hw.cost import CostModel

SplitName = Literal["search", "test"]
ScoredName = Literal["search", "test", "hard"]  # hard: those images of the search split
# Images of about so many pixels go through the network at once, and at least so many images.
_CALIBRATION_BATCH = (250 * 32 * 32, 50)  # the statistics of each batch must mean something
_SCORED_BATCH = (250 * 32 * 32, 20)  # in smaller ones torch computes 1x1 convolutions without oneDNN
_MOMENT_ROWS = 30_000  # per layer, for the second moments: they are measured once
_CALIBRATION_VERSION = 3  # raise it whenever the same data and weights give other moments or orders


class NetworkProblem(PruningProblem):
    """A trained network, its data, and budgets.

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
        self.device = find_device(evaluation.device)
        self.network = network.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.data = data
        self.settings = settings
        self.evaluation = evaluation
        self.objective = find_objective(evaluation.objective, evaluation.folder)
        if evaluation.finetune.steps > 0:
            check_trainable(data.calibration, self._recipe)
        if evaluation.hard_images is not None and evaluation.hard_images >= len(data.search):
            raise ValueError(
                f"hard_images: expected fewer than the {len(data.search)} images of the search split, got "
                f"{evaluation.hard_images}; leave it out to score all"
            )
        example = self._images(data.search, slice(0, 2))
        self.graph = trace_channels(self.network, example)
        check_surgery(self.network, self.graph, example)
        if evaluation.fidelity != "magnitude" or needs_calibration(settings.criterion):
            _check_fitted(self.network, self.graph)
        choices = [_choices(group, settings) for group in self.graph.groups]
        kept_whole = _matching(self.graph, settings.keep)
        self.worst_error = self.objective.worst
        self._decided = [index for index, allowed in enumerate(choices) if len(allowed) > 1 and index not in kept_whole]
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
            feature_cost=feature_cost,
        )

    def calibrate(self, on_progress: OnProgress = lambda done, total: None, *, error_curves: bool = False) -> None:
        """Do now what is done once and kept on disk: measure the calibration images and order the channels, if needed.

        Args:
            on_progress: called with the layers done and their number.
            error_curves: whether `reconstruction_errors` will be asked for.
        """
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
        score = self._score(self._thin(widths, reuse), "search", reuse, give_up_at)
        if score.fraction == 1.0:
            reuse.end()
        return score

    def measure(self, widths: Widths, split: SplitName) -> Score:
        """Error and accuracy of the final network, as of `prune`, on a split."""
        return self._score(self._thin(widths), split)

    def measure_network(self, network: nn.Module, split: SplitName) -> Score:
        """Error and accuracy of a network of the user's, say a pruned one after fine-tuning; it is not changed."""
        return self._score(copy.deepcopy(network), split)

    def plan(self, widths: Widths) -> PruningPlan:
        """Which indices of which tensors stay when each decision keeps this many units."""
        return make_plan(self.graph, self._kept(widths))

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

    def timed_input(self, batch: int) -> torch.Tensor:
        """Images as the network sees them, float32 (batch, channels, height, width), on the CPU."""
        images = self._images(self.data.search, slice(0, batch)).cpu().contiguous()
        return images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch]

    def reconstruction_errors(self) -> tuple[NDArray[np.float64], ...]:
        """See `PrefixReconstruction.errors`; the calibration images are measured first if they were not yet."""
        return tuple(
            self.prefix.errors(group)[list(decision.choices)]
            for group, decision in zip(self._decided, self.decisions, strict=True)
        )

    def search_batches(self) -> Iterator[torch.Tensor]:
        """The images of the search split as an evaluation scores them, batch by batch."""
        return (images for images, _ in self._scored_batches("search"))

    def forget_activations(self) -> None:
        """Evaluate the next plan from scratch: take nothing over from those before it."""
        self.__dict__.pop("_activations", None)

    @cached_property
    def orders(self) -> list[IntArray]:
        """For each group its units from the last to the first removed."""
        calibration = self.calibration if needs_calibration(self.settings.criterion) else None
        return removal_order(self.network, self.graph, self.settings.criterion, calibration)

    @cached_property
    def calibration(self) -> Calibration:
        """Second moments of the inputs of all layers that can lose some."""
        split = self.data.calibration
        identity = f"{_CALIBRATION_VERSION} {_MOMENT_ROWS} {weights_digest(self.network)} {self.data.preprocessing}"
        function = f"{self.network} {self.graph.layers}"  # networks of the same weights may differ in strides
        digest = hashlib.sha256(f"{identity} {function} {split.images.dtype} {split.images.shape}".encode())
        digest.update(np.ascontiguousarray(split.images).data)
        return Calibration(
            self.network,
            {layer.name: layer.columns for layer in readers(find_layers(self.graph))},
            lambda: (images for images, _ in self._batches(self.data.calibration, _CALIBRATION_BATCH)),
            images=len(self.data.calibration),
            rows=_MOMENT_ROWS,
            folder=cache_folder() / "calibration" / digest.hexdigest()[:32],
        )

    @cached_property
    def prefix(self) -> PrefixReconstruction:
        """Reconstruction on the dense network's inputs, and its error curves."""
        return PrefixReconstruction(self.network, self.graph, self.orders, self.calibration)

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

    @cached_property
    def _search_batches(self) -> list[tuple[torch.Tensor, NDArray[Any]]]:
        return list(self._batches(self.data.search, _SCORED_BATCH))

    @cached_property
    def _hard(self) -> HardImages:
        """Chosen by a plan of equal ratios at the budget."""
        widths = self.widths(self.fit_to_budget(self.ratios(self.smallest_widths) / 2))
        reference = self._thin(widths, Reuse(self._activations, None, None))
        self._make_ready(reference)
        outputs = self._dense_outputs_on("search")
        count = self.evaluation.hard_images or len(self.data.search)
        return choose_hard_images(reference, self._scored_batches("search"), outputs, self.objective, count)

    @cached_property
    def _hard_batches(self) -> list[tuple[torch.Tensor, NDArray[Any]]]:
        search, chosen = self.data.search, self._hard.chosen
        return list(self._batches(Split(search.images[chosen], search.labels[chosen], "hard"), _SCORED_BATCH))

    @cached_property
    def _dense_outputs(self) -> dict[ScoredName, list[Any]]:
        """Outputs of the dense network on what was scored, batch by batch."""
        return {}

    @property
    def _recipe(self) -> FineTuneSettings:
        """Of the short fine-tuning: by labels if the objective reads them, else by the dense network's outputs."""
        short = self.evaluation.finetune
        return FineTuneSettings(
            steps=short.steps,
            batch=short.batch,
            learning_rate=short.learning_rate,
            distillation=0.0 if self.objective.classifies else 1.0,
            temperature=1.0,
        )

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
        if self.evaluation.recalibrates:
            batches = (images for images, _ in self._batches(self.data.calibration, _CALIBRATION_BATCH))
            recalibrate_batchnorm(thin, batches, thin if reuse is None else reuse.forward(thin, "recalibration"))
        if self.evaluation.finetune.steps > 0:
            fine_tune(
                thin,
                self.data.calibration,
                self.data.preprocessing,
                self._recipe,
                teacher=self.network if self._recipe.distillation > 0.0 else None,
                device=self.device,
            )
        return thin

    def _score(
        self, thin: nn.Module, split: SplitName, reuse: Reuse | None = None, give_up_at: float | None = None
    ) -> Score:
        """With `reuse`, as a search scores the network: on the hard images, if these were asked for."""
        self._make_ready(thin)
        hard = reuse is not None and self.evaluation.hard_images is not None
        images: ScoredName = "hard" if hard else split
        return evaluate_objective(
            thin if reuse is None else reuse.forward(thin, "score"),
            self._scored_batches(images),
            self.objective,
            self._dense_outputs_on(images) if self.objective.needs_dense else None,
            total=len(getattr(self.data, split)),
            give_up_at=give_up_at,
            known=self._hard.rest if hard else KnownImages(),
        )

    def _make_ready(self, network: nn.Module) -> None:
        """To run, not to be pruned or fitted any more."""
        fold_batchnorm(network, self.graph.foldable)
        network.to(self.evaluation.torch_dtype)

    def _dense_outputs_on(self, images: ScoredName) -> list[Any]:
        if images not in self._dense_outputs:
            dense = self._thin(self.dense_widths)
            self._make_ready(dense)
            self._dense_outputs[images] = network_outputs(dense, self._scored_batches(images))
        return self._dense_outputs[images]

    def _scored_batches(self, images: ScoredName) -> Iterator[tuple[torch.Tensor, NDArray[Any]]]:
        kept = {"search": lambda: self._search_batches, "hard": lambda: self._hard_batches}
        batches = kept[images]() if images in kept else self._batches(self.data.test, _SCORED_BATCH)
        return ((images.to(self.evaluation.torch_dtype), labels) for images, labels in batches)

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

    def _batches(self, split: Split, batch: tuple[int, int]) -> Iterator[tuple[torch.Tensor, NDArray[Any]]]:
        pixels, fewest = batch
        size = max(fewest, pixels // math.prod(split.images.shape[2:]))
        for first in range(0, len(split), size):
            part = slice(first, first + size)
            yield self._images(split, part), split.labels[part]

    def _images(self, split: Split, part: slice) -> torch.Tensor:
        images = self.data.preprocessing(split.images[part])
        return images.to(self.device).contiguous(memory_format=torch.channels_last)


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


def _check_fitted(network: nn.Module, graph: ChannelGraph) -> None:
    """Raises a ValueError if a layer's weights are not where a fit looks for them."""
    stored = network.state_dict()
    for name in find_layers(graph):
        if f"{name}.weight" not in stored:
            raise ValueError(
                f"layer {name!r}: a fit expects its weights in a module's parameter 'weight', which is not there; make "
                f"it an nn.Conv2d or nn.Linear, or take fidelity 'magnitude' and criterion l1, l2 or input_l1"
            )


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
