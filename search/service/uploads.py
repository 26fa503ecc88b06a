"""Weights that come over HTTP: safetensors or a state_dict of torch.save, read as tensors and nothing else.

What is kept is a state_dict that the server wrote itself, so that no byte of the upload is ever read again.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from amc_env.weights import read_state
from search.errors import UserError

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_LONGEST_HEADER = 16 * 2**20
_EXPECTED = "expected a safetensors file, or a state_dict written by torch.save of release 1.6 or later"


class UploadError(UserError):
    """The file is not taken; the message says why."""


def convert(incoming: Path, target: Path) -> None:
    """Write the tensors of an uploaded file as a state_dict; `target` appears whole or not at all.

    Raises:
        UploadError: it holds anything but tensors, is damaged, or `target` exists.
    """
    try:
        state = _read_zip(incoming) if zipfile.is_zipfile(incoming) else read_safetensors(incoming)
    except ValueError as error:
        raise UploadError(str(error).replace(str(incoming), "the file")) from error
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".")
    try:
        with os.fdopen(handle, "wb") as stream:
            torch.save({name: tensor.clone() for name, tensor in state.items()}, stream)
        os.link(temporary, target)  # fails where another upload of the name was faster
    except FileExistsError as error:
        raise UploadError(f"there are weights {target.name} already; take another name") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file: a length, a header in JSON, then the bytes.

    Raises:
        ValueError: it is none, or damaged.
    """
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    if not (len(content) > 8 and length <= min(len(content) - 8, _LONGEST_HEADER) and content[8:9] == b"{"):
        raise ValueError(f"{_EXPECTED}; got neither")
    try:
        header = json.loads(content[8 : 8 + length])
        data = memoryview(bytearray(content[8 + length :]))
        return {name: _tensor(name, entry, data) for name, entry in header.items() if name != "__metadata__"}
    except (KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{_EXPECTED}; its header is damaged: {error}") from error


def _tensor(name: str, entry: dict[str, Any], data: memoryview) -> torch.Tensor:
    dtype, shape = _TYPES[entry["dtype"]], [int(size) for size in entry["shape"]]
    begin, end = (int(place) for place in entry["data_offsets"])
    if not (0 <= begin <= end <= len(data) and min(shape, default=1) >= 0):
        raise ValueError(f"{_EXPECTED}; tensor {name!r} lies outside the file")
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{_EXPECTED}; tensor {name!r} has {end - begin} bytes, which is not its shape {shape}")
    if begin == end:
        return torch.zeros(shape, dtype=dtype)
    return torch.frombuffer(data[begin:end], dtype=dtype).reshape(shape)


def _read_zip(path: Path) -> dict[str, torch.Tensor]:
    """Of a zip archive nothing is expanded: torch.save compresses nothing."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError(f"{_EXPECTED}; torch.save compresses nothing, this file is compressed")
    return read_state(path)
