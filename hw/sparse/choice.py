"""Which kernel runs a layer: measured once, side by side with the dense layer, and remembered for layers alike.

Dense means the faster of torch's two layouts of images: a network can be turned to channels last as a whole.

No rule of density alone would do: what wins depends on the sizes, on how many activations are zero, on the batch and on
the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hw.sparse.side_by_side import time_calls

#: name of the layer as it was
DENSE = "dense"
#: name of a convolution as it is in a network whose images are stored pixel by pixel
CHANNELS_LAST = "dense channels_last"
DENSE_KERNELS = (DENSE, CHANNELS_LAST)
_NEAR = 0.1  # densities that differ by this fraction count as the same


@dataclass(frozen=True)
class Case:
    """What decides which kernel is fastest.

    Attributes:
        layer: kind and geometry, e.g. "linear 4096 -> 1000".
        density: share of the weights that are not zero.
        activation_density: share of the input that is not zero.
        shared: whether the weights have at most 15 different values.
        batch: inputs at once.
        threads: of the call.
    """

    layer: str
    density: float
    activation_density: float
    shared: bool
    batch: int
    threads: int

    def near(self, other: Case) -> bool:
        """Whether the other case is the same but for densities that differ by less than a tenth."""
        alike = (self.layer, self.shared, self.batch, self.threads) == (
            other.layer, other.shared, other.batch, other.threads,
        )  # fmt: skip
        return alike and all(
            abs(mine - others) <= _NEAR * max(mine, others)
            for mine, others in (
                (self.density, other.density),
                (self.activation_density, other.activation_density),
            )
        )


@dataclass(frozen=True)
class Measured:
    """Milliseconds of each kernel, the 10th percentile, by name; `DENSE` and perhaps `CHANNELS_LAST` among them."""

    case: Case
    milliseconds: Mapping[str, float]

    @property
    def fastest(self) -> str:
        """The name of the kernel that took least."""
        return min(self.milliseconds, key=lambda name: self.milliseconds[name])

    @property
    def gain(self) -> float:
        """How many times faster than the dense layer, in its faster layout, the fastest is; 1 if the dense layer is."""
        dense = min(self.milliseconds[name] for name in DENSE_KERNELS if name in self.milliseconds)
        return dense / self.milliseconds[self.fastest]


@dataclass
class KernelTable:
    """Cases that were measured, on one machine.

    Attributes:
        measured: in the order of measuring.
    """

    measured: list[Measured] = field(default_factory=list)

    def find(self, case: Case) -> Measured | None:
        """What was measured for the case or one near it."""
        return next((known for known in self.measured if known.case.near(case)), None)

    def choose(self, case: Case, kernels: Mapping[str, Callable[[], object]], *, seed: int = 0) -> Measured:
        """What is known of the case; measured now if nothing is.

        Args:
            case: the layer and its input.
            kernels: a call of each by name, `DENSE` among them; called only if the case is new.
            seed: draws the order of the runs.
        """
        known = self.find(case)
        if known is not None and set(kernels) <= set(known.milliseconds):
            return known
        if known is not None:
            self.measured.remove(known)
        new = Measured(case, {name: timing.p10 for name, timing in time_calls(kernels, seed=seed).items()})
        self.measured.append(new)
        return new
