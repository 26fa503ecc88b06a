"""A trained network, its images and how a pruned form of it is scored; what is removed is for the subclass to say."""

from __future__ import annotations

import copy
import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.cache import cache_folder
from amc_env.hard_images import HardImages, choose_hard_images
from amc_env.objectives import KnownImages, evaluate_objective, find_objective, network_outputs
from amc_env.problem import PruningProblem, Score, Widths
from amc_env.pruning.batchnorm import fold_batchnorm, recalibrate_batchnorm
from amc_env.pruning.calibration import Calibration, OnProgress
from amc_env.pruning.consumers import Layer, find_layers
from amc_env.pruning.gradients import LabelledBatch
from amc_env.pruning.graph import ChannelGraph
from amc_env.pruning.reuse import Reuse
from amc_env.pruning.saliency import ON_IMAGES, SaliencySettings
from amc_env.pruning.trace import trace_channels
from amc_env.settings import EvaluationSettings, find_device
from amc_env.splits import DataSplits, Split, channels_last
from amc_env.training.blocks import PROBE, check_blocks, reconstruct_blocks
from amc_env.training.finetune import check_trainable, fine_tune
from amc_env.training.hints import KeptOfBlocks
from amc_env.training.recipe import FineTuneSettings
from amc_env.weights import weights_digest

SplitName = Literal["search", "test"]
ScoredName = Literal["search", "test", "hard"]  # hard: those images of the search split
# Images of about so many pixels go through the network at once, and at least so many images.
_CALIBRATION_BATCH = (250 * 32 * 32, 50)  # the statistics of each batch must mean something
_SCORED_BATCH = (250 * 32 * 32, 20)  # in smaller ones torch computes 1x1 convolutions without oneDNN
_SALIENCY_BATCH = 32  # images: criteria that square what a batch says need many batches
_MOMENT_ROWS = 30_000  # per layer, for the second moments: they are measured once
_SALIENCY_VERSION = 1  # raise it whenever the same data and weights give other scores
_CALIBRATION_VERSION = 3  # raise it whenever the same data and weights give other moments or orders


class ImageProblem(PruningProblem):
    """A subclass calls `_open` before the constructor of `PruningProblem`.

    Attributes:
        device: where networks run.
        network: dense.
        data: calibration images and the two disjoint splits.
        evaluation: how a pruned network is evaluated.
        graph: the network's layers and channels.
    """

    def _open(self, network: nn.Module, data: DataSplits, evaluation: EvaluationSettings) -> None:
        """Put the network into evaluation mode and onto the device, and trace it.

        Raises:
            UntraceableNetworkError: the network's channels cannot be traced.
            ValueError: the objective or the device is not there, networks are to be fine-tuned and the calibration
                images have no class indices, there are no blocks that can be trained, or there are not so many images
                to choose hard ones from.
        """
        self.device = find_device(evaluation.device)
        self.network = network.eval().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.data = data
        self.evaluation = evaluation
        self.objective = find_objective(evaluation.objective, evaluation.folder)
        self.worst_error = self.objective.worst
        if evaluation.finetune.steps > 0:
            check_trainable(data.calibration, self._recipe)
        if evaluation.hard_images is not None and evaluation.hard_images >= len(data.search):
            raise ValueError(
                f"hard_images: expected fewer than the {len(data.search)} images of the search split, got "
                f"{evaluation.hard_images}; leave it out to score all"
            )
        self.graph = self._trace(self._images(data.search, slice(0, 2)))
        if evaluation.block_epochs > 0:
            check_blocks(self.network, self._images(data.search, slice(0, PROBE)))

    def _trace(self, example: torch.Tensor) -> ChannelGraph:
        """The network's layers, as far as they matter with their channels."""
        return trace_channels(self.network, example)

    @abstractmethod
    def prune(self, widths: Widths) -> nn.Module:
        """The pruned network, repaired as the settings say with all calibration images; float32."""

    def kept_of_blocks(self, widths: Widths) -> KeptOfBlocks:
        """What the pruned network's blocks return of what the dense ones return, where it is less; for hints."""
        return {}

    @abstractmethod
    def plan(self, widths: Widths) -> dict[str, Any]:
        """What stays of which tensors at these widths, as plain values for JSON."""

    @abstractmethod
    def calibrate(self, on_progress: OnProgress = lambda done, total: None, *, error_curves: bool = False) -> None:
        """Do now what is done once and kept on disk: measure the calibration images, and what follows from them.

        Args:
            on_progress: called with the layers done and their number.
            error_curves: whether `reconstruction_errors` will be asked for.
        """

    def measure(self, widths: Widths, split: SplitName) -> Score:
        """Error and accuracy of the final network, as of `prune`, on a split."""
        return self._score(self.prune(widths), split)

    def measure_network(self, network: nn.Module, split: SplitName) -> Score:
        """Error and accuracy of a network of the user's, say a pruned one after fine-tuning; it is not changed."""
        return self._score(copy.deepcopy(network), split)

    def timed_input(self, batch: int) -> torch.Tensor:
        """Images as the network sees them, float32 (batch, channels, height, width), or token ids, on the CPU."""
        images = self._images(self.data.search, slice(0, batch)).cpu().contiguous()
        return images.repeat(-(-batch // len(images)), *(1,) * (images.ndim - 1))[:batch]

    def search_batches(self) -> Iterator[torch.Tensor]:
        """The images of the search split as an evaluation scores them, batch by batch."""
        return (images for images, _ in self._scored_batches("search"))

    @cached_property
    def calibration(self) -> Calibration:
        """Second moments of the inputs of `_calibrated_layers`."""
        split = self.data.calibration
        identity = f"{_CALIBRATION_VERSION} {_MOMENT_ROWS} {weights_digest(self.network)} {self.data.preprocessing}"
        function = f"{self.network} {self.graph.layers}"  # networks of the same weights may differ in strides
        digest = hashlib.sha256(f"{identity} {function} {split.images.dtype} {split.images.shape}".encode())
        digest.update(np.ascontiguousarray(split.images).data)
        return Calibration(
            self.network,
            {layer.name: layer.columns // layer.groups for layer in self._calibrated_layers()},
            self._calibration_batches,
            images=len(split),
            rows=_MOMENT_ROWS,
            folder=cache_folder() / "calibration" / digest.hexdigest()[:32],
        )

    @abstractmethod
    def _calibrated_layers(self) -> list[Layer]:
        """The layers whose inputs are measured."""

    def _remember_scores(
        self,
        name: str,
        criterion: str,
        settings: SaliencySettings,
        compute: Callable[[Iterable[LabelledBatch] | None], Mapping[str, NDArray[Any]]],
    ) -> Mapping[str, NDArray[Any]]:
        """Scores by a criterion on the calibration images; those that look at the images are kept on disk.

        Args:
            name: of what; tells scores of weights and of channels apart.
            criterion, settings: by which they are computed.
            compute: gives the scores, of images and labels if the criterion takes any.
        """
        if criterion not in ON_IMAGES:
            return compute(None)
        labels = self.data.calibration.labels
        identity = f"{_SALIENCY_VERSION} {name} {criterion} {settings} {labels.dtype} {labels.shape}"
        digest = hashlib.sha256(identity.encode())
        digest.update(np.ascontiguousarray(labels).data)
        return self.calibration.remember(f"scores-{digest.hexdigest()[:16]}", lambda: compute(self._labelled_batches()))

    def _labelled_batches(self) -> Iterator[LabelledBatch]:
        """The calibration images as criteria see them, in small batches."""
        split = self.data.calibration
        for first in range(0, len(split), _SALIENCY_BATCH):
            part = slice(first, first + _SALIENCY_BATCH)
            yield self._images(split, part), torch.from_numpy(split.labels[part])

    def deployed(self, network: nn.Module) -> nn.Module:
        """A copy as it is timed: batch norms folded, float32, on the CPU."""
        copied: nn.Module = copy.deepcopy(network)
        fold_batchnorm(copied, self.graph.foldable)
        copied.eval().to("cpu", torch.float32)
        return copied.to(memory_format=torch.contiguous_format)

    def example(self, images: int) -> torch.Tensor:
        """Network input of so many images of the search split, as of `Split` on the CPU, images as float32.

        Raises:
            ValueError: there are not so many.
        """
        if images > len(self.data.search):
            raise ValueError(f"batch: expected at most the {len(self.data.search)} images to search on, got {images}")
        return self.data.preprocessing(self.data.search.images[:images]).contiguous()

    @cached_property
    def _search_batches(self) -> list[tuple[torch.Tensor, NDArray[Any]]]:
        return list(self._batches(self.data.search, _SCORED_BATCH))

    @abstractmethod
    def _candidate(self, widths: Widths) -> nn.Module:
        """The pruned network as a search scores it."""

    def _searched(self, widths: Widths) -> ScoredName:
        """On which images a search scores these widths; the dense network, for which all are alike, on all."""
        return "search" if self.evaluation.hard_images is None or widths == self.dense_widths else "hard"

    @cached_property
    def _hard(self) -> HardImages:
        """Chosen by a plan of equal ratios at the budget."""
        reference = self._candidate(self.widths(self.fit_to_budget(self.ratios(self.smallest_widths) / 2)))
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

    def _finish(self, pruned: nn.Module, widths: Widths, reuse: Reuse | None = None, *, final: bool) -> None:
        """Renew the batch norm statistics of a pruned network and train it shortly, as far as the settings say so.

        Args:
            final: whether its blocks are reconstructed too, as those of networks that a search scores are not.
        """
        if self.evaluation.recalibrates:
            forward = pruned if reuse is None else reuse.forward(pruned, "recalibration")
            recalibrate_batchnorm(pruned, self._calibration_batches(), forward)
            self._correct_statistics(pruned)
        if final and self.evaluation.block_epochs > 0:
            reconstruct_blocks(
                pruned,
                self.network,
                list(self._calibration_batches()),
                epochs=self.evaluation.block_epochs,
                kept_of_blocks=self.kept_of_blocks(widths),
            )
        if self.evaluation.finetune.steps > 0:
            fine_tune(
                pruned,
                self.data.calibration,
                self.data.preprocessing,
                self._recipe,
                teacher=self.network if self._recipe.needs_teacher else None,
                device=self.device,
            )

    def _correct_statistics(self, pruned: nn.Module) -> None:
        """Called when batch norm statistics of a pruned network have been renewed."""

    def _score(
        self, pruned: nn.Module, images: ScoredName, reuse: Reuse | None = None, give_up_at: float | None = None
    ) -> Score:
        self._make_ready(pruned)
        return evaluate_objective(
            pruned if reuse is None else reuse.forward(pruned, "score"),
            self._scored_batches(images),
            self.objective,
            self._dense_outputs_on(images) if self.objective.needs_dense else None,
            total=len(self.data.test if images == "test" else self.data.search),
            give_up_at=give_up_at,
            known=self._hard.rest if images == "hard" else KnownImages(),
        )

    def _make_ready(self, network: nn.Module) -> None:
        """To run, not to be pruned or fitted any more."""
        fold_batchnorm(network, self.graph.foldable)
        network.to(self.evaluation.torch_dtype)

    def _dense_outputs_on(self, images: ScoredName) -> list[Any]:
        if images not in self._dense_outputs:
            dense = copy.deepcopy(self.network)
            self._make_ready(dense)
            self._dense_outputs[images] = network_outputs(dense, self._scored_batches(images))
        return self._dense_outputs[images]

    def _scored_batches(self, images: ScoredName) -> Iterator[tuple[torch.Tensor, NDArray[Any]]]:
        if images == "test":
            batches: Iterable[tuple[torch.Tensor, NDArray[Any]]] = self._batches(self.data.test, _SCORED_BATCH)
        else:
            batches = self._search_batches if images == "search" else self._hard_batches
        dtype = self.evaluation.torch_dtype
        return ((batch.to(dtype) if batch.is_floating_point() else batch, labels) for batch, labels in batches)

    def _calibration_batches(self) -> Iterator[torch.Tensor]:
        return (images for images, _ in self._batches(self.data.calibration, _CALIBRATION_BATCH))

    def _batches(self, split: Split, batch: tuple[int, int]) -> Iterator[tuple[torch.Tensor, NDArray[Any]]]:
        pixels, fewest = batch
        size = max(fewest, pixels // math.prod(split.images.shape[2:] or split.images.shape[1:]))
        for first in range(0, len(split), size):
            part = slice(first, first + size)
            yield self._images(split, part), split.labels[part]

    def _images(self, split: Split, part: slice) -> torch.Tensor:
        return channels_last(self.data.preprocessing(split.images[part]).to(self.device))


def check_fitted(network: nn.Module, graph: ChannelGraph) -> None:
    """Refuse a network with a layer whose weights are not where a fit looks for them.

    Raises:
        ValueError: so.
    """
    stored = network.state_dict()
    for name in find_layers(graph):
        if f"{name}.weight" not in stored:
            raise ValueError(
                f"layer {name!r}: a fit expects its weights in a module's parameter 'weight', which is not there; make "
                f"it an nn.Conv2d or nn.Linear, or take fidelity 'magnitude' and criterion l1, l2 or input_l1"
            )
