"""A network with single weights removed, as it is stored: what it takes, and the files themselves.

Each pruned layer is a matrix in EIE's relative-index form (`hw.eie`): entries with 4-bit runs of zeros, padding for
longer runs, a pointer for each column. An entry holds a code into the layer's codebook, or without one a float32. All
else, biases and layers that are kept whole, is stored dense in float32, and a batch norm as a scale and a shift for
each channel, which is what is left of it when a runtime folds it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hw.eie import Codebook, EIEMatrix, huffman_size, load_matrix, save_matrix, stored_bytes, weight_matrix
from hw.files import write_atomically

Codes = Literal[16, 256]
_PATTERN = Codebook(np.array([0, 1], dtype=np.float32))
_REST = "rest.npz"


@dataclass(frozen=True)
class StorageSettings:
    """How a network with single weights removed is stored.

    Attributes:
        format: "eie", the relative-index form of EIE and Deep Compression.
        elements: processing elements over which the rows of each layer are dealt out, at least 1; 1 takes least.
        codebook: values that the weights of a layer share, 0.0 included: 16 (codes of 4 bits) or 256 (8 bits); None:
            each weight is a float32 of its own.
    """

    format: Literal["eie"] = "eie"
    elements: int = 1
    codebook: Codes | None = None

    def __post_init__(self) -> None:
        if self.format != "eie":
            raise ValueError(f"storage: format: expected eie, got {self.format!r}")
        if self.elements < 1:
            raise ValueError(f"storage: elements: expected at least 1, got {self.elements}")
        if self.codebook not in (None, 16, 256):
            raise ValueError(f"storage: codebook: expected 16, 256 or none, got {self.codebook!r}")


def layer_bytes(mask: NDArray[Any], storage: StorageSettings) -> int:
    """Bytes of a layer of which these weights stay; bool (rows, columns), or weights of which the non-zeros count."""
    if storage.codebook is not None:
        return stored_bytes(mask, storage.elements, storage.codebook).total
    size = stored_bytes(mask, storage.elements)
    entries = size.nonzeros + size.padding
    return 4 * entries + -(-entries // 2) + size.pointer_bytes


@dataclass(frozen=True)
class Stage:
    """What a network takes after one stage of compression.

    Attributes:
        name: "dense", "pruned" (float32 with relative indices), "shared" (codes in their place), or "huffman" (codes
            and runs Huffman coded: counted, not stored).
        size_bytes: of the whole network.
        layers: of each pruned layer.
    """

    name: str
    size_bytes: int
    layers: dict[str, int]


def compression_stages(network: nn.Module, layers: Sequence[str], storage: StorageSettings) -> list[Stage]:
    """What a pruned network takes after each stage: prune, share, store.

    Args:
        network: pruned, its weights shared if `storage` says so.
        layers: those that lost weights; all else is dense.
        storage: how it is stored.
    """
    matrices = {name: _matrix(network, name) for name in layers}
    parameters = sum(4 * parameter.numel() for parameter in network.parameters())
    rest = parameters - sum(4 * matrix.size for matrix in matrices.values())
    unshared = StorageSettings(elements=storage.elements)
    sizes = {
        "dense": {name: 4 * matrix.size for name, matrix in matrices.items()},
        "pruned": {name: layer_bytes(matrix, unshared) for name, matrix in matrices.items()},
    }
    if storage.codebook is not None:
        sizes["shared"] = {name: layer_bytes(matrix, storage) for name, matrix in matrices.items()}
        sizes["huffman"] = {name: _huffman_bytes(_encode(matrix, storage)) for name, matrix in matrices.items()}
    return [Stage(name, rest + sum(by_layer.values()), by_layer) for name, by_layer in sizes.items()]


def save_compressed(network: nn.Module, layers: Sequence[str], storage: StorageSettings, folder: Path) -> None:
    """Write a pruned network as it is stored into a new folder: a file for each pruned layer, and one for the rest.

    Args:
        network: pruned, in evaluation mode.
        layers, storage: as of `compression_stages`.
        folder: made here.
    """
    folder.mkdir()
    for name in layers:
        matrix = _matrix(network, name)
        if storage.codebook is not None:
            save_matrix(_encode(matrix, storage), folder / f"{name}.npz")
        else:
            _save_unshared(matrix, storage.elements, folder / f"{name}.npz")
    _save(folder / _REST, _rest(network, layers))


def load_compressed(network: nn.Module, folder: Path) -> None:
    """Give a network the weights that `save_compressed` wrote, in place, and put it into evaluation mode.

    Raises:
        ValueError: a file is damaged, or of another network.
        FileNotFoundError: a file is missing.
    """
    with np.load(folder / _REST, allow_pickle=False) as arrays:
        rest = dict(arrays)
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


def _matrix(network: nn.Module, layer: str) -> NDArray[np.float32]:
    return weight_matrix(network.get_parameter(f"{layer}.weight").detach().cpu().contiguous().numpy())


def _encode(matrix: NDArray[np.float32], storage: StorageSettings) -> EIEMatrix:
    """With a codebook of exactly as many entries as the storage says: the last value fills it up."""
    if storage.codebook is None:
        raise ValueError("storage: expected a codebook of 16 or 256 entries, got none")
    found = Codebook.of_values(matrix).values
    if len(found) > storage.codebook:
        raise ValueError(
            f"storage: expected at most {storage.codebook - 1} distinct weights in a layer, got "
            f"{len(found) - 1}; share them first"
        )
    full = Codebook(np.pad(found, (0, storage.codebook - len(found)), mode="edge"))
    return EIEMatrix.from_codes(Codebook(found).codes(matrix), full, storage.elements)


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
    _save(path, arrays)


def _load_layer(path: Path) -> NDArray[np.float32]:
    """The weights of a layer, float32 (rows, columns)."""
    with np.load(path, allow_pickle=False) as arrays:
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


def _save(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    write_atomically(path, stream.getvalue())
