"""How the commands end when something is wrong: one message and an exit code, no traceback."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

import click

from search.errors import UserError

#: what the extra `search` brings
_SEARCH = frozenset({"torchvision", "stable_baselines3", "cmaes", "ray", "onnx", "onnxscript", "onnxruntime"})
FAILED, USAGE, NO_FEASIBLE_POLICY, INTERRUPTED = 1, 2, 3, 130


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """Errors that a user can mend are one message and an exit code, without a traceback."""
    try:
        yield
    except (UserError, ConnectionError) as error:
        fail(error, USAGE)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _SEARCH:
            raise
        fail(f"{error}; this verb needs: pip install 'amc-search[search]'", USAGE)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)


def fail(error: object, code: int) -> NoReturn:
    """Say what is wrong, and end."""
    click.echo(f"error: {error}", err=True)
    sys.exit(code)
