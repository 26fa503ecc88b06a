"""A matrix of which N of every M consecutive columns stay: the values, and where in its group each one stands.

The indices of a group ascend, each takes ceil(log2 M) bits, and they fill bytes row by row from the lowest bit on. For
2:4 these are the four bits of metadata for each group that NVIDIA's sparse tensor cores read (PTX manual, `mma.sp`:
sparse matrix storage), in the order in which CUTLASS packs them; CUTLASS then shuffles 16-bit words of them for the
threads of a warp (`torch.sparse._semi_structured_conversions` does the same), and what order cuSPARSELt keeps is not
public.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.arrays import checked_array


@dataclass(frozen=True, eq=False, slots=True)
class NMMatrix:
    """The values that stay of each group. Damaged input is refused.

    Attributes:
        shape: (rows, columns); `group` divides the columns.
        stays: N, from 1 to M; a group with fewer non-zeros holds zeros.
        group: M, at least 2.
        values: float32 (rows, columns / M * N), finite.
        indices: uint8 (bytes,), the column of each value in its group; unused bits of the last byte are 0.

    Raises:
        ValueError: a type or a shape is wrong, indices leave their group or do not ascend.
    """

    shape: tuple[int, int]
    stays: int
    group: int
    values: NDArray[np.float32]
    indices: NDArray[np.uint8]

    def __post_init__(self) -> None:
        _check_shape(self.shape, self.stays, self.group)
        object.__setattr__(self, "values", checked_array(self.values, "values", np.float32, 2))
        object.__setattr__(self, "indices", checked_array(self.indices, "indices", np.uint8, 1))
        expected = (self.shape[0], self.shape[1] // self.group * self.stays)
        if self.values.shape != expected:
            raise ValueError(f"values: expected the shape {expected}, got {self.values.shape}")
        if not np.isfinite(self.values).all():
            raise ValueError("values: expected finite numbers, got NaN or infinity")
        if len(self.indices) != index_bytes(self.values.size, self.group):
            raise ValueError(
                f"indices: expected {index_bytes(self.values.size, self.group)} bytes for {self.values.size} values, "
                f"got {len(self.indices)}"
            )
        places = self.places
        if places.size and places.max() >= self.group:
            raise ValueError(f"indices: expected columns from 0 to {self.group - 1} of a group, got {places.max()}")
        if (np.diff(places.astype(np.int16), axis=1) <= 0).any():
            raise ValueError("indices: expected them to ascend in each group")
        if np.unpackbits(self.indices, bitorder="little")[self.values.size * index_bits(self.group) :].any():
            raise ValueError("indices: expected 0 in the unused bits of the last byte")

    @classmethod
    def from_dense(cls, dense: NDArray[Any], stays: int = 2, group: int = 4) -> NMMatrix:
        """The form of `dense`, float (rows, columns), as float32; free places are filled up by zeros from the last on.

        Raises:
            ValueError: a group has more than N non-zeros.
        """
        if dense.ndim != 2:
            raise ValueError(f"expected a matrix (rows, columns), got the shape {dense.shape}")
        shape = (dense.shape[0], dense.shape[1])
        _check_shape(shape, stays, group)
        groups = dense.astype(np.float32, copy=False).reshape(-1, group)
        held = groups != 0
        counts = held.sum(axis=1)
        if counts.max() > stays:
            at = int(np.argmax(counts))
            row, column = divmod(at * group, shape[1])
            raise ValueError(
                f"expected at most {stays} of {group} non-zeros, got {counts[at]} in row {row}, columns {column} to "
                f"{column + group - 1}"
            )
        later = held[:, ::-1].cumsum(axis=1)[:, ::-1] - held  # non-zeros after each place
        free_later = np.arange(group)[::-1] - later
        held |= free_later < (stays - counts)[:, None]
        places = np.nonzero(held)[1].astype(np.uint8)
        values = np.ascontiguousarray(groups[held].reshape(shape[0], -1))
        return cls(shape, stays, group, values, _packed(places, index_bits(group)))

    def to_dense(self) -> NDArray[np.float32]:
        """The whole matrix, float32 (rows, columns)."""
        dense = np.zeros((self.shape[0] * self.shape[1] // self.group, self.group), np.float32)
        np.put_along_axis(dense, self.places.astype(np.int64), self.values.reshape(-1, self.stays), axis=1)
        return dense.reshape(self.shape)

    @property
    def places(self) -> NDArray[np.uint8]:
        """The column of each value in its group, uint8 (groups, N)."""
        bits = index_bits(self.group)
        stream = np.unpackbits(self.indices, bitorder="little")[: self.values.size * bits]
        padded = np.zeros((self.values.size, 8), np.uint8)
        padded[:, :bits] = stream.reshape(-1, bits)
        return np.packbits(padded, axis=1, bitorder="little").reshape(-1, self.stays)

    @property
    def size_bytes(self) -> int:
        """Bytes of both arrays."""
        return self.values.nbytes + self.indices.nbytes


def index_bits(group: int) -> int:
    """Bits of an index into a group of so many columns."""
    return (group - 1).bit_length()


def index_bytes(values: int, group: int) -> int:
    """Bytes of the indices of so many values."""
    return -(-values * index_bits(group) // 8)


def _packed(places: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    by_bit = np.unpackbits(places[:, None], axis=1, bitorder="little")[:, :bits]
    return np.packbits(by_bit.reshape(-1), bitorder="little")


def _check_shape(shape: tuple[int, int], stays: int, group: int) -> None:
    if not (2 <= group <= 256 and 1 <= stays <= group):
        raise ValueError(f"expected N:M with M from 2 to 256 and N from 1 to M, got {stays}:{group}")
    if min(shape) < 1 or shape[1] % group:
        raise ValueError(f"shape: expected at least one row, and columns that {group} divides, got {shape}")
