"""A pruned layer as its pattern stores it: a bit for each unit and the weights of those that stay; N:M as `hw.n_m`.

The values are float32, or codes of 4 or 8 bits with their codebook. A layer is a mapping of arrays; all but `size`,
the numbers that say how to read the others, are what it takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amc_env.pruning.patterns import NOfM, Pattern, UnitPattern
from hw.bitmap import BitmapWeight, bitmap_bytes
from hw.eie import Codebook
from hw.n_m import NMMatrix, index_bytes

Arrays = Mapping[str, NDArray[Any]]


def pattern_bytes(mask: NDArray[Any], pattern: Pattern, codebook: int | None) -> int:
    """Bytes of a layer of which these weights stay.

    Args:
        mask: of the weight's shape, bool, or weights of which the non-zeros count.
        pattern: that the mask has.
        codebook: entries, 16 or 256; None: values are float32.

    Raises:
        ValueError: as of `Pattern.check`.
    """
    if isinstance(pattern, NOfM):
        stored = mask.size // pattern.group * _stays(mask, pattern)
        return index_bytes(stored, pattern.group) + _value_bytes(stored, codebook)
    units = mask.size // math.prod(_unit(pattern, mask))
    return bitmap_bytes(units) + _value_bytes(pattern.holding(mask != 0), codebook)


def pattern_arrays(weight: NDArray[np.float32], pattern: Pattern, codebook: Codebook | None) -> dict[str, NDArray[Any]]:
    """A layer as it is stored.

    Args:
        weight: float32, pruned by the pattern.
        pattern: of its zeros.
        codebook: has all its values, and exactly 16 or 256 entries; None: values are float32.
    """
    form: NMMatrix | BitmapWeight
    if isinstance(pattern, NOfM):
        rows = np.moveaxis(weight, 1, -1)  # the inputs of a kernel element side by side
        form = NMMatrix.from_dense(rows.reshape(len(weight), -1), _stays(weight, pattern), pattern.group)
        arrays = {"size": np.array([*rows.shape, form.stays, form.group]), "indices": form.indices}
    else:
        form = BitmapWeight.from_dense(weight, _unit(pattern, weight))
        arrays = {"size": np.array([*form.shape, *form.block]), "bits": form.bits}
    if codebook is None:
        return arrays | {"values": form.values}
    codes = codebook.codes(form.values).reshape(-1)
    return arrays | {"codes": _packed(codes) if codebook.code_bits == 4 else codes, "codebook": codebook.values}


def pattern_weight(arrays: Arrays) -> NDArray[np.float32]:
    """The weight that `pattern_arrays` stored, float32 in its own shape.

    Raises:
        ValueError: the arrays are damaged.
    """
    size = tuple(arrays["size"].tolist())
    if "indices" in arrays:
        *shape, stays, group = size
        columns = math.prod(shape[1:])
        values = _values(arrays, (shape[0], columns // group * stays))
        matrix = NMMatrix((shape[0], columns), stays, group, values, arrays["indices"])
        return np.ascontiguousarray(np.moveaxis(matrix.to_dense().reshape(shape), -1, 1))
    axes = len(size) // 2
    stored = int(np.unpackbits(arrays["bits"]).sum())
    values = _values(arrays, (stored, math.prod(size[axes:])))
    return BitmapWeight(size[:axes], size[axes:], arrays["bits"], values).to_dense()


def _values(arrays: Arrays, shape: tuple[int, int]) -> NDArray[np.float32]:
    if "values" in arrays:
        return arrays["values"]
    codebook, codes = Codebook(arrays["codebook"]), arrays["codes"]
    if codebook.code_bits == 4:
        codes = np.stack([codes & np.uint8(15), codes >> np.uint8(4)], axis=1).reshape(-1)[: math.prod(shape)]
    if codes.size != math.prod(shape) or (codes >= len(codebook.values)).any():
        raise ValueError(f"codes: expected {math.prod(shape)} below {len(codebook.values)}, got {codes.size}")
    return codebook.values[codes].reshape(shape)


def _stays(weight: NDArray[Any], pattern: NOfM) -> int:
    """N of this layer, at least 1."""
    return max(1, pattern.holding(weight != 0) * pattern.group // weight.size)


def _unit(pattern: Pattern, weight: NDArray[Any]) -> tuple[int, ...]:
    if not isinstance(pattern, UnitPattern):
        raise ValueError(f"{pattern.name}: expected a pattern of units that go whole")
    return pattern.unit_shape(weight.shape)


def _value_bytes(count: int, codebook: int | None) -> int:
    if codebook is None:
        return 4 * count
    return (count if codebook > 16 else -(-count // 2)) + 4 * codebook


def _packed(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two to a byte, the first in the lower half."""
    even = np.append(codes, np.zeros(len(codes) % 2, np.uint8))
    return even[::2] | even[1::2] << np.uint8(4)
