"""Files of matrices: exactly the bytes that are counted, read back exactly, and refused when damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hw.eie.codebook import Codebook
from hw.eie.file import load_matrix, save_matrix
from hw.eie.format import EIEMatrix
from tests.hw.eie.matrices import BOOK, code_matrices


def same(first: EIEMatrix, second: EIEMatrix) -> bool:
    return (
        first.layout == second.layout
        and np.array_equal(first.codes, second.codes)
        and np.array_equal(first.runs, second.runs)
        and np.array_equal(first.pointers, second.pointers)
        and np.array_equal(first.codebook.values, second.codebook.values)
    )


@given(code_matrices(most_rows=40))
def test_a_matrix_returns_and_takes_the_bytes_that_are_counted(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[NDArray[np.uint8], Codebook, int]
) -> None:
    path = tmp_path_factory.mktemp("matrix") / "matrix.npz"
    matrix = EIEMatrix.from_codes(*case)
    save_matrix(matrix, path)
    assert same(load_matrix(path), matrix)
    with np.load(path, allow_pickle=False) as arrays:
        stored = {name: arrays[name].nbytes for name in arrays.files}
    size = matrix.size
    assert (stored["entries"], stored["pointers"], stored["codebook"]) == (
        size.entry_bytes, size.pointer_bytes, size.codebook_bytes
    )  # fmt: skip


def example(path: Path) -> EIEMatrix:
    codes = np.zeros((40, 3), np.uint8)
    codes[[0, 20, 39, 7], [0, 0, 1, 2]] = [3, 4, 5, 6]
    matrix = EIEMatrix.from_codes(codes, BOOK, 2)
    save_matrix(matrix, path)
    return matrix


@given(st.data())
def test_no_damaged_byte_goes_unseen(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A byte of the file changed, or its end cut off: refused, or it did not matter to what was stored."""
    path = tmp_path_factory.mktemp("matrix") / "matrix.npz"
    matrix = example(path)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[at:]
    path.write_bytes(bytes(content))
    try:
        unharmed = same(load_matrix(path), matrix)
    except ValueError as error:
        unharmed = str(error).startswith(f"{path}: no matrix in EIE's form, or a damaged one: ")
    assert unharmed


def resaved(path: Path, **changes: Any) -> None:
    """The example with some of its arrays changed; None takes one away."""
    example(path)
    with np.load(path) as loaded:
        arrays = {name: loaded[name] for name in loaded.files} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"runs": np.zeros(1)}, "expected the arrays size, entries, pointers, codebook, got codebook, entries, "
                                "pointers, runs, size"),
        ({"entries": None}, "expected the arrays size, entries, pointers, codebook, got codebook, pointers, size"),
        ({"size": np.zeros(3, np.int64)}, r"expected four numbers as size and bytes as entries, got int64 \(3,\) and "
                                          r"uint8 \(5,\)"),
        ({"pointers": np.zeros((2, 4), np.int32)}, "expected pointers of uint16 or uint32, got int32"),
        ({"entries": np.zeros(6, np.uint8)}, "expected 5 bytes for 5 entries, got 6"),
        ({"size": np.array([0, 3, 2, 5])}, "expected at least one row, column and element, got 0 rows, 3 columns, 2 "
                                           "elements"),
        ({"codebook": np.ones(2, np.float32)}, r"codebook: expected finite values and 0.0 as entry 0, got \[1.0, "
                                               r"1.0\]"),
        ({"codebook": np.array([None])}, "Object arrays cannot be loaded when allow_pickle=False"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "matrix.npz"
    resaved(path, **changes)
    with pytest.raises(ValueError, match=f"matrix.npz: no matrix in EIE's form, or a damaged one: {said}$"):
        load_matrix(path)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04"])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "matrix.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"matrix\.npz: no matrix in EIE's form, or a damaged one: "):
        load_matrix(path)


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"array\.npy: no matrix in EIE's form, or a damaged one: not a zip archive$"):
        load_matrix(tmp_path / "array.npy")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        load_matrix(tmp_path / "nothing.npz")
