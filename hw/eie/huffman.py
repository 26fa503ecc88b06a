"""How small codes and runs get by Huffman coding ([Deep Compression], section 4): counted, not coded."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw.cost import IntArray
from hw.eie.format import EIEMatrix


@dataclass(frozen=True, slots=True)
class HuffmanSize:
    """Bits of a matrix whose codes and runs are Huffman coded, each with a prefix code of its own.

    Attributes:
        code_bits, run_bits: bits of all codes and of all runs.
        table_bits: the lengths of the code words, 8 bits for each symbol; a canonical code needs no more.
    """

    code_bits: int
    run_bits: int
    table_bits: int

    @property
    def size_bytes(self) -> int:
        """All of it, rounded up to bytes. Pointers and codebook come on top, as without Huffman coding."""
        return -(-(self.code_bits + self.run_bits + self.table_bits) // 8)


def huffman_size(matrix: EIEMatrix) -> HuffmanSize:
    """The size of the entries of a matrix by optimal prefix codes."""
    codes = np.bincount(matrix.codes, minlength=1 << matrix.codebook.code_bits)
    runs = np.bincount(matrix.runs, minlength=16)
    return HuffmanSize(
        code_bits=int(codes @ code_lengths(codes)),
        run_bits=int(runs @ code_lengths(runs)),
        table_bits=8 * (len(codes) + len(runs)),
    )


def code_lengths(counts: NDArray[np.int64]) -> IntArray:
    """Lengths in bits of the words of an optimal prefix code, int64 (symbols,); 0 for a symbol that never occurs.

    The sum of counts * lengths is the smallest there is. A single symbol gets a word of one bit.

    Args:
        counts: how often each symbol occurs, int (symbols,).
    """
    lengths = np.zeros(len(counts), np.int64)
    heap = [(int(counts[symbol]), symbol, [symbol]) for symbol in np.flatnonzero(counts).tolist()]
    if len(heap) == 1:
        lengths[heap[0][2]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (first, _, left), (second, tie, right) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[left + right] += 1
        heapq.heappush(heap, (first + second, tie, left + right))
    return lengths
