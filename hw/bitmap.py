"""A weight of which whole blocks are zero: a bit for each block says whether it is stored, the blocks follow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.arrays import checked_array


@dataclass(frozen=True, eq=False, slots=True)
class BitmapWeight:
    """The blocks of an array that hold a non-zero. Damaged input is refused.

    Attributes:
        shape: of the array, any number of axes.
        block: how far a block reaches along each axis; divides the shape.
        bits: uint8 (bytes,), a bit for each block in the order of the axes (the last fastest), from the lowest bit on;
            unused bits of the last byte are 0.
        values: float32 (stored blocks, weights of a block), finite, in the order of the axes too.

    Raises:
        ValueError: a type or a shape is wrong, or there are not as many blocks as bits that are set.
    """

    shape: tuple[int, ...]
    block: tuple[int, ...]
    bits: NDArray[np.uint8]
    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        _check_shape(self.shape, self.block)
        object.__setattr__(self, "bits", checked_array(self.bits, "bits", np.uint8, 1))
        object.__setattr__(self, "values", checked_array(self.values, "values", np.float32, 2))
        blocks = math.prod(self.shape) // math.prod(self.block)
        if len(self.bits) != bitmap_bytes(blocks):
            raise ValueError(f"bits: expected {bitmap_bytes(blocks)} bytes for {blocks} blocks, got {len(self.bits)}")
        flags = np.unpackbits(self.bits, bitorder="little")
        if flags[blocks:].any():
            raise ValueError("bits: expected 0 in the unused bits of the last byte")
        expected = (int(flags.sum()), math.prod(self.block))
        if self.values.shape != expected:
            raise ValueError(f"values: expected the shape {expected}, got {self.values.shape}")
        if not np.isfinite(self.values).all():
            raise ValueError("values: expected finite numbers, got NaN or infinity")

    @classmethod
    def from_dense(cls, dense: NDArray[Any], block: Sequence[int]) -> BitmapWeight:
        """The blocks of `dense` with a non-zero, as float32."""
        _check_shape(dense.shape, tuple(block))
        blocks = _by_block(dense.astype(np.float32, copy=False), block)
        stored = (blocks != 0).any(axis=1)
        return cls(dense.shape, tuple(block), np.packbits(stored, bitorder="little"), blocks[stored])

    def to_dense(self) -> NDArray[np.float32]:
        """The whole array, float32."""
        grid = [length // size for length, size in zip(self.shape, self.block, strict=True)]
        blocks = np.zeros((math.prod(grid), math.prod(self.block)), np.float32)
        blocks[np.unpackbits(self.bits, count=len(blocks), bitorder="little").astype(bool)] = self.values
        axes = len(self.shape)
        order = [axis + half * axes for axis in range(axes) for half in (0, 1)]  # undoes `_by_block`
        return blocks.reshape(*grid, *self.block).transpose(order).reshape(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of both arrays."""
        return self.bits.nbytes + self.values.nbytes


def bitmap_bytes(blocks: int) -> int:
    """Bytes of a bit for each of so many blocks."""
    return -(-blocks // 8)


def _by_block(dense: NDArray[np.float32], block: Sequence[int]) -> NDArray[np.float32]:
    """(blocks, weights of a block)."""
    split = [part for length, size in zip(dense.shape, block, strict=True) for part in (length // size, size)]
    axes = [*range(0, len(split), 2), *range(1, len(split), 2)]
    return dense.reshape(split).transpose(axes).reshape(-1, math.prod(block))


def _check_shape(shape: tuple[int, ...], block: tuple[int, ...]) -> None:
    fits = len(shape) == len(block) > 0 and min(*shape, *block) >= 1
    if not fits or any(length % size for length, size in zip(shape, block, strict=True)):
        raise ValueError(f"expected a block that divides the shape {tuple(shape)}, got {tuple(block)}")
