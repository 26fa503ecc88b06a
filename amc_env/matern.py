"""The Matern 5/2 kernel of a Gaussian process (Rasmussen and Williams 2006, equation 4.17)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def distances(first: FloatArray, second: FloatArray) -> FloatArray:
    """Between points (n, d) and (m, d), float64 (n, m)."""
    squared = (first**2).sum(axis=1)[:, None] + (second**2).sum(axis=1) - 2 * first @ second.T
    found: FloatArray = np.sqrt(np.maximum(squared, 0.0))
    return found


def matern(distances: FloatArray) -> FloatArray:
    """The correlation at distances in lengths of the kernel, 1 at 0."""
    scaled = np.sqrt(5.0) * distances
    correlation: FloatArray = (1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled)
    return correlation
