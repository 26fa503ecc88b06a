"""What can be chosen about a problem: how channels are removed, and how a pruned network is evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch

from amc_env.pruning.criteria import CRITERIA, Criterion
from amc_env.pruning.patterns import Pattern, parse_pattern
from amc_env.pruning.saliency import OF_FILTERS, Saliency, SaliencySettings, check_criterion

Fidelity = Literal["magnitude", "prefix", "sequential"]
WeightCriterion = Literal["obs", Saliency]
Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class PruningSettings:
    """How channels are removed.

    Attributes:
        round_to: channel counts are multiples of this (a layer's full count is always allowed), at least 1.
        max_ratio: no decision removes more than this fraction, in (0, 1); 0.8 in [AMC] (a_max).
        criterion: which channels go first: see `amc_env.pruning.criteria`.
        saliency: what else a criterion reads.
        keep: patterns (as of fnmatch) of groups that stay whole, e.g. "layer1.0.*". A group is named by the layer that
            first produces its channels.
    """

    round_to: int = 8
    max_ratio: float = 0.8
    criterion: Criterion = "input_l1"
    saliency: SaliencySettings = SaliencySettings()
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.round_to < 1:
            raise ValueError(f"round_to: expected at least 1, got {self.round_to}")
        check_criterion(self.criterion, CRITERIA)
        if not 0.0 < self.max_ratio < 1.0:
            raise ValueError(f"max_ratio: expected a fraction in (0, 1), got {self.max_ratio}")


@dataclass(frozen=True)
class WeightSettings:
    """Which single weights are removed, or units of them.

    Attributes:
        granularity: name of the pattern, see `amc_env.pruning.patterns`.
        max_ratio: no layer loses more than this fraction of its weights, in (0, 1).
        criterion: which weights go first: "obs", those that cost least to reconstruct; or the lowest scores as of
            `amc_env.pruning.saliency`, of which bn_scale and apoz are of filters only.
        saliency: what else a criterion reads.
        keep: patterns (as of fnmatch) of layers that stay whole, by name.
        levels: how many counts of weights may be kept of a layer, evenly spaced in their logarithm, at least 2; less
            where the pattern allows fewer.
    """

    granularity: str = "fine_grained"
    max_ratio: float = 0.98
    criterion: WeightCriterion = "obs"
    saliency: SaliencySettings = SaliencySettings()
    keep: tuple[str, ...] = ()
    levels: int = 64

    def __post_init__(self) -> None:
        if not 0.0 < self.max_ratio < 1.0:
            raise ValueError(f"max_ratio: expected a fraction in (0, 1), got {self.max_ratio}")
        if self.criterion in ("energy", "input_l1"):
            raise ValueError(
                f"criterion: {self.criterion} is of channels, by the layers that read them; for weights take one of "
                f"{', '.join(get_args(WeightCriterion))}"
            )
        check_criterion(self.criterion, get_args(WeightCriterion))
        if self.criterion in OF_FILTERS and self.granularity != "filter":
            raise ValueError(
                f"criterion: {self.criterion} scores whole filters; take granularity filter (or channel, which removes "
                f"them for good), or another criterion, got granularity {self.granularity}"
            )
        if self.levels < 2:
            raise ValueError(f"levels: expected at least 2, got {self.levels}")
        _ = self.pattern

    @property
    def pattern(self) -> Pattern:
        """Which weights go together."""
        return parse_pattern(self.granularity)


@dataclass(frozen=True)
class ShortFineTuning:
    """A few steps of training after each repair, as NetAdapt (arXiv 1804.03230) trains each proposal.

    They are taken on the calibration images, by SGD with the defaults of `FineTuneSettings` and seed 0, so that the
    same widths always give the same network, in a search as in the end.

    Attributes:
        steps: 0 for none.
        learning_rate: the first; it falls by half a cosine to 0.
        batch: images of a step, at least 2.
    """

    steps: int = 0
    learning_rate: float = 0.01
    batch: int = 128

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"finetune: steps: expected at least 0, got {self.steps}")
        if self.learning_rate <= 0.0 or self.batch < 2:
            raise ValueError(
                f"finetune: expected a learning rate above 0 and a batch of at least 2, got {self.learning_rate} and "
                f"{self.batch}"
            )


@dataclass(frozen=True)
class EvaluationSettings:
    """How a pruned network is evaluated.

    Attributes:
        fidelity: what becomes of the weights that stay. "magnitude": nothing. "prefix": each layer is fitted by least
            squares to the dense network's outputs, on the dense network's inputs, precomputed for every width.
            "sequential": each layer is fitted in forward order on the inputs that the pruned part really gives it.
        recalibrate_batchnorm: whether batch norm statistics are renewed on the calibration images; None: by the
            fidelity, which is no for "sequential" only.
        images: of the calibration images, how many a sequential fit in a search uses, at least 1; the final network
            is fitted on all of them, with rows in proportion.
        rows: samples per layer of the least-squares fits, at least 1; a layer takes no more than 100 for each weight of
            an output.
        objective: what the error of a network is: see `amc_env.objectives`.
        folder: where the module of an objective of the user's own is looked for first; None: the current directory.
        hard_images: of the search split, on how many a search runs each plan: those on which a plan of equal ratios at
            the budget diverges most from the dense network. The others count with that plan's errors. None: all.
        stop_early: stop the evaluation of a plan as soon as it cannot become the best. Plans that an agent asks for
            at once are all compared with the best before them.
        dtype: of the scored network's weights and activations.
        device: where networks run: "cpu", "cuda", "cuda:1"; "auto" takes a GPU if there is one.
        block_epochs: over the calibration images, in which each block of the final network is trained to give what the
            dense one gives; see `amc_env.training.blocks`. Searches score networks without it.
        finetune: steps of training after the repair.
    """

    fidelity: Fidelity = "sequential"
    recalibrate_batchnorm: bool | None = None
    images: int = 250
    rows: int = 5000
    objective: str = "top1"
    folder: Path | None = None
    hard_images: int | None = None
    stop_early: bool = False
    dtype: Dtype = "float32"
    device: str = "auto"
    block_epochs: int = 0
    finetune: ShortFineTuning = ShortFineTuning()

    def __post_init__(self) -> None:
        for name, known in (("fidelity", get_args(Fidelity)), ("dtype", get_args(Dtype))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("images", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.block_epochs < 0:
            raise ValueError(f"block_epochs: expected at least 0, got {self.block_epochs}")
        if self.hard_images is not None and self.hard_images < 1:
            raise ValueError(f"hard_images: expected at least 1, or none to score all, got {self.hard_images}")
        if self.fidelity == "sequential" and self.recalibrate_batchnorm:
            raise ValueError(
                "recalibrate_batchnorm: batch norm recalibration after sequential reconstruction does harm (the fit "
                "has set the statistics right already); leave it out, or take another fidelity"
            )

    @property
    def recalibrates(self) -> bool:
        """Whether batch norm statistics are renewed."""
        if self.recalibrate_batchnorm is None:
            return self.fidelity != "sequential"
        return self.recalibrate_batchnorm

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]


def find_device(name: str) -> torch.device:
    """The device of that name, there and usable; "auto" is "cuda" if there is a GPU and else "cpu".

    Raises:
        ValueError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("networks are not run there")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device: expected auto, cpu, or a cuda device that is there, got {name!r} ({reason})"
        ) from error
    return device
