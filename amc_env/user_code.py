"""Functions of the user's, named as "module:function"."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def import_function(key: str, target: str, folder: Path | None = None) -> Callable[..., Any]:
    """The function that `target` names.

    Args:
        key: what errors call the target: the key of the spec that holds it.
        target: "module:function".
        folder: where modules are looked for first; the current directory by default. It stays on `sys.path`.

    Raises:
        ValueError: the target is malformed, or there is no such module or function.
    """
    module_name, colon, function_name = target.partition(":")
    if not (module_name and colon and function_name):
        raise ValueError(f"{key}: expected module:function, got {target!r}")
    search_path = str(folder or Path.cwd())
    if search_path not in sys.path:
        sys.path.insert(0, search_path)
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise ValueError(
            f"{key}: cannot import {module_name!r} ({type(error).__name__}: {error}); "
            f"looked in {search_path} and the installed packages"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        close = difflib.get_close_matches(function_name, dir(module), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{key}: module {module_name!r} has no function {function_name!r}{hint}")
    found: Callable[..., Any] = function
    return found
