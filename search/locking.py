"""File locks: who holds one is alive, since the system releases it with the process."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO


def acquire(file: IO[bytes], patience_s: float) -> bool:
    """Lock an open file for this process alone, waiting up to `patience_s` seconds; False if another one keeps it."""
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.1)
        else:
            return True


@contextlib.contextmanager
def locked(folder: Path, refusal: Exception) -> Iterator[None]:
    """Keep `lock` in a folder locked for this process; raises `refusal` if another one keeps it."""
    with (folder / "lock").open("ab") as file:
        if not acquire(file, 1.0):
            raise refusal
        yield


def held(path: Path) -> bool:
    """Whether another process has locked the file. Those who ask do so by a shared lock, and do not see each other."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
