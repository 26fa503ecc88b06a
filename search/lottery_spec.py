"""The spec of a search for lottery tickets: an untrained network, data, and how tickets are found."""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from amc_env.training.lottery import Arm, LotterySettings
from amc_env.training.sparsify import Scope
from search.spec_base import Count, Seed
from search.spec_inputs import Architecture, Data
from search.spec_training import Recipe


class Training(Recipe):
    """How every network is trained from the beginning; the seeds of the spec take the place of `seed`."""

    younger: ClassVar[frozenset[str]] = frozenset({"mixup", "hints"})

    learning_rate: float = Field(default=0.1, gt=0)


class LotterySection(BaseModel):
    """How tickets are found; see `amc_env.training.lottery.LotterySettings`.

    Attributes:
        training: of every network.
        images: of the training images, how many; by default all.
        threads: another number changes the last digits.
        device: "auto" takes a GPU if there is one; or cpu, cuda.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    training: Training
    rounds: Count = 5
    ratio: float = Field(default=0.2, gt=0, lt=1)
    rewind: int = Field(default=0, ge=0)
    scope: Scope = "global"
    arms: tuple[Arm, ...] = get_args(Arm)
    images: Count | None = None
    threads: Count = 1
    device: str = "auto"

    @model_validator(mode="after")
    def _usable(self) -> LotterySection:
        if self.settings().training.needs_teacher:
            raise ValueError(
                "training: distillation and hints need a trained network, and there is none; leave them out"
            )
        return self

    def settings(self) -> LotterySettings:
        """The same for the search.

        Raises:
            ValueError: the values do not go together.
        """
        return LotterySettings(
            self.training.settings(), self.rounds, self.ratio, self.rewind, self.scope, self.arms
        )  # fmt: skip


class LotterySpec(BaseModel):
    """A search for tickets, once with each seed: the network's first weights, and all that is drawn, follow from it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: Literal[1]
    name: str = Field(default="lottery", pattern=r"^[A-Za-z0-9._-]+$")
    network: Architecture
    data: Data
    lottery: LotterySection
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)

    @field_validator("seeds")
    @classmethod
    def _unique_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"expected each seed once, got {list(seeds)}")
        return seeds
