"""Files that are there whole or not at all, and arrays in them."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all: a temporary file beside it, synced, then renamed over it; text as UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_npz(path: Path, arrays: Mapping[str, NDArray[Any]], *, compressed: bool = False) -> None:
    """Write arrays as an .npz file, whole or not at all."""
    stream = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(stream, allow_pickle=False, **arrays)
    write_atomically(path, stream.getvalue())


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz file; nothing is unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no .npz file of plain arrays, or damaged; the message says in what way, and names no file.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("not a zip archive")
        file.seek(0)
        try:
            with np.load(file, allow_pickle=False) as archive:
                return dict(archive)
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:  # as zipfile raises them
            raise ValueError(str(error)) from error
