"""Arrays inside frozen values: checked once, and not written to afterwards. And matrices with their axes swapped."""

from __future__ import annotations

from itertools import product
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

_Scalar = TypeVar("_Scalar", bound=np.generic)
_BLOCK = 256


def checked_array(array: object, what: str, dtype: DTypeLike, axes: int) -> NDArray[Any]:
    """A view that refuses writes, if it is an array of this type and number of axes.

    Raises:
        ValueError: it is not; names `what`, what was expected and what came.
    """
    expected = np.dtype(dtype)
    if not isinstance(array, np.ndarray) or array.dtype != expected or array.ndim != axes:
        shape = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{what}: expected an array of {expected} with {axes} axes, got {shape}")
    view = array.view()
    view.flags.writeable = False
    return view


def transposed(matrix: NDArray[_Scalar]) -> NDArray[_Scalar]:
    """The transpose of a matrix as an array of its own.

    Copied in square blocks: where rows lie a power of two apart, a column of a whole matrix does not fit the cache.
    """
    rows, columns = matrix.shape
    result = np.empty((columns, rows), matrix.dtype)
    for row, column in product(range(0, rows, _BLOCK), range(0, columns, _BLOCK)):
        block = matrix[row : row + _BLOCK, column : column + _BLOCK]
        result[column : column + _BLOCK, row : row + _BLOCK] = block.T
    return result
