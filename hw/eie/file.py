"""A matrix in EIE's form as a file: an npz of plain arrays, which hold exactly the bytes that `StoredSize` counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.eie.codebook import Codebook
from hw.eie.format import EIEMatrix
from hw.eie.layout import Layout
from hw.eie.sizes import pointer_type
from hw.files import read_npz, write_npz

_NAMES = ("size", "entries", "pointers", "codebook")


def save_matrix(matrix: EIEMatrix, path: Path) -> None:
    """Write the file whole or not at all.

    `size` is rows, columns, elements and entries. `entries` are bytes of two halves, the lower first: code and run of
    an entry if codes have 4 bits; else all codes as bytes, and then the runs, two to a byte.
    """
    layout = matrix.layout
    if matrix.codebook.code_bits == 4:
        entries = _packed(np.stack([matrix.codes, matrix.runs], axis=1).reshape(-1))
    else:
        entries = np.concatenate([matrix.codes, _packed(matrix.runs)])
    arrays: dict[str, NDArray[Any]] = {
        "size": np.array([layout.rows, layout.columns, layout.elements, len(matrix.codes)], np.int64),
        "entries": entries,
        "pointers": matrix.pointers.astype(pointer_type(int(matrix.pointers[:, -1].max()))),
        "codebook": matrix.codebook.values,
    }
    write_npz(path, arrays)


def load_matrix(path: Path) -> EIEMatrix:
    """Read what `save_matrix` wrote.

    Raises:
        ValueError: the file is damaged or holds something else; names the file and what is wrong with it.
    """
    try:
        arrays = _arrays(path)
        return _matrix(arrays)
    except ValueError as error:
        raise ValueError(f"{path}: no matrix in EIE's form, or a damaged one: {error}") from error


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    arrays = read_npz(path)
    if sorted(arrays) != sorted(_NAMES):
        raise ValueError(f"expected the arrays {', '.join(_NAMES)}, got {', '.join(sorted(arrays)) or 'none'}")
    return arrays


def _matrix(arrays: dict[str, NDArray[Any]]) -> EIEMatrix:
    size, entries, pointers = arrays["size"], arrays["entries"], arrays["pointers"]
    if size.shape != (4,) or size.dtype != np.int64 or entries.dtype != np.uint8 or entries.ndim != 1:
        raise ValueError(
            f"expected four numbers as size and bytes as entries, got {size.dtype} {size.shape} and {entries.dtype} "
            f"{entries.shape}"
        )
    if pointers.dtype not in (np.uint16, np.uint32):
        raise ValueError(f"expected pointers of uint16 or uint32, got {pointers.dtype}")
    codebook = Codebook(arrays["codebook"])
    rows, columns, elements, count = size.tolist()
    stored = count if codebook.code_bits == 4 else count + -(-count // 2)
    if len(entries) != stored:
        raise ValueError(f"expected {stored} bytes for {count} entries, got {len(entries)}")
    if codebook.code_bits == 4:
        codes, runs = _halves(entries).T
    else:
        codes, runs = entries[:count], _halves(entries[count:]).reshape(-1)[:count]
    return EIEMatrix(Layout(rows, columns, elements), codes, runs, pointers.astype(np.int32), codebook)


def _packed(halves: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Numbers 0 to 15 two to a byte, the first in the lower half; an odd last one alone."""
    even = np.append(halves, np.uint8(0)) if len(halves) % 2 else halves
    return even[::2] | even[1::2] << np.uint8(4)


def _halves(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The two numbers of each byte, uint8 (bytes, 2)."""
    return np.stack([packed & np.uint8(15), packed >> np.uint8(4)], axis=1)
