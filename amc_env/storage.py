"""A network with single weights removed, as it is stored: what it takes, and the files themselves.

A pruned layer is a matrix in EIE's relative-index form (`hw.eie`): entries with 4-bit runs of zeros, padding for longer
runs, a pointer for each column; or it is stored as its pattern allows (`amc_env.pattern_storage`): one bit for each
unit, or N:M's indices. An entry holds a code into the layer's codebook, or without one a float32. All else, biases and
layers that are kept whole, is stored dense in float32, and a batch norm as a scale and a shift for each channel, which
is what is left of it when a runtime folds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.pattern_storage import pattern_arrays, pattern_bytes, pattern_weight
from amc_env.pruning.patterns import FINE_GRAINED, Pattern
from hw.eie import Codebook, EIEMatrix, huffman_size, load_matrix, save_matrix, stored_bytes, weight_matrix
from hw.files import read_npz, write_npz

Codes = Literal[16, 256]
Format = Literal["eie", "pattern"]
_PATTERN = Codebook(np.array([0, 1], dtype=np.float32))
_REST = "rest.npz"


@dataclass(frozen=True)
class StorageSettings:
    """How a network with single weights removed is stored.

    Attributes:
        format: "eie", the relative-index form of EIE and Deep Compression; or "pattern", a bit for each unit of the
            pattern, and N:M by its indices.
        elements: of "eie": processing elements over which the rows of each layer are dealt out, at least 1; 1 takes
            least.
        codebook: values that the weights of a layer share, 0.0 included: 16 (codes of 4 bits) or 256 (8 bits); None:
            each weight is a float32 of its own.
    """

    format: Format = "eie"
    elements: int = 1
    codebook: Codes | None = None

    def __post_init__(self) -> None:
        if self.format not in get_args(Format):
            raise ValueError(f"storage: format: expected one of {', '.join(get_args(Format))}, got {self.format!r}")
        if self.elements < 1:
            raise ValueError(f"storage: elements: expected at least 1, got {self.elements}")
        if self.elements > 1 and self.format != "eie":
            raise ValueError(f"storage: elements: of format eie only, got {self.elements} with {self.format}")
        if self.codebook not in (None, 16, 256):
            raise ValueError(f"storage: codebook: expected 16, 256 or none, got {self.codebook!r}")


def layer_bytes(mask: NDArray[Any], storage: StorageSettings, pattern: Pattern = FINE_GRAINED) -> int:
    """Bytes of a layer of which these weights stay.

    Args:
        mask: of the weight's shape, bool, or weights of which the non-zeros count.
        storage: how it is stored.
        pattern: that the mask has; it matters for its own format only.
    """
    if storage.format == "pattern":
        return pattern_bytes(mask, pattern, storage.codebook)
    mask = weight_matrix(mask)
    if storage.codebook is not None:
        return stored_bytes(mask, storage.elements, storage.codebook).total
    size = stored_bytes(mask, storage.elements)
    entries = size.nonzeros + size.padding
    return 4 * entries + -(-entries // 2) + size.pointer_bytes


@dataclass(frozen=True)
class Stage:
    """What a network takes after one stage of compression.

    Attributes:
        name: "dense", "pruned" (float32 with what tells where they are), "shared" (codes in their place), or
            "huffman" (of EIE's form, codes and runs Huffman coded: counted, not stored).
        size_bytes: of the whole network.
        layers: of each pruned layer.
    """

    name: str
    size_bytes: int
    layers: dict[str, int]


def compression_stages(
    network: nn.Module, layers: Sequence[str], storage: StorageSettings, pattern: Pattern = FINE_GRAINED
) -> list[Stage]:
    """What a pruned network takes after each stage: prune, share, store.

    Args:
        network: pruned, its weights shared if `storage` says so.
        layers: those that lost weights; all else is dense.
        storage: how it is stored.
        pattern: by which the layers were pruned.
    """
    weights = {name: _weight(network, name) for name in layers}
    parameters = sum(4 * parameter.numel() for parameter in network.parameters())
    rest = parameters - sum(4 * weight.size for weight in weights.values())
    unshared = replace(storage, codebook=None)
    sizes = {
        "dense": {name: 4 * weight.size for name, weight in weights.items()},
        "pruned": {name: layer_bytes(weight, unshared, pattern) for name, weight in weights.items()},
    }
    if storage.codebook is not None:
        sizes["shared"] = {name: layer_bytes(weight, storage, pattern) for name, weight in weights.items()}
    if storage.codebook is not None and storage.format == "eie":
        sizes["huffman"] = {
            name: _huffman_bytes(_encode(weight_matrix(weight), storage)) for name, weight in weights.items()
        }
    return [Stage(name, rest + sum(by_layer.values()), by_layer) for name, by_layer in sizes.items()]


def save_compressed(
    network: nn.Module,
    layers: Sequence[str],
    storage: StorageSettings,
    folder: Path,
    pattern: Pattern = FINE_GRAINED,
) -> None:
    """Write a pruned network as it is stored into a new folder: a file for each pruned layer, and one for the rest.

    Args:
        network: pruned, in evaluation mode.
        layers, storage, pattern: as of `compression_stages`.
        folder: made here.
    """
    folder.mkdir()
    for name in layers:
        weight, path = _weight(network, name), folder / f"{name}.npz"
        if storage.format == "pattern":
            codebook = None if storage.codebook is None else _codebooks(weight, storage.codebook)[1]
            write_npz(path, pattern_arrays(weight, pattern, codebook))
        elif storage.codebook is not None:
            save_matrix(_encode(weight_matrix(weight), storage), path)
        else:
            _save_unshared(weight_matrix(weight), storage.elements, path)
    write_npz(folder / _REST, _rest(network, layers))


def load_compressed(network: nn.Module, folder: Path) -> None:
    """Give a network the weights that `save_compressed` wrote, in place, and put it into evaluation mode.

    Raises:
        ValueError: a file is damaged, or of another network.
        FileNotFoundError: a file is missing.
    """
    rest = _load(folder / _REST)
    norms = {f"{name}.": norm for name, norm in _norms(network).items()}
    layers = [
        name.removesuffix(".weight")
        for name, parameter in network.named_parameters()
        if name not in rest and not name.startswith(tuple(norms))
    ]
    with torch.no_grad():
        for name in layers:
            weight = network.get_parameter(f"{name}.weight")
            matrix = _load_layer(folder / f"{name}.npz")
            if matrix.size != weight.numel():
                raise ValueError(f"{folder / name}.npz: expected {weight.numel()} weights, got {matrix.size}")
            weight.copy_(torch.from_numpy(matrix).reshape(weight.shape))
        for name, tensor in network.state_dict(keep_vars=True).items():
            if name in rest:
                tensor.copy_(torch.from_numpy(rest[name]))
        for prefix, norm in norms.items():
            _unfold(norm, rest[f"{prefix}scale"], rest[f"{prefix}shift"])
    network.eval()


def _weight(network: nn.Module, layer: str) -> NDArray[np.float32]:
    weight: NDArray[np.float32] = network.get_parameter(f"{layer}.weight").detach().cpu().contiguous().numpy()
    return weight


def _encode(matrix: NDArray[np.float32], storage: StorageSettings) -> EIEMatrix:
    if storage.codebook is None:
        raise ValueError("storage: expected a codebook of 16 or 256 entries, got none")
    found, full = _codebooks(matrix, storage.codebook)
    return EIEMatrix.from_codes(found.codes(matrix), full, storage.elements)


def _codebooks(weight: NDArray[np.float32], entries: int) -> tuple[Codebook, Codebook]:
    """The values of a layer, and the same with exactly so many entries: the last value fills it up."""
    found = Codebook.of_values(weight)
    if len(found.values) > entries:
        raise ValueError(
            f"storage: expected at most {entries - 1} distinct weights in a layer, got {len(found.values) - 1}; share "
            f"them first"
        )
    return found, Codebook(np.pad(found.values, (0, entries - len(found.values)), mode="edge"))


def _huffman_bytes(matrix: EIEMatrix) -> int:
    return huffman_size(matrix).size_bytes + matrix.size.pointer_bytes + matrix.size.codebook_bytes


def _save_unshared(matrix: NDArray[np.float32], elements: int, path: Path) -> None:
    pattern = EIEMatrix.encode((matrix != 0).astype(np.float32), _PATTERN, elements)
    runs = np.append(pattern.runs, np.zeros(len(pattern.runs) % 2, np.uint8))
    pointers = pattern.pointers.astype(np.uint16 if pattern.size.pointer_bytes == 2 * pattern.pointers.size else "u4")
    arrays = {
        "size": np.array([*matrix.shape, elements]),
        "values": pattern.layout.arrange(matrix)[pattern.positions()],
        "runs": runs[::2] | runs[1::2] << 4,
        "pointers": pointers,
    }
    write_npz(path, arrays)


def _load_layer(path: Path) -> NDArray[np.float32]:
    """The weights of a layer, float32 in their own shape or as a matrix (rows, columns)."""
    arrays = _load(path)
    if "bits" in arrays or "indices" in arrays:
        return pattern_weight(arrays)
    if "values" not in arrays:
        return load_matrix(path).to_dense()
    values, packed, pointers = arrays["values"], arrays["runs"], arrays["pointers"]
    rows, columns, elements = arrays["size"].tolist()
    runs = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[: len(values)]
    base = EIEMatrix.encode(np.zeros((rows, columns), np.float32), _PATTERN, elements)
    pattern = EIEMatrix(base.layout, (values != 0).astype(np.uint8), runs, pointers.astype(np.int32), _PATTERN)
    dense = np.zeros((rows, columns), np.float32)
    dense[pattern.layout.places(pattern.positions())] = values
    return dense


def _rest(network: nn.Module, layers: Sequence[str]) -> dict[str, NDArray[Any]]:
    """All that is stored dense, float32: parameters and buffers by name, a batch norm as scale and shift."""
    norms = _norms(network)
    arrays = {
        name: tensor.detach().cpu().numpy()
        for name, tensor in network.state_dict().items()
        if name.rpartition(".")[0] not in norms and name not in {f"{layer}.weight" for layer in layers}
    }
    for name, norm in norms.items():
        scale = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        arrays[f"{name}.scale"] = scale.cpu().numpy()
        arrays[f"{name}.shift"] = (norm.bias.detach() - norm.running_mean * scale).cpu().numpy()
    return arrays


def _norms(network: nn.Module) -> dict[str, Any]:
    """Batch norms that have weights and statistics, by name."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine and module.track_running_stats
    }


def _unfold(norm: Any, scale: NDArray[np.float32], shift: NDArray[np.float32]) -> None:
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0)
    norm.weight.copy_(torch.from_numpy(scale) * (1.0 + norm.eps) ** 0.5)
    norm.bias.copy_(torch.from_numpy(shift))


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return read_npz(path)
    except ValueError as error:
        raise ValueError(f"{path}: expected what `save_compressed` wrote: {error}") from error
