"""Sizes without encoding: equal to those of the encoded matrix, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from hw.eie.codebook import Codebook
from hw.eie.format import EIEMatrix
from hw.eie.sizes import StoredSize, stored_bytes
from tests.hw.eie.matrices import code_matrices


@given(code_matrices())
def test_equals_the_size_of_the_encoded_matrix(case: tuple[NDArray[np.uint8], Codebook, int]) -> None:
    codes, book, elements = case
    encoded = EIEMatrix.from_codes(codes, book, elements).size
    assert stored_bytes(codes != 0, elements, len(book.values)) == encoded
    assert stored_bytes(book.weights(codes), elements, len(book.values)) == encoded


@pytest.mark.parametrize(
    ("elements", "codebook_entries", "expected"),
    [
        # 36 zeros before the only weight: 2 of padding; 3 bytes, 3 pointers of 2 bytes, 16 values of 4 bytes
        (1, 16, StoredSize(1, 2, 3, 6, 64)),
        # codes of 8 bits: 3 entries of 12 bits
        (1, 256, StoredSize(1, 2, 5, 6, 1024)),
        # row 36 is local row 18 of element 0
        (2, 16, StoredSize(1, 1, 2, 12, 64)),
    ],
)
def test_by_hand(elements: int, codebook_entries: int, expected: StoredSize) -> None:
    mask = np.zeros((40, 2), bool)
    mask[36, 1] = True
    size = stored_bytes(mask, elements, codebook_entries)
    assert size == expected
    assert size.total == expected.entry_bytes + expected.pointer_bytes + expected.codebook_bytes


def test_pointers_grow_when_an_element_holds_more_than_two_bytes_count() -> None:
    mask = np.ones((256, 257), bool)
    mask[0] = False
    assert stored_bytes(mask).pointer_bytes == 2 * 258  # 65,535 entries
    mask[0, 0] = True
    assert stored_bytes(mask).pointer_bytes == 4 * 258
    assert stored_bytes(mask, elements=2).pointer_bytes == 2 * 2 * 258
