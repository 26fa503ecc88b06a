"""The pruning problem of weights: how many of each layer stay; costs are what is stored or multiplied then."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.cost_map import SeparableCosts
from amc_env.image_problem import ImageProblem, check_fitted
from amc_env.problem import Decision, RewardForm, Score, Widths
from amc_env.pruning.batchnorm import correct_statistics, recalibrate_batchnorm
from amc_env.pruning.calibration import OnProgress
from amc_env.pruning.consumers import Layer, find_layers
from amc_env.pruning.gradients import LabelledBatch
from amc_env.pruning.graph import ChannelGraph
from amc_env.pruning.pattern import hold_pattern
from amc_env.pruning.saliency import weight_scores
from amc_env.pruning.trace import trace_layers
from amc_env.pruning.weight_levels import LevelSettings, WeightLevels
from amc_env.settings import EvaluationSettings, WeightSettings
from amc_env.splits import DataSplits
from amc_env.storage import StorageSettings, compression_stages, layer_bytes
from hw.layers import LayerShape
from hw.sparse.latency import SparseLatencyTable, measure_sparse_latency

_COSTS = ("macs", "size")
_TIMED = 7  # densities of each layer in a table of sparse latency


class WeightProblem(ImageProblem):
    """A trained network whose single weights, or units of them as of a `Pattern`, are removed, its data, and budgets.

    The network may be any whose layers are convolutions and linear layers, a transformer encoder too: its channels need
    not be traced. A decision is a layer that multiplies; its width is how many of its weights stay, of the counts that
    the pattern allows. Which ones is a fixed order, so that every width has one mask. A layer that keeps all of them is
    the dense network's: nothing of it is fitted or shared, and it is stored dense in float32. So is a layer of which
    nothing can be removed, a single unit or one sparser than `max_ratio` allows; it is no decision. (Where blocks or
    networks are trained, such layers are too.) Costs:

        "macs": multiplications by weights that stay.
        "size": bytes of the network exactly as `amc_env.storage` stores it.
        "sparse_latency_ms": of the network with sparse layers where they gain, if there is a table for it.

    The order of removal and what the weights become follow from the calibration images and their labels alone; the
    order is computed when the problem is built, for sizes follow from it, and what takes images is kept on disk.

    Args:
        network: a trained network; it is put into evaluation mode and onto the device, and not changed otherwise.
        data: calibration images and the two disjoint splits.
        budget, reward: as of `PruningProblem`.
        settings: which weights are removed.
        storage: how the network is stored.
        evaluation: how a pruned network is evaluated; fidelity "prefix" or "magnitude".
        latency: as of `measure_latency`.
        on_progress: called with what is done of two steps for each layer: its inputs measured, its weights ordered.

    Raises:
        UntraceableNetworkError: the network's layers cannot be seen.
        InfeasibleBudgetError: no policy meets a budget.
        ValueError: nothing can be removed, the pattern does not divide a layer that is not to stay whole, the fidelity
            is another, a budget is on another cost, or as of `_open`.
    """

    def __init__(
        self,
        network: nn.Module,
        data: DataSplits,
        *,
        budget: Mapping[str, float | str],
        reward: RewardForm = "error",
        settings: WeightSettings = WeightSettings(),
        storage: StorageSettings = StorageSettings(),
        evaluation: EvaluationSettings = EvaluationSettings(fidelity="prefix"),
        latency: SparseLatencyTable | None = None,
        on_progress: OnProgress = lambda done, total: None,
    ) -> None:
        if evaluation.fidelity == "sequential":
            raise ValueError(
                "fidelity: sequential fits layers that lose channels; for single weights expected prefix (each layer "
                "is fitted on the dense network's inputs) or magnitude (nothing is)"
            )
        self._open(network, data, evaluation)
        check_fitted(self.network, self.graph)
        self.settings, self.storage = settings, storage
        self._layers = _decided(find_layers(self.graph), settings.keep)
        self._check_pattern()
        if settings.criterion == "obs":
            self.calibration.prepare(lambda done, total: on_progress(done, 2 * total))
        self._levels = [levels for layer in self._layers if (levels := self._levels_of(layer)).levels]
        tables: dict[str, list[dict[int, float]]] = {name: [] for name in _COSTS}
        for done, levels in enumerate(self._levels, start=1):
            for name, table in self._tables(levels).items():
                tables[name].append(table)
            on_progress(len(self._levels) + done, 2 * len(self._levels))
        if latency is not None:
            tables[latency.name] = [
                {kept: latency.layers[levels.layer.name].at(kept) for kept in sizes}
                for levels, sizes in zip(self._levels, tables["size"], strict=True)
            ]
        decisions = [
            Decision(levels.layer.name, levels.dense.size, tuple(sizes), _shape(self.graph.layers, levels.layer))
            for levels, sizes in zip(self._levels, tables["size"], strict=True)
        ]
        if all(len(decision.choices) == 1 for decision in decisions):
            raise ValueError(
                f"no weights of the network can be removed to any gain with max_ratio {settings.max_ratio} and keep "
                f"{list(settings.keep)}; raise max_ratio or keep less"
            )
        super().__init__(
            decisions,
            self.graph.layers,
            self._costs(tables, latency),
            budget=budget,
            reward=reward,
            cost_models=[] if latency is None else [latency],
        )

    def calibrate(self, on_progress: OnProgress = lambda done, total: None, *, error_curves: bool = False) -> None:
        if self.evaluation.fidelity == "prefix" or error_curves:
            self.calibration.prepare()
        for done, levels in enumerate(self._levels):
            on_progress(done, len(self._levels))
            levels.prepare(error_curves=error_curves)
        on_progress(len(self._levels), len(self._levels))

    def score(self, widths: Widths) -> Score:
        give_up_at = self.hopeless_error(widths) if self.evaluation.stop_early else None
        return self._score(self._candidate(widths), self._searched(widths), give_up_at=give_up_at)

    def prune(self, widths: Widths) -> nn.Module:
        """The network with zeros, repaired as the settings say; float32. Training it keeps zeros and shared weights."""
        return self._repaired(widths, final=True)

    def _repaired(self, widths: Widths, *, final: bool) -> nn.Module:
        pruned: nn.Module = copy.deepcopy(self.network)
        if tuple(widths) == self.dense_widths:
            return pruned
        for levels, decision, width in zip(self._levels, self.decisions, widths, strict=True):
            if width < decision.size:
                levels.write(pruned, width)
                hold_pattern(pruned.get_parameter(f"{decision.name}.weight"), shared=self.storage.codebook is not None)
        self._finish(pruned, widths, final=final)
        return pruned

    def _candidate(self, widths: Widths) -> nn.Module:
        return self._repaired(widths, final=False)

    def masks(self, widths: Widths) -> dict[str, NDArray[np.bool_]]:
        """Which weights stay, bool of the shape of each layer that loses some, by its name."""
        return {
            decision.name: self._mask(levels, width)
            for levels, decision, width in zip(self._levels, self.decisions, widths, strict=True)
            if width < decision.size
        }

    def _mask(self, levels: WeightLevels, kept: int) -> NDArray[np.bool_]:
        return levels.mask(kept).reshape(self.network.get_parameter(f"{levels.layer.name}.weight").shape)

    def plan(self, widths: Widths) -> dict[str, Any]:
        """How many weights stay of each layer that loses some; which ones stands in the masks."""
        layers = {
            decision.name: {"kept": width, "weights": decision.size}
            for decision, width in zip(self.decisions, widths, strict=True)
            if width < decision.size
        }
        return {"version": 1, "granularity": self.settings.granularity, "layers": layers}

    def compression(self, network: nn.Module, widths: Widths) -> list[dict[str, Any]]:
        """What a network as of `prune` takes after each stage (`compression_stages`), also of the dense one's bytes."""
        stages = compression_stages(network, list(self.plan(widths)["layers"]), self.storage, self.settings.pattern)
        return [
            {"stage": stage.name, "bytes": stage.size_bytes, "of_dense": stage.size_bytes / stages[0].size_bytes}
            | {"layers": stage.layers}
            for stage in stages
        ]

    def measure_latency(
        self, *, threads: int, batch: int, on_layer: OnProgress = lambda done, total: None
    ) -> SparseLatencyTable:
        """Time each layer with some of its own patterns on this processor.

        Args:
            threads: of one run.
            batch: images in one run, from the search split.
            on_layer: called with how many layers are measured, of how many.

        Raises:
            ValueError: there are not so many images.
        """
        example = self.example(batch)
        variants: dict[str, dict[int, Any]] = {levels.layer.name: {} for levels in self._levels}
        for share in np.linspace(0.0, 1.0, _TIMED):
            network: nn.Module = copy.deepcopy(self.network)
            kept = {}
            for levels in self._levels:
                kept[levels.layer.name] = levels.levels[round(share * (len(levels.levels) - 1))]
                levels.write(network, kept[levels.layer.name])
            deployed = self.deployed(network)
            for name, width in kept.items():
                variants[name][width] = deployed.get_submodule(name)
        return measure_sparse_latency(
            self.deployed(self.network), example, variants, threads=threads, on_layer=on_layer
        )

    def reconstruction_errors(self) -> tuple[NDArray[np.float64], ...]:
        """Squared error of each layer's outputs relative to their variance, by its width."""
        curves = []
        for levels, decision in zip(self._levels, self.decisions, strict=True):
            known = dict(zip(levels.levels, levels.errors().tolist(), strict=True)) | {decision.size: 0.0}
            curves.append(np.array([known[width] for width in decision.choices]))
        return tuple(curves)

    def removal_scores(self) -> tuple[NDArray[np.float64], ...]:
        """See `WeightLevels.removal_scores`."""
        return tuple(levels.removal_scores() for levels in self._levels)

    @cached_property
    def _scores(self) -> Mapping[str, NDArray[np.float64]]:
        """Scores of the weights by layer, float64 of their shapes; none by obs."""
        criterion, settings = self.settings.criterion, self.settings.saliency
        if criterion == "obs":
            return {}
        names = [layer.name for layer in self._layers]
        norms = {layer.name: layer.norm for layer in self._layers if layer.norm is not None}

        def compute(batches: Iterable[LabelledBatch] | None) -> dict[str, NDArray[np.float64]]:
            scores = weight_scores(self.network, names, criterion, batches, norms=norms, settings=settings)
            return {name: score.cpu().numpy() for name, score in scores.items()}

        return self._remember_scores(f"weights of {', '.join(names)}", criterion, settings, compute)

    @cached_property
    def _recalibrated(self) -> nn.Module:
        """The dense network with statistics of the calibration images."""
        network: nn.Module = copy.deepcopy(self.network)
        recalibrate_batchnorm(network, self._calibration_batches())
        return network

    def _correct_statistics(self, pruned: nn.Module) -> None:
        """Take the dense network's statistics, moved by as much as pruning moved those of the calibration images.

        Renewed statistics alone also bring what calibration images have otherwise than the images of the training,
        which were augmented: at a tenth of its bytes ResNet-20 came to 87.0 % with them.
        """
        correct_statistics(pruned, self.network, self._recalibrated)

    def _calibrated_layers(self) -> list[Layer]:
        return self._layers

    def _trace(self, example: torch.Tensor) -> ChannelGraph:
        return trace_layers(self.network, example)

    def _check_pattern(self) -> None:
        """Refuse layers that the pattern does not divide, all at once."""
        faults = {}
        for layer in self._layers:
            try:
                self.settings.pattern.check(self.network.get_parameter(f"{layer.name}.weight").shape)
            except ValueError as error:
                faults[layer.name] = str(error)
        if faults:
            said = "; ".join(f"layer {name!r}: {fault}" for name, fault in faults.items())
            keep = ", ".join([*self.settings.keep, *faults])
            raise ValueError(f"pruning: {said}. Let such layers stay whole, by keep: [{keep}]; or take another pattern")

    def _levels_of(self, layer: Layer) -> WeightLevels:
        weight, pattern = self.network.get_parameter(f"{layer.name}.weight"), self.settings.pattern
        fewest = max(1, math.ceil(weight.numel() * (1.0 - self.settings.max_ratio) - 1e-9))
        grid = np.geomspace(fewest, weight.numel(), self.settings.levels).round().astype(np.int64)
        sizes = pattern.sizes(weight.shape)
        sizes = sizes[(sizes >= fewest) & (sizes < weight.numel())]
        places = np.unique(np.searchsorted(sizes, grid))  # of the nearest that are not below
        most = pattern.holding((weight != 0).cpu().numpy())  # zeros are gone already
        levels = [size for size in sizes[places[places < len(sizes)]].tolist() if size <= most]
        fitted = self.evaluation.fidelity == "prefix"
        settings = LevelSettings(self.settings.criterion, fitted, self.storage.codebook, pattern)
        scores = self._scores.get(layer.name)
        return WeightLevels(self.network, layer, levels, settings, self.calibration, scores)

    def _tables(self, levels: WeightLevels) -> dict[str, dict[int, float]]:
        """What the layer costs at each width worth having: where its pattern takes less than the dense layer."""
        calls = [shape for shape in self.graph.layers if shape.name == levels.layer.name]
        positions = sum(shape.macs for shape in calls) // levels.dense.size
        pattern = self.settings.pattern
        sizes = {kept: layer_bytes(self._mask(levels, kept), self.storage, pattern) for kept in levels.levels}
        dense = 4 * levels.dense.size
        sizes = {kept: size for kept, size in sizes.items() if size < dense} | {levels.dense.size: dense}
        return {"macs": {kept: kept * positions for kept in sizes}, "size": {**sizes}}

    def _costs(
        self, tables: Mapping[str, Sequence[Mapping[int, float]]], latency: SparseLatencyTable | None
    ) -> SeparableCosts:
        """With what no decision changes: biases, batch norms, layers that stay whole."""
        decided = {levels.layer.name: levels.dense.size for levels in self._levels}
        macs = sum(shape.macs for shape in self.graph.layers if shape.name not in decided)
        parameters = sum(parameter.numel() for parameter in self.network.parameters()) - sum(decided.values())
        fixed: dict[str, float] = {"macs": macs, "size": 4 * parameters}
        return SeparableCosts(fixed if latency is None else fixed | {latency.name: latency.rest_ms}, tables)


def _decided(layers: Mapping[str, Layer], keep: Sequence[str]) -> list[Layer]:
    """The layers whose names match no pattern.

    Raises:
        ValueError: a pattern matches no layer, or all layers match.
    """
    for pattern in keep:
        if not fnmatch.filter(layers, pattern):
            raise ValueError(f"keep: pattern {pattern!r} matches none of the layers {', '.join(layers)}")
    decided = [layer for name, layer in layers.items() if not any(fnmatch.fnmatch(name, p) for p in keep)]
    if not decided:
        raise ValueError(f"keep: {list(keep)} keeps all layers whole; keep less")
    return decided


def _shape(layers: Sequence[LayerShape], layer: Layer) -> LayerShape:
    return next(shape for shape in layers if shape.name == layer.name)
