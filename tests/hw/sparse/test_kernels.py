"""Each kernel against a dense product in double precision, on matrices that go wrong easily."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hw.sparse import BatchMatrix, ColumnMatrix, LaneMatrix, SparseRows, interleaved_matvec
from hw.sparse.panels import TiledRows
from hw.sparse.rows import SHARED_VALUES

FloatArray = NDArray[np.float32]
#: largest difference, in units of the sum of the absolute products: float32 has 24 bits, sums add a few
TOLERANCE = 1e-6
SHARED = np.linspace(-1.5, 2.0, SHARED_VALUES, dtype=np.float32)


def sparse(rows: int, columns: int, density: float, *, shared: bool, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    values = rng.choice(SHARED, (rows, columns)) if shared else rng.standard_normal((rows, columns))
    return np.where(rng.random((rows, columns)) < density, values, 0).astype(np.float32)


def uneven(shared: bool) -> FloatArray:
    """Full rows beside empty ones, full columns beside empty ones, both borders in use."""
    weight = sparse(61, 333, 0.05, shared=shared)
    weight[7], weight[8:24], weight[:, 100], weight[:, 101:140] = SHARED[3], 0, SHARED[4], 0
    weight[0, 0] = weight[60, 332] = SHARED[5]
    return weight


MATRICES = {
    "9 %": lambda shared: sparse(200, 500, 0.09, shared=shared),
    "25 %": lambda shared: sparse(70, 300, 0.25, shared=shared),
    "dense": lambda shared: sparse(40, 50, 1.0, shared=shared),
    "far apart": lambda shared: sparse(33, 3000, 0.002, shared=shared),
    "uneven": uneven,
    "all zero": lambda shared: np.zeros((20, 30), np.float32),
    "one row": lambda shared: sparse(1, 70, 0.3, shared=shared),
    "one column": lambda shared: sparse(70, 1, 0.3, shared=shared),
    "one weight": lambda shared: np.full((1, 1), 2.0, np.float32),
    "no columns": lambda shared: np.zeros((5, 0), np.float32),
    "no rows": lambda shared: np.zeros((0, 5), np.float32),
}
cases = pytest.mark.parametrize(
    ("make", "shared"),
    [
        pytest.param(make, shared, id=f"{name}, shared={shared}")
        for name, make in MATRICES.items()
        for shared in (True, False)
    ],
)
threads = pytest.mark.parametrize("threads", [1, 2])


def assert_product(actual: FloatArray, weight: FloatArray, x: FloatArray, bias: FloatArray | None) -> None:
    """`actual` is x W^T + bias, but for rounding; x float32 (columns,) or (batch, columns)."""
    shift = np.zeros(len(weight)) if bias is None else np.asarray(bias, np.float64)
    expected = x.astype(np.float64) @ weight.T.astype(np.float64) + shift
    scale = np.abs(x).astype(np.float64) @ np.abs(weight.T).astype(np.float64) + np.abs(shift)
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    assert np.all(np.abs(actual - expected) <= TOLERANCE * scale)


def activations(columns: int, density: float = 0.4, seed: int = 1) -> FloatArray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(columns) < density, rng.standard_normal(columns), 0).astype(np.float32)


def check_vectors(matrix: LaneMatrix | ColumnMatrix, weight: FloatArray, threads: int) -> None:
    rows, columns = weight.shape
    bias = activations(rows, 1.0, seed=2)
    for x in (activations(columns), activations(columns, 1.0), np.zeros(columns, np.float32)):
        assert_product(matrix.matvec(x, bias, threads=threads), weight, x, bias)
    assert_product(matrix.matvec(activations(columns), threads=threads), weight, activations(columns), None)


@cases
@threads
@pytest.mark.parametrize("layout", [LaneMatrix, ColumnMatrix])
def test_one_vector(
    layout: type[LaneMatrix | ColumnMatrix], make: Callable[[bool], FloatArray], shared: bool, threads: int
) -> None:
    weight = make(shared)
    check_vectors(layout.pack(SparseRows.from_dense(weight)), weight, threads)


@pytest.mark.parametrize("layout", [LaneMatrix, ColumnMatrix])
def test_shared_values_may_be_stored_one_by_one(layout: type[LaneMatrix | ColumnMatrix]) -> None:
    weight = sparse(50, 60, 0.2, shared=True)
    codes = layout.pack(SparseRows.from_dense(weight))
    floats = layout.pack(SparseRows.from_dense(weight), shared=False)
    assert codes.size_bytes < floats.size_bytes
    check_vectors(floats, weight, 1)


@pytest.mark.parametrize("layout", [LaneMatrix, ColumnMatrix])
def test_many_values_cannot_be_shared(layout: type[LaneMatrix | ColumnMatrix]) -> None:
    matrix = SparseRows.from_dense(sparse(50, 60, 0.2, shared=False))
    with pytest.raises(ValueError, match="expected at most 15 different non-zero values, got more; share them first"):
        layout.pack(matrix, shared=True)


@cases
@pytest.mark.parametrize("batch", [0, 1, 16, 17, 64, 100])
def test_a_batch(make: Callable[[bool], FloatArray], shared: bool, batch: int) -> None:
    weight = make(shared)
    rows, columns = weight.shape
    rng = np.random.default_rng(3)
    x, bias = rng.standard_normal((batch, columns)).astype(np.float32), activations(rows, 1.0)
    matrix = BatchMatrix.pack(SparseRows.from_dense(weight))
    for threads in (1, 2):
        assert_product(matrix.matmul(x, bias, threads=threads), weight, x, bias)


@pytest.mark.parametrize("columns_per_tile", [1, 7, 1000])
def test_tiles_of_any_width(columns_per_tile: int) -> None:
    weight, x = sparse(30, 90, 0.2, shared=False), activations(40 * 90).reshape(40, 90)
    matrix = BatchMatrix.pack(SparseRows.from_dense(weight), columns_per_tile=columns_per_tile)
    assert_product(matrix.matmul(x), weight, x, None)


def test_offsets_too_far_apart() -> None:
    offsets = np.array([0, 1, 70_000], np.int64)
    matrix = SparseRows.from_dense(np.ones((1, 3), np.float32))
    assert TiledRows.pack(matrix, 2, offsets).bases.tolist() == [0, 16 * 70_000]
    with pytest.raises(ValueError, match="expected offsets up to 65535 in a tile, got 70000; use smaller tiles"):
        TiledRows.pack(matrix, 3, offsets)


def test_more_columns_than_16_bits_count() -> None:
    weight = np.zeros((3, 70_000), np.float32)
    weight[0, 69_999], weight[1, 5], weight[2, ::1000] = 2.0, -1.0, 0.5
    x = activations(2 * 70_000).reshape(2, 70_000)
    matrix = SparseRows.from_dense(weight)
    assert_product(BatchMatrix.pack(matrix).matmul(x), weight, x, None)
    assert_product(LaneMatrix.pack(matrix).matvec(x[0]), weight, x[0], None)
    tall = SparseRows.from_dense(weight.T)
    assert_product(ColumnMatrix.pack(tall).matvec(x[0, :3]), weight.T, x[0, :3], None)


def test_too_many_columns_for_lanes() -> None:
    empty = SparseRows((1, 131_073), np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="expected at most 131072 columns, got 131073"):
        LaneMatrix.pack(empty)


def in_bytes(weight: FloatArray, elements: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], FloatArray]:
    """Entries and starts as [EIE] stores them, by the plainest loop; and the codebook."""
    codebook = np.concatenate([[0], SHARED]).astype(np.float32)
    entries, starts = [], [0]
    for element in range(elements):
        for column in weight[element::elements].T:
            zeros = 0
            for value in column:
                if value == 0:
                    zeros += 1
                    continue
                while zeros > 15:
                    entries.append(16 * 15)
                    zeros -= 16
                entries.append(16 * zeros + int(np.flatnonzero(codebook[1:] == value)[0]) + 1)
                zeros = 0
            starts.append(len(entries))
    return np.array(entries, np.uint8), np.array(starts), codebook


@threads
@pytest.mark.parametrize("elements", [1, 4, 64])
def test_bytes_of_eie(elements: int, threads: int) -> None:
    weight = uneven(shared=True)
    entries, starts, codebook = in_bytes(weight, elements)
    x, bias = activations(weight.shape[1]), activations(len(weight), 1.0)
    y = interleaved_matvec(entries, starts, codebook, weight.shape, x, bias, threads=threads)
    assert_product(y, weight, x, bias)


def test_bytes_of_eie_by_hand() -> None:
    # column 0: 16 zeros (a filling entry), one more, then code 2; column 1: code 1 in row 0
    entries, starts = np.array([0xF0, 0x12, 0x01], np.uint8), np.array([0, 2, 3])
    codebook = np.array([0, 5, 7] + 13 * [0], np.float32)
    y = interleaved_matvec(entries, starts, codebook, (20, 2), np.array([2, 3], np.float32))
    assert np.flatnonzero(y).tolist() == [0, 17]
    assert (y[0], y[17]) == (15.0, 14.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entries": np.zeros(3, np.int64)}, r"entries: expected uint8 with 1 axis, got int64 \(3,\)"),
        ({"starts": np.array([0, 2])}, r"starts: expected int64 \(elements \* 2 \+ 1,\), got int64 \(2,\)"),
        ({"starts": np.array([0, 4, 3])}, "starts: expected numbers that rise from 0 to 3, got 0 to 3"),
        ({"codebook": np.ones(16, np.float32)}, "codebook: expected float32 .16,. that begins with 0"),
        ({"x": np.zeros(3, np.float32)}, r"expected activations float32 \(2,\), got float32 \(3,\)"),
        ({"x": np.zeros(2)}, r"expected activations float32 \(2,\), got float64 \(2,\)"),
        ({"bias": np.zeros(3, np.float32)}, r"bias: expected float32 \(20,\), got float32 \(3,\)"),
        ({"threads": 0}, "threads: expected 1 to "),
    ],
)
def test_damaged_bytes_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "entries": np.array([0xF0, 0x12, 0x01], np.uint8),
        "starts": np.array([0, 2, 3]),
        "codebook": np.zeros(16, np.float32),
        "shape": (20, 2),
        "x": np.zeros(2, np.float32),
    }
    with pytest.raises(ValueError, match=message):
        interleaved_matvec(**(arguments | change))


def test_inputs_that_are_not_contiguous_or_aligned() -> None:
    weight = sparse(40, 90, 0.2, shared=True)
    matrix, wide = SparseRows.from_dense(weight), activations(5 * 2 * 90, 1.0)
    for x in (wide[1:91], wide[:180:2], wide[89::-1]):
        assert_product(LaneMatrix.pack(matrix).matvec(x), weight, x, None)
        assert_product(ColumnMatrix.pack(matrix).matvec(x), weight, x, None)
    batch = wide.reshape(5, 180)[:, ::2]
    assert_product(BatchMatrix.pack(matrix).matmul(batch), weight, batch, None)
    assert_product(
        BatchMatrix.pack(matrix).matmul(wide.reshape(180, 5)[:90].T), weight, wide.reshape(180, 5)[:90].T, None
    )


def test_wrong_inputs_are_refused() -> None:
    matrix = SparseRows.from_dense(sparse(4, 6, 0.5, shared=True))
    with pytest.raises(ValueError, match=r"expected activations float32 \(6,\), got float64 \(6,\)"):
        LaneMatrix.pack(matrix).matvec(np.zeros(6))
    with pytest.raises(ValueError, match=r"expected activations float32 \(6,\), got float32 \(7,\)"):
        ColumnMatrix.pack(matrix).matvec(np.zeros(7, np.float32))
    with pytest.raises(ValueError, match=r"expected activations float32 \(batch, 6\), got float32 \(6,\)"):
        BatchMatrix.pack(matrix).matmul(np.zeros(6, np.float32))
    with pytest.raises(ValueError, match=r"threads: expected 1 to .*NUMBA_NUM_THREADS"):
        LaneMatrix.pack(matrix).matvec(np.zeros(6, np.float32), threads=10_000)


@pytest.mark.skipif(os.environ.get("NUMBA_CPU_FEATURES") is not None, reason="is the process of the test below")
def test_a_processor_without_avx512() -> None:
    """The tests of this file once more, compiled for 256-bit vectors: generic instructions, no permutations."""
    environment = os.environ | {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
    few = "(one_vector or a_batch and 64) and uneven"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", few, __file__]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[3], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert "10 passed" in done.stdout
