"""Which weights go together: a pattern turns scores of a layer's weights into a nested order of removal.

The mask of any number of weights is a prefix of that order, so that more pruning never brings a weight back. A weight
is (outputs, inputs) of a linear layer or (outputs, inputs of a group, height, width) of a convolution; a linear layer
counts as a convolution of 1x1, whose rows and kernels are single weights.

Differences from Intel Neural Compressor, whose blocks and N:M groups also lie in the matrix (outputs, height * width *
inputs) with the inputs running fastest: blocks and groups never reach from one kernel element into the next, so it is
the inputs that M has to divide.
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_env.pruning.graph import IntArray


class Pattern(ABC):
    """Which weights of a layer may be removed without which others."""

    @property
    @abstractmethod
    def name(self) -> str:
        """As in a spec; `parse_pattern` reads it."""

    def check(self, shape: Sequence[int]) -> None:
        """Refuse a weight of that shape if the pattern does not divide it.

        Raises:
            ValueError: it does not, or this is no weight of a layer.
        """
        if len(shape) < 2:
            raise ValueError(f"{self.name}: expected a weight (outputs, inputs, ...), got the shape {tuple(shape)}")

    @abstractmethod
    def units(self, shape: Sequence[int]) -> IntArray:
        """The unit that each weight belongs to, int64 of the weight's shape; in the order of their first weights."""

    @abstractmethod
    def order(self, scores: NDArray[Any]) -> IntArray:
        """Weights from the last to the first removed, int64 (weights,): indices into the flat weight.

        Args:
            scores: of the weight's shape; larger stays longer.

        Raises:
            ValueError: a score is NaN or infinite, or as of `check`.
        """

    @abstractmethod
    def sizes(self, shape: Sequence[int]) -> IntArray:
        """How many weights may stay, ascending, the last one all; at least one unit (or group's share) does."""

    def nearest(self, shape: Sequence[int], kept: int) -> int:
        """The largest of `sizes` that is not above `kept`; the smallest if all are."""
        sizes = self.sizes(shape)
        return int(sizes[max(int(np.searchsorted(sizes, kept, side="right")) - 1, 0)])

    @abstractmethod
    def holding(self, held: NDArray[np.bool_]) -> int:
        """The smallest of `sizes` in which all these weights stay, bool of the weight's shape; 0 if there are none."""

    def mask(self, scores: NDArray[Any], kept: int) -> NDArray[np.bool_]:
        """Which weights stay when so many do, bool of the weight's shape.

        Raises:
            ValueError: `kept` is not one of `sizes`, or as of `order`.
        """
        nearest = self.nearest(scores.shape, kept)
        if nearest != kept:
            raise ValueError(
                f"{self.name}: a weight of shape {tuple(scores.shape)} cannot keep {kept} weights; nearest allowed: "
                f"{nearest}"
            )
        mask = np.zeros(scores.size, dtype=bool)
        mask[self.order(scores)[:kept]] = True
        return mask.reshape(scores.shape)


class UnitPattern(Pattern):
    """Blocks of one size that go whole, those with the smallest sums of scores first; of equals the last goes first."""

    @abstractmethod
    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """How far a unit of a weight of that shape reaches along each dimension."""

    def units(self, shape: Sequence[int]) -> IntArray:
        self.check(shape)
        units = np.zeros((1,) * len(shape), dtype=np.int64)
        for dim, (length, block) in enumerate(zip(shape, self.unit_shape(shape), strict=True)):
            along = np.arange(length) // block
            units = units * (length // block) + along.reshape(-1, *(1,) * (len(shape) - dim - 1))
        return units

    def order(self, scores: NDArray[Any]) -> IntArray:
        units = self.units(scores.shape).reshape(-1)
        pooled = np.bincount(units, weights=_checked(scores).reshape(-1))
        places = np.empty(len(pooled), dtype=np.int64)
        places[np.argsort(-pooled, kind="stable")] = np.arange(len(pooled))
        return np.argsort(places[units], kind="stable")

    def sizes(self, shape: Sequence[int]) -> IntArray:
        self.check(shape)
        weights, unit = int(np.prod(shape)), int(np.prod(self.unit_shape(shape)))
        return np.arange(unit, weights + 1, unit)

    def holding(self, held: NDArray[np.bool_]) -> int:
        touched = np.count_nonzero(np.bincount(self.units(held.shape)[held]))
        return int(touched) * int(np.prod(self.unit_shape(held.shape)))


@dataclass(frozen=True)
class FineGrained(UnitPattern):
    """Single weights."""

    name: str = "fine_grained"

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (1,) * len(shape)


@dataclass(frozen=True)
class Vector(UnitPattern):
    """A row of a kernel: `weight[o, i, h, :]`."""

    name: str = "vector"

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (*(1,) * (len(shape) - 1), shape[-1]) if len(shape) > 2 else (1, 1)


@dataclass(frozen=True)
class Kernel(UnitPattern):
    """A whole kernel: `weight[o, i]`."""

    name: str = "kernel"

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (1, 1, *shape[2:])


@dataclass(frozen=True)
class Filter(UnitPattern):
    """All that makes one output: `weight[o]`."""

    name: str = "filter"

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (1, *shape[1:])


@dataclass(frozen=True)
class Channel(UnitPattern):
    """All that reads one input: `weight[:, i]`. As zeros; `amc_env.pruning.surgery` removes channels for good."""

    name: str = "channel"

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (shape[0], 1, *shape[2:])


@dataclass(frozen=True)
class Block(UnitPattern):
    """NxM: neighbouring outputs by neighbouring inputs, of one kernel element."""

    outputs: int = 4
    inputs: int = 1

    def __post_init__(self) -> None:
        if min(self.outputs, self.inputs) < 1:
            raise ValueError(f"expected a block of at least 1x1, got {self.name}")

    @property
    def name(self) -> str:
        return f"{self.outputs}x{self.inputs}"

    def check(self, shape: Sequence[int]) -> None:
        super().check(shape)
        if shape[0] % self.outputs or shape[1] % self.inputs:
            raise ValueError(
                f"{self.name}: expected outputs that {self.outputs} divides and inputs that {self.inputs} divides, got "
                f"{shape[0]} outputs and {shape[1]} inputs"
            )

    def unit_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return (self.outputs, self.inputs, *(1,) * (len(shape) - 2))


@dataclass(frozen=True)
class NOfM(Pattern):
    """N:M: of every M consecutive inputs (same output, same kernel element) so many stay, those of the largest scores.

    Attributes:
        stays: N, from 1 to M - 1; None ("n:M"): any number from 1 to M, the same in the whole layer.
        group: M, at least 2.
    """

    stays: int | None = 2
    group: int = 4

    def __post_init__(self) -> None:
        if self.group < 2 or not 1 <= (1 if self.stays is None else self.stays) < self.group:
            raise ValueError(f"expected N:M with N from 1 to M - 1, such as 2:4, or n:M for any N, got {self.name}")

    @property
    def name(self) -> str:
        return f"{'n' if self.stays is None else self.stays}:{self.group}"

    def check(self, shape: Sequence[int]) -> None:
        super().check(shape)
        if shape[1] % self.group:
            raise ValueError(f"{self.name}: expected inputs that {self.group} divides, got {shape[1]} inputs")

    def units(self, shape: Sequence[int]) -> IntArray:
        """Single weights: which of a group go is free."""
        self.check(shape)
        return np.arange(int(np.prod(shape))).reshape(tuple(shape))

    def order(self, scores: NDArray[Any]) -> IntArray:
        """By the rank in the group first, then by score."""
        self.check(scores.shape)
        groups = _checked(scores).reshape(scores.shape[0], -1, self.group, *scores.shape[2:])
        ranks = np.argsort(np.argsort(-groups, axis=2, kind="stable"), axis=2, kind="stable")
        return np.lexsort((-groups.reshape(-1), ranks.reshape(-1)))

    def sizes(self, shape: Sequence[int]) -> IntArray:
        self.check(shape)
        groups = int(np.prod(shape)) // self.group
        return groups * (np.arange(1, self.group + 1) if self.stays is None else np.array([self.stays, self.group]))

    def holding(self, held: NDArray[np.bool_]) -> int:
        sizes = self.sizes(held.shape)
        most = int(held.reshape(held.shape[0], -1, self.group, *held.shape[2:]).sum(axis=2).max())
        return int(sizes[np.searchsorted(sizes, held.size // self.group * most)]) if most else 0


FINE_GRAINED: Pattern = FineGrained()
_NAMED: dict[str, Pattern] = {
    pattern.name: pattern for pattern in (FINE_GRAINED, Vector(), Kernel(), Filter(), Channel())
}
_SHOWN = (*_NAMED, "4x1", "2:4", "n:4")  # the last three stand for all NxM and N:M


def parse_pattern(name: str) -> Pattern:
    """The pattern of that name: one of fine_grained, vector, kernel, filter, channel; NxM as 4x1; N:M as 2:4 or n:4.

    Raises:
        ValueError: there is none.
    """
    if name in _NAMED:
        return _NAMED[name]
    if block := re.fullmatch(r"(\d{1,4})x(\d{1,4})", name):
        return Block(int(block[1]), int(block[2]))
    if ratio := re.fullmatch(r"(\d{1,4}|n):(\d{1,4})", name):
        return NOfM(None if ratio[1] == "n" else int(ratio[1]), int(ratio[2]))
    close = difflib.get_close_matches(name, _SHOWN, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ValueError(
        f"expected one of {', '.join(_NAMED)}, NxM (such as 4x1) or N:M (such as 2:4, n:4), got {name!r}{hint}"
    )


def _checked(scores: NDArray[Any]) -> NDArray[np.float64]:
    if not np.isfinite(scores).all():
        raise ValueError("scores: expected finite numbers, got NaN or infinity; check the weights and the gradients")
    return scores.astype(np.float64, copy=False)
