"""Sparsity as a function of the training step: at once, or in updates that raise it to the target.

[INC] Intel Neural Compressor, `IterativeScheduler` (its pruning was removed in release 3): decays exp, linear, cos and
cube. Its cube rises slowly and ends steeply; the cubic of [ZG] does the opposite and has a name of its own.
[ZG] Zhu and Gupta, To prune, or not to prune, arXiv 1710.01878, equation 1.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["one_shot", "iterative"]
Decay = Literal["exp", "linear", "cos", "cube", "zhu_gupta"]

#: sparsity after a share of the updates in [0, 1], from an initial sparsity to a target
_DECAYS: Mapping[Decay, Callable[[float, float, float], float]] = {
    "exp": lambda done, initial, target: 1.0 - (1.0 - initial) * ((1.0 - target) / (1.0 - initial)) ** done,
    "linear": lambda done, initial, target: initial + (target - initial) * done,
    "cos": lambda done, initial, target: initial + (target - initial) * (1.0 - math.cos(done * math.pi / 2)),
    "cube": lambda done, initial, target: initial + (target - initial) * done**3,
    "zhu_gupta": lambda done, initial, target: target + (initial - target) * (1.0 - done) ** 3,
}


@dataclass(frozen=True)
class SparsitySchedule:
    """When a training removes weights, and how many are gone then.

    Updates are numbered from 0; number k comes when `start + k * frequency` steps are done. Number 0 leaves the initial
    sparsity and the last one, at `end` or less than `frequency` steps before it, has the target exactly. One-shot, and
    also an iterative schedule with no room for two updates, has the only update at `start`.

    Attributes:
        kind: "one_shot", or "iterative".
        decay: of an iterative schedule; with i the initial sparsity, s the target and p the share of the updates done:
            "exp": 1 - (1 - i) * ((1 - s) / (1 - i))^p, every update removes the same fraction of what is left;
            "linear": i + (s - i) * p;
            "cos": i + (s - i) * (1 - cos(p * pi / 2));
            "cube": i + (s - i) * p^3;
            "zhu_gupta": s + (i - s) * (1 - p)^3.
        start, end: steps done, at least 0; an iterative schedule ends after its start.
        frequency: steps between two updates, at least 1.
    """

    kind: Kind = "iterative"
    decay: Decay = "exp"
    start: int = 0
    end: int = 0
    frequency: int = 1

    def __post_init__(self) -> None:
        check_kind(self.kind, self.decay)
        if self.start < 0:
            raise ValueError(f"start: expected at least 0 steps, got {self.start}")
        if self.frequency < 1:
            raise ValueError(f"frequency: expected at least 1 step, got {self.frequency}")
        if self.kind == "iterative" and self.end <= self.start:
            raise ValueError(
                f"schedule: it ends at step {self.end}, expected an end after its start at step {self.start}; set a "
                f"later end, or take one_shot"
            )

    @property
    def last(self) -> int:
        """Number of the last update."""
        return 0 if self.kind == "one_shot" else (self.end - self.start) // self.frequency

    def update_at(self, step: int) -> int | None:
        """Number of the update that comes when so many steps are done; None if there is none."""
        number, rest = divmod(step - self.start, self.frequency)
        return number if rest == 0 and 0 <= number <= self.last else None

    def sparsity(self, update: int, target: float, initial: float = 0.0) -> float:
        """Fraction removed, in [0, 1], after an update.

        Args:
            update: its number, 0..last.
            target: fraction removed at last.
            initial: fraction removed before the first update.

        Raises:
            ValueError: the target lies below the initial sparsity, or one of them is no fraction below 1.
        """
        if not 0.0 <= initial <= target < 1.0:
            raise ValueError(
                f"sparsity: expected 0 <= initial <= target < 1, got initial {initial:g} and target {target:g}; "
                f"weights that are gone do not come back"
            )
        if update >= self.last:
            return target
        return _DECAYS[self.decay](update / self.last, initial, target)


def check_kind(kind: str, decay: str) -> None:
    """Refuse a kind or decay that there is not.

    Raises:
        ValueError: so, with the closest name.
    """
    for name, value, known in (("schedule", kind, get_args(Kind)), ("decay", decay, get_args(Decay))):
        if value not in known:
            close = difflib.get_close_matches(value, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}{hint}")
