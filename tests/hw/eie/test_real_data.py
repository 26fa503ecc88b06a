"""Real layers: AlexNet's FC8 as the authors' simulator gets it, and a SqueezeNet pruned and quantised by the authors.

AMC_EIE_DATA names the folder `data` of github.com/RalphMao/EIE-simulator, AMC_TEST_DATA a folder with
`weights/imagenet_squeezenet1_0_deep_compressed.pt` and `.json`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hw.eie.codebook import Codebook
from hw.eie.file import load_matrix, save_matrix
from hw.eie.format import EIEMatrix
from hw.eie.huffman import huffman_size
from hw.eie.layout import Layout, weight_matrix
from hw.eie.simulator import ColumnWork, simulate

EIE_DATA, DATA = os.environ.get("AMC_EIE_DATA"), os.environ.get("AMC_TEST_DATA")
needs_eie_data = pytest.mark.skipif(EIE_DATA is None, reason="AMC_EIE_DATA names no data of the authors' simulator")
needs_data = pytest.mark.skipif(DATA is None, reason="AMC_TEST_DATA names no folder of real data")

ROWS, ELEMENTS = 1000, 64


@pytest.fixture(scope="module")
def fc8() -> tuple[EIEMatrix, NDArray[np.float32]]:
    """AlexNet's FC8 with its bias as column 4096, and one input with the 1 of the bias."""
    folder = Path(EIE_DATA or "")
    pointers = [np.fromfile(folder / f"ptr/ptr{element}.dat", np.uint32) for element in range(ELEMENTS)]
    entries = np.concatenate(
        [np.fromfile(folder / f"spm/spm{element}.dat", np.uint32).reshape(-1, 2) for element in range(ELEMENTS)]
    )
    matrix = EIEMatrix(
        Layout(ROWS, len(pointers[0]) - 1, ELEMENTS),
        entries[:, 0].astype(np.uint8),
        entries[:, 1].astype(np.uint8),
        np.stack(pointers).astype(np.int32),
        Codebook(np.fromfile(folder / "arithm.dat", np.float32)),
    )
    return matrix, np.append(np.fromfile(folder / "act.dat", np.float32), np.float32(1.0))


@needs_eie_data
def test_the_authors_matrix_decodes_and_encodes_to_itself(fc8: tuple[EIEMatrix, NDArray[np.float32]]) -> None:
    matrix, _ = fc8
    again = EIEMatrix.from_codes(matrix.to_codes(), matrix.codebook, ELEMENTS)
    assert np.array_equal(again.codes, matrix.codes)
    assert np.array_equal(again.runs, matrix.runs)
    assert np.array_equal(again.pointers, matrix.pointers)
    assert np.count_nonzero(matrix.to_codes()[:, :-1]) == 1_051_032  # of 4,096,000 weights; the last column is the bias


@needs_eie_data
@pytest.mark.parametrize(("depth", "cycles"), [(2, 10194), (4, 8386), (8, 7926), (16, 7794), (64, 7794)])
def test_cycles_of_the_authors_simulator(fc8: tuple[EIEMatrix, NDArray[np.float32]], depth: int, cycles: int) -> None:
    """Their program, compiled with these queue depths, prints these numbers."""
    matrix, activations = fc8
    run = simulate(ColumnWork.of_matrix(matrix), activations, depth)
    print(f"queue {depth}: {run.cycles} cycles, the authors' {cycles}; efficiency {run.efficiency:.3f}")  # noqa: T201
    assert run.cycles == cycles


def squeezenet() -> tuple[dict[str, torch.Tensor], dict[str, dict[str, int]]]:
    """Its weights, and what the authors' file stored of each layer."""
    path = Path(DATA or "") / "weights" / "imagenet_squeezenet1_0_deep_compressed.pt"
    state = torch.load(path, weights_only=True)
    return state, json.loads(path.with_suffix(".json").read_text())


@needs_data
@pytest.mark.parametrize("elements", [1, 64])
def test_every_layer_of_a_pruned_squeezenet_returns_exactly(tmp_path: Path, elements: int) -> None:
    state, stored = squeezenet()
    dense = compressed = entropy_coded = 0
    for name, figures in stored.items():
        weights = weight_matrix(state[f"{name}.weight"].numpy())
        matrix = EIEMatrix.encode(weights, Codebook.of_values(weights), elements)
        save_matrix(matrix, tmp_path / "layer.npz")
        assert np.array_equal(load_matrix(tmp_path / "layer.npz").to_dense(), weights)
        assert matrix.size.nonzeros == figures["nnz"]
        assert len(matrix.codebook.values) == figures["codebook_used"] + 1
        dense += weights.nbytes
        compressed += matrix.size.total
        entropy_coded += matrix.size.total - matrix.size.entry_bytes + huffman_size(matrix).size_bytes
    print(f"{elements} elements: {dense:,} bytes dense, {compressed:,} stored, {entropy_coded:,} with Huffman codes")  # noqa: T201
    assert entropy_coded < compressed < dense


@needs_data
def test_a_layer_as_one_column_takes_the_entries_that_the_authors_stored() -> None:
    """Their file counts zeros on through the whole layer, with no columns to skip: the lecture's reading."""
    state, stored = squeezenet()
    for name, figures in stored.items():
        weights = state[f"{name}.weight"].numpy().reshape(-1, 1)
        matrix = EIEMatrix.encode(weights, Codebook.of_values(weights))
        assert len(matrix.codes) == figures["stored"], name
