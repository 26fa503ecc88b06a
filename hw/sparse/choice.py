"""Which kernel runs a layer: measured once, side by side with the dense layer, and kept in a table.

Dense means the faster of torch's two layouts of images: a network can be turned to channels last as a whole.

No rule of density alone would do: what wins depends on the sizes, on how many activations are zero, on the batch and on
the processor. The table is a JSON file that lies beside a latency table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numba
import torch

from hw.files import write_atomically
from hw.host import describe_host
from hw.sparse.side_by_side import time_calls

#: name of the layer as it was
DENSE = "dense"
#: name of a convolution as it is in a network whose images are stored pixel by pixel
CHANNELS_LAST = "dense channels_last"
DENSE_KERNELS = (DENSE, CHANNELS_LAST)
_VERSION = 2
_NEAR = 0.1  # densities that differ by this fraction count as the same


class KernelTableError(ValueError):
    """A file is no table of kernels."""


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

    def save(self, path: Path) -> None:
        """Write the table and where it was measured, as JSON."""
        host = describe_host({"numba": numba.__version__, "torch": torch.__version__})
        content = {
            "kernel_table": _VERSION,
            "host": asdict(host),
            "cases": [asdict(entry.case) | {"milliseconds": dict(entry.milliseconds)} for entry in self.measured],
        }
        write_atomically(path, json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> KernelTable:
        """Read a table.

        Raises:
            KernelTableError: the file is none, or of another version.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["kernel_table"]
            cases = [dict(entry) for entry in content["cases"]]
            measured = [Measured(milliseconds=entry.pop("milliseconds"), case=Case(**entry)) for entry in cases]
        except (ValueError, TypeError, LookupError) as error:
            raise KernelTableError(
                f"{path}: expected a table of kernels, got {error!r}; delete it to measure anew"
            ) from error
        if version != _VERSION:
            raise KernelTableError(f"{path}: expected version {_VERSION}, got {version}; delete it to measure anew")
        return cls(measured)
