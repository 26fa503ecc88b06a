"""Weights of a network as a file: a plain state_dict, read without unpickling anything else."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hw.files import write_atomically

_SAVE = "torch.save(network.state_dict(), path)"
_FIRST_BYTES = (b"P", b"\x80")  # a zip archive, or the pickle protocol of torch before 1.6
_AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a state_dict into the network, strictly: the same names and shapes. Types convert (float16 to float32).

    Two things that a network in use has no need of may differ: counters of BatchNorm's batches may be absent, as in
    files of old releases of torch, and auxiliary heads of a network built with `aux_logits=False` are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a state_dict, or one of another network.
    """
    state = read_state(path)
    if getattr(network, "aux_logits", None) is False:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(_AUXILIARY_HEADS)}
    own = network.state_dict()
    state |= {name: own[name] for name in own if name.endswith(".num_batches_tracked") and name not in state}
    missing, unexpected = [name for name in own if name not in state], [name for name in state if name not in own]
    if missing or unexpected:
        parts = [_some("missing", missing), _some("unexpected", unexpected)]
        raise ValueError(
            f"weights: {path} does not fit {type(network).__name__}: {'; '.join(filter(None, parts))}; "
            f"give the weights of this network, saved by {_SAVE}"
        )
    other = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if state[name].shape != tensor.shape
    ]
    if other:
        raise ValueError(
            f"weights: {path} does not fit {type(network).__name__}: {_some('other shapes', other)}; "
            f"check the number of classes, the depth and the width"
        )
    network.load_state_dict(state, strict=True)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write the state_dict; the file is whole or not there, also when several processes write it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    torch.save(network.state_dict(), stream)
    write_atomically(path, stream.getvalue())


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of the state_dict: names, types, shapes and bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a state_dict.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is none, or holds anything beside tensors.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights: no file {path}")
    damaged = f"weights: {path} is damaged or not a file of torch.save; save a state_dict: {_SAVE}"
    with path.open("rb") as stream:
        if stream.read(1) not in _FIRST_BYTES:
            raise ValueError(damaged)
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"weights: {path} holds more than tensors, and reading it could run code; save a state_dict: {_SAVE}"
        ) from error
    except (RuntimeError, EOFError, LookupError, OSError) as error:  # OSError: an archive that was cut short
        raise ValueError(damaged) from error
    if not isinstance(state, Mapping):
        raise ValueError(f"weights: {path}: expected a state_dict, got a {type(state).__name__}; save it by {_SAVE}")
    others = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(
            f"weights: {path}: expected a state_dict, names with tensors, got {_some('other entries', others)}; "
            f"save the state_dict alone: {_SAVE}"
        )
    return dict(state)


def _some(what: str, names: list[str]) -> str:
    """Up to three of the names, and how many there are."""
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
