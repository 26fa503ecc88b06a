"""Loops over single numbers, compiled by numba when they are first called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compiled for one thread; the machine code is kept beside the module."""
    return cast(Function, numba.njit(cache=True)(function))


def compiled_parallel(function: Function) -> Function:
    """As `compiled`, with the rounds of `numba.prange` on all threads."""
    return cast(Function, numba.njit(cache=True, parallel=True)(function))
