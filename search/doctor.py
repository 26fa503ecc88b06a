"""Is this installation able to run a job? Each check says what it found, or what is wrong and what to do."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_PACKAGES = ("agents", "search", "hw", "amc_env")
_DISTRIBUTION = "amc-search"
_LIBRARIES = ("torch", "torchvision", "gymnasium", "stable-baselines3", "ray", "pydantic", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    check: str
    good: bool
    detail: str


def diagnose() -> Iterator[Finding]:
    """All checks, one after the other; the last one starts a Ray and takes some seconds."""
    checks: dict[str, Callable[[], str]] = {
        "python": _python,
        "versions": _versions,
        "package names": _package_names,
        "torch and torchvision": _torch_and_torchvision,
        "CPUs": _cpus,
        "cache folder": _cache_folder,
        "local Ray": _local_ray,
    }
    for name, check in checks.items():
        try:
            yield Finding(name, True, check())
        except Exception as error:  # noqa: BLE001 - whatever a broken installation raises is the finding
            yield Finding(name, False, f"{type(error).__name__}: {error}")


def _python() -> str:
    if sys.version_info < (3, 11):  # noqa: UP036 - the doctor is for those who got round the installer
        raise RuntimeError(f"expected Python 3.11 or newer, got {sys.version.split()[0]}")
    return sys.version.split()[0]


def _versions() -> str:
    return ", ".join(f"{name} {metadata.version(name)}" for name in (_DISTRIBUTION, *_LIBRARIES))


def _package_names() -> str:
    owners = metadata.packages_distributions()
    for package in _PACKAGES:
        others = sorted(set(owners.get(package, [])) - {_DISTRIBUTION})
        if others:
            raise RuntimeError(
                f"the package {package!r} is also installed by {', '.join(others)}; "
                f"install {_DISTRIBUTION} into a virtual environment of its own"
            )
    places = {str(Path(str(importlib.import_module(package).__file__)).parents[1]) for package in _PACKAGES}
    if len(places) > 1:
        raise RuntimeError(f"{', '.join(_PACKAGES)} are imported from several places: {', '.join(sorted(places))}")
    return f"{', '.join(_PACKAGES)} from {places.pop()}"


def _torch_and_torchvision() -> str:
    import torch

    importlib.import_module("torchvision")
    return f"import together, {'with' if torch.cuda.is_available() else 'without'} CUDA"


def _cpus() -> str:
    from search.machine import available_cpus

    return f"{available_cpus()} for trials"


def _cache_folder() -> str:
    from amc_env.cache import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return f"{folder} can be written"
    except OSError as error:
        raise RuntimeError(f"{folder} cannot be written ({error.strerror}); set AMC_CACHE to one that can") from error


def _local_ray() -> str:
    from search.machine import set_ray_environment

    set_ray_environment(None)
    from search.tuner import check_local_ray

    return f"{check_local_ray()} starts and ends"
