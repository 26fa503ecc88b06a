"""Runtimes: how a network is executed when it is timed."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from hw.runtimes.base import NetworkFamily, ProfiledNetwork, Runtime, RuntimeUnavailableError
from hw.runtimes.onnx_runtime import OnnxRuntime
from hw.runtimes.torch_runtimes import TorchCompile, TorchCuda, TorchEager

__all__ = ["RUNTIMES", "NetworkFamily", "ProfiledNetwork", "Runtime", "RuntimeUnavailableError", "find_runtime"]

#: by the name that a spec uses: made from the number of threads
RUNTIMES: Mapping[str, Callable[[int], Runtime]] = {
    runtime.name: runtime for runtime in (OnnxRuntime, TorchEager, TorchCompile, TorchCuda)
}


def find_runtime(name: str, threads: int = 1) -> Runtime:
    """A runtime by its name.

    Raises:
        ValueError: there is none of that name.
        RuntimeUnavailableError: it cannot be used on this machine.
    """
    if name not in RUNTIMES:
        close = difflib.get_close_matches(name, RUNTIMES, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"runtime: expected one of {', '.join(RUNTIMES)}, got {name!r}{hint}")
    return RUNTIMES[name](threads)
