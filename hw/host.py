"""Where and how something was timed: the machine, and the conditions under which networks ran on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

UNKNOWN = "unknown"
#: the runtimes of `hw.runtimes`, named here so that a name can be checked without loading them
RUNTIME_NAMES = ("onnxruntime", "torch", "torch.compile", "cuda")


@dataclass(frozen=True)
class Conditions:
    """What decides a network's time beside the network itself.

    Attributes:
        runtime: a name in `RUNTIME_NAMES`, or of what a table was imported from.
        threads: of one inference.
        batch: images per inference.
        dtype: of weights and activations.
    """

    runtime: str = "onnxruntime"
    threads: int = 1
    batch: int = 1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.threads < 1 or self.batch < 1:
            raise ValueError(f"threads and batch: expected at least 1, got {self.threads} and {self.batch}")

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.runtime}, {threads}, batch {self.batch}, {self.dtype}"


@dataclass(frozen=True)
class Host:
    """A machine at a time; "unknown" where it does not tell."""

    processor: str = UNKNOWN
    cpus: int = 0
    governor: str = UNKNOWN
    system: str = UNKNOWN
    created: str = UNKNOWN
    versions: Mapping[str, str] = field(default_factory=dict)


def describe_host(versions: Mapping[str, str]) -> Host:
    """This machine, now.

    Args:
        versions: of the libraries that run the networks, by name.
    """
    return Host(
        processor=_processor(),
        cpus=os.cpu_count() or 0,
        governor=_first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=dict(versions),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or UNKNOWN
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or UNKNOWN


def _first_line(path: Path) -> str:
    try:
        return path.read_text().strip() or UNKNOWN
    except OSError:
        return UNKNOWN
