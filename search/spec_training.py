"""How a spec has networks trained."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from amc_env.pruning.saliency import Saliency
from amc_env.pruning.schedules import Decay, Kind
from amc_env.training.recipe import FineTuneSettings, Precision, Schedule
from amc_env.training.regularizers import Regularizer, RegularizerKind
from amc_env.training.sparsify import SparsifySettings, SparsifyType
from search.spec_base import Count, Part, Seed


class Sparsification(Part):
    """Removal of weights while the winners are trained; see `amc_env.training.sparsify.SparsifySettings`."""

    schedule: Kind = "iterative"
    decay: Decay = "exp"
    start: float = Field(default=0.0, ge=0, le=1)
    end: float = Field(default=0.7, ge=0, le=1)
    frequency: Count = 50
    type: SparsifyType = "iterative"
    criterion: Saliency = "l1"
    images: Count = 512

    @model_validator(mode="after")
    def _usable(self) -> Sparsification:
        self.settings()
        return self

    def settings(self) -> SparsifySettings:
        """The same for the training.

        Raises:
            ValueError: the values do not go together.
        """
        return SparsifySettings(**self.model_dump())


class Regularization(Part):
    """A penalty on weights while the winners are trained; see `amc_env.training.regularizers.Regularizer`.

    Attributes:
        pattern: of group lasso; by default the granularity of the pruning, or "filter" where channels are removed.
    """

    kind: RegularizerKind
    strength: float = Field(gt=0)
    pattern: str | None = None
    beta: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _usable(self) -> Regularization:
        if self.pattern is not None and self.kind != "group_lasso":
            raise ValueError(f"pattern: only of group_lasso; leave it out with {self.kind}")
        self.regularizer("filter")
        return self

    def regularizer(self, pattern: str, layers: tuple[str, ...] | None = None) -> Regularizer:
        """The same for the training, with the pattern that group lasso takes unless told, on these layers or all."""
        return Regularizer(self.kind, self.strength, self.pattern or pattern, layers, self.beta)


class Recipe(Part):
    """How a network is trained; see `amc_env.training.recipe.FineTuneSettings`, whose keys these are."""

    epochs: Count | None = None
    steps: Count | None = None
    batch: int = Field(default=128, ge=2)
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Schedule = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    distillation: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=4.0, gt=0)
    hints: float = Field(default=0.0, ge=0)
    mixup: float = Field(default=0.0, ge=0)
    crop_padding: int | None = Field(default=None, ge=0)
    flip: bool | None = None
    precision: Precision = "float32"
    seed: Seed = 0

    def settings(self) -> FineTuneSettings:
        """The recipe.

        Raises:
            ValueError: the values do not go together.
        """
        return FineTuneSettings(**self.model_dump(include=set(Recipe.model_fields)))


class Finetune(Recipe):
    """Training of the winners when all trials are finished, all by one recipe.

    Attributes:
        images: of the training images, how many; by default all, or where a data set has no training images all that
            are in neither search nor test split.
        per: "agent": the best policy of each agent on the search split; "trial": that of each trial.
        dense: train the dense network by the same recipe too, to tell what it gains by the training alone.
        threads: by default as many as there are CPUs. Another number changes the last digits.
        sparsify: only for weights: train from the dense network, and remove weights on the way until each layer keeps
            as many as the winner does. Without it the winner's own zeros are kept through the training.
        regularizer: a penalty that is added to the loss.
    """

    younger: ClassVar[frozenset[str]] = frozenset({"precision", "mixup", "hints", "sparsify", "regularizer"})

    images: Count | None = None
    per: Literal["agent", "trial"] = "agent"
    dense: bool = False
    threads: Count | None = None
    sparsify: Sparsification | None = None
    regularizer: Regularization | None = None

    @model_validator(mode="after")
    def _usable(self) -> Finetune:
        self.settings()
        return self
