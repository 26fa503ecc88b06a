"""Huffman sizes: by hand, against the entropy, and against every other prefix code of few symbols."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hw.eie.format import EIEMatrix
from hw.eie.huffman import code_lengths, huffman_size
from tests.hw.eie.matrices import BOOK


def test_by_hand() -> None:
    # 1 + 1 = 2, 2 + 2 = 4, 4 + 4 = 8
    assert code_lengths(np.array([1, 4, 0, 2, 1])).tolist() == [3, 1, 0, 2, 3]


@pytest.mark.parametrize(("counts", "lengths"), [([0, 0], [0, 0]), ([0, 7], [0, 1]), ([5, 5], [1, 1])])
def test_few_symbols(counts: list[int], lengths: list[int]) -> None:
    assert code_lengths(np.array(counts)).tolist() == lengths


@given(st.lists(st.integers(1, 40), min_size=2, max_size=5))
def test_no_prefix_code_is_shorter(counts: list[int]) -> None:
    """All lengths that Kraft's inequality allows are tried."""
    found = int(np.array(counts) @ code_lengths(np.array(counts)))
    possible = itertools.product(range(1, len(counts)), repeat=len(counts))
    best = min(
        sum(count * length for count, length in zip(counts, lengths, strict=True))
        for lengths in possible
        if sum(2.0**-length for length in lengths) <= 1.0
    )
    assert found == best


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=256).filter(lambda counts: np.count_nonzero(counts) > 1))
def test_between_the_entropy_and_one_bit_more(counts: list[int]) -> None:
    array = np.array(counts)
    lengths = code_lengths(array)
    assert (2.0 ** -lengths[array > 0]).sum() == 1.0  # a complete code
    shares = array[array > 0] / array.sum()
    entropy = -(shares * np.log2(shares)).sum()
    assert entropy - 1e-9 <= (array @ lengths) / array.sum() < entropy + 1.0


def test_the_size_of_a_matrix_by_hand() -> None:
    """Codes 1 1 2 3 take 1 + 1 + 2 + 2 bits; runs 0 0 0 1 one bit each; lengths of 16 codes and 16 runs."""
    matrix = EIEMatrix.from_codes(np.array([[1, 1, 2, 0], [0, 0, 0, 3]], np.uint8), BOOK)
    size = huffman_size(matrix)
    assert (size.code_bits, size.run_bits, size.table_bits) == (6, 4, 8 * 32)
    assert size.size_bytes == 34


def test_without_entries_only_the_tables_are_left() -> None:
    size = huffman_size(EIEMatrix.from_codes(np.zeros((3, 4), np.uint8), BOOK))
    assert (size.code_bits, size.run_bits, size.size_bytes) == (0, 0, 32)
