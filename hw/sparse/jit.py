"""Compiling for the processor at hand: numba with types that mypy knows, and what the processor offers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic as _intrinsic

_MOST_THREADS = int(numba.config.NUMBA_NUM_THREADS)
_FILES = sorted(Path(__file__).parent.glob("*.py"))
_SOURCES = hashlib.sha256(b"".join(file.read_bytes() for file in _FILES)).hexdigest()
Function = TypeVar("Function", bound=Callable[..., Any])


class _Cache(FunctionCache):  # type: ignore[misc]
    """Compiled functions on disk (`__pycache__`, or NUMBA_CACHE_DIR), good until any file beside this one changes.

    numba's own cache looks at the function's file only, and so misses a change in what the function calls.
    """

    def _index_key(self, signature: Any, codegen: Any) -> Any:
        return *super()._index_key(signature, codegen), _SOURCES


def _kept(dispatcher: Any) -> Any:
    dispatcher._cache = _Cache(dispatcher.py_func)  # what `cache=True` does, with numba's own
    return dispatcher


def compiled(function: Function) -> Function:
    """Compile on the first call, keep the result on disk, and release the interpreter's lock while it runs."""
    return cast(Function, _kept(numba.njit(nogil=True, error_model="numpy")(function)))


def parallel(function: Function) -> Function:
    """As `compiled`, with loops over `prange` shared out among threads."""
    return cast(Function, _kept(numba.njit(nogil=True, error_model="numpy", parallel=True)(function)))


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that compiled code calls, without the first argument, and that writes its own LLVM instructions."""
    return cast(Callable[..., Any], _intrinsic(prefer_literal=True)(function))


def has_avx512(context: Any) -> bool:
    """Whether the processor that numba compiles for has AVX-512 (F is enough); NUMBA_CPU_FEATURES may deny it."""
    _, _, features = context.codegen().magic_tuple()
    return "+avx512f" in features.split(",")


def check_threads(threads: int) -> int:
    """The number itself, if that many threads can run.

    Raises:
        ValueError: it is below 1, or above what numba started with.
    """
    if not 1 <= threads <= _MOST_THREADS:
        raise ValueError(
            f"threads: expected 1 to {_MOST_THREADS}, got {threads}; numba takes the limit from the CPUs it sees "
            f"when it is imported, or from the variable NUMBA_NUM_THREADS"
        )
    return threads


@compiled
def signed(number: int) -> int:
    """A counter of `prange`, which is unsigned, as the integer that other functions are compiled for."""
    return int(np.int64(number))


@intrinsic
def use_threads(typing: Any, threads: Any) -> Any:
    """Let loops over `prange` that this thread starts run on so many threads; returns how many it was before.

    numba's own `set_num_threads` does the same, but code that contains it cannot be kept on disk.
    """

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        index, number = context.get_value_type(types.intp), ir.IntType(32)
        getter = cgutils.get_or_insert_function(builder.module, ir.FunctionType(index, []), "get_num_threads")
        setter_type = ir.FunctionType(ir.VoidType(), [number])
        setter = cgutils.get_or_insert_function(builder.module, setter_type, "set_num_threads")
        before = builder.call(getter, [])
        builder.call(setter, [builder.trunc(arguments[0], number)])
        return before

    return types.intp(types.intp), write
