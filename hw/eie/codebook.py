"""Weight sharing: a few values that all non-zero weights of a layer are drawn from ([Deep Compression], section 3).

k-means in one dimension works on the sorted weights: a cluster is an interval of them, so that an iteration is a binary
search for each border and a difference of cumulative sums for each mean, whatever the number of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hw.arrays import checked_array
from hw.cost import FloatArray, IntArray

_MOST_ENTRIES = 256
_MOST_ITERATIONS = 1000


@dataclass(frozen=True, eq=False, slots=True)
class Codebook:
    """Shared values; a code is the index of one.

    Attributes:
        values: float32 (entries,), 1 to 256 of them. Entry 0 is 0.0: the code of a zero weight and of padding.
    """

    values: NDArray[np.float32]

    def __post_init__(self) -> None:
        values = checked_array(self.values, "codebook", np.float32, 1)
        if not 1 <= len(values) <= _MOST_ENTRIES:
            raise ValueError(f"codebook: expected 1 to {_MOST_ENTRIES} entries, got {len(values)}")
        if not np.isfinite(values).all() or values[0] != 0.0:
            raise ValueError(f"codebook: expected finite values and 0.0 as entry 0, got {values.tolist()}")
        object.__setattr__(self, "values", values)

    @classmethod
    def of_values(cls, weights: NDArray[Any]) -> Codebook:
        """The codebook of weights that are shared already: 0.0 and their distinct non-zero values, ascending.

        Raises:
            ValueError: there are more than 255 such values.
        """
        single = weights.astype(np.float32, copy=False)
        distinct = np.unique(single[single != 0])
        if len(distinct) >= _MOST_ENTRIES:
            raise ValueError(
                f"expected at most {_MOST_ENTRIES - 1} distinct non-zero weights, got {len(distinct)}; share them "
                f"first: fit_codebook(weights)"
            )
        return cls(np.concatenate([np.zeros(1, np.float32), distinct]))

    @property
    def code_bits(self) -> int:
        """Bits in which a code is stored: 4 up to 16 entries, else 8."""
        return 4 if len(self.values) <= 16 else 8

    @property
    def size_bytes(self) -> int:
        """Bytes of the values as float32."""
        return self.values.nbytes

    def codes(self, weights: NDArray[Any]) -> NDArray[np.uint8]:
        """The code of the nearest value for each weight, of the same shape; 0 for zeros and for nothing else."""
        codes = np.zeros(weights.shape, np.uint8)
        nonzero = np.flatnonzero(weights != 0)
        if len(nonzero) and len(self.values) == 1:
            raise ValueError(f"expected no weight but 0 for an empty codebook, got {len(nonzero)} non-zero weights")
        shared = self.values[1:].astype(np.float64)
        order = np.argsort(shared, kind="stable")
        nearest = np.searchsorted(_middles(shared[order]), weights.reshape(-1)[nonzero])
        codes.reshape(-1)[nonzero] = (order + 1).astype(np.uint8)[nearest]
        return codes

    def weights(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The value of each code, of the same shape."""
        return self.values[codes]


def fit_codebook(weights: NDArray[Any], entries: int = 16, initial: FloatArray | None = None) -> Codebook:
    """Cluster the non-zero weights by k-means: 0.0 and at most `entries` - 1 centroids, ascending.

    A cluster that runs empty starts anew at the weight that lies furthest from its centroid. Are there no more distinct
    weights than centroids, they are the codebook. The result depends on nothing but the arguments.

    Args:
        weights: of any shape, finite; zeros are not clustered.
        entries: size of the codebook, 2 to 256; 16 fit codes of 4 bits.
        initial: centroids to start from, (entries - 1,). By default evenly from the smallest to the largest non-zero
            weight, which keeps the few large weights apart ("linear initialisation", [Deep Compression], section 3.2).
    """
    if not 2 <= entries <= _MOST_ENTRIES:
        raise ValueError(f"expected 2 to {_MOST_ENTRIES} entries, got {entries}")
    if initial is not None and initial.shape != (entries - 1,):
        raise ValueError(f"expected {entries - 1} initial centroids for {entries} entries, got {initial.shape}")
    values = np.sort(weights[weights != 0], axis=None).astype(np.float64)
    if not np.isfinite(values[-1:]).all() or not np.isfinite(values[:1]).all():
        raise ValueError("expected finite weights, got NaN or infinity")
    if np.count_nonzero(np.diff(values)) + 1 < entries:
        return Codebook.of_values(values)
    start = np.linspace(values[0], values[-1], entries - 1) if initial is None else np.sort(initial)
    centroids = np.unique(_cluster(values, start).astype(np.float32))
    return Codebook(np.concatenate([np.zeros(1, np.float32), centroids]))


def _cluster(values: FloatArray, centroids: FloatArray) -> FloatArray:
    """Lloyd's iterations on ascending values until no cluster changes; ascending centroids of the clusters."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    borders = np.empty(0, np.int64)
    for _ in range(_MOST_ITERATIONS):
        inner = np.searchsorted(values, _middles(centroids), side="right")
        previous, borders = borders, np.concatenate([[0], inner, [len(values)]])
        if np.array_equal(borders, previous):
            break
        full = np.diff(borders) > 0
        means = np.diff(sums[borders])[full] / np.diff(borders)[full]
        fresh = _furthest(values, borders, means, full)
        kept = centroids[~full][len(fresh) :]  # where no weight lies off its centroid, they stay
        centroids = np.sort(np.concatenate([means, fresh, kept]))
    full = np.diff(borders) > 0
    return np.diff(sums[borders])[full] / np.diff(borders)[full]


def _furthest(values: FloatArray, borders: IntArray, means: FloatArray, full: NDArray[np.bool_]) -> FloatArray:
    """Weights at an end of a cluster that lie furthest from its mean, at most one for each empty cluster."""
    ends = np.concatenate([values[borders[:-1][full]], values[borders[1:][full] - 1]])
    distances = np.abs(ends - np.concatenate([means, means]))
    furthest = np.argsort(-distances, kind="stable")[: np.count_nonzero(~full)]
    chosen: FloatArray = ends[furthest[distances[furthest] > 0]]
    return chosen


def _middles(ascending: FloatArray) -> FloatArray:
    """The borders between neighbours."""
    middles: FloatArray = (ascending[1:] + ascending[:-1]) / 2
    return middles
