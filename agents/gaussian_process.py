"""A Gaussian process with a Matern 5/2 kernel, its length and noise chosen on a grid by the marginal likelihood."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amc_env.matern import distances, matern

FloatArray = NDArray[np.float64]
_LENGTHS = np.geomspace(0.1, 30.0, 10)
_NOISES = (1e-6, 1e-4, 1e-2, 1e-1)


@dataclass(frozen=True)
class GaussianProcess:
    """What is believed of a function after some of its values (Rasmussen and Williams 2006, algorithm 2.1).

    Attributes:
        points: float64 (n, d), where it is known.
        mean, scale: of the values; the prior is constant, its variance the maximum-likelihood one.
        length: of the kernel, in the unit of the points.
        noise: variance of what the kernel cannot explain, relative to the prior's.
    """

    points: FloatArray
    mean: float
    scale: float
    length: float
    noise: float
    _root: FloatArray
    _weights: FloatArray

    @classmethod
    def fit(cls, points: FloatArray, values: FloatArray) -> GaussianProcess:
        """The process of the largest marginal likelihood on the grid, for values float64 (n,) at points (n, d)."""
        between = distances(points, points)
        centred = values - values.mean()
        best: GaussianProcess | None = None
        most = -np.inf
        for length in _LENGTHS:
            kernel = matern(between / length)
            for noise in _NOISES:
                root = np.asarray(np.linalg.cholesky(kernel + noise * np.eye(len(points))), dtype=np.float64)
                half = np.linalg.solve(root, centred)
                variance = max(float(half @ half) / len(points), 1e-300)
                likelihood = -0.5 * len(points) * np.log(variance) - np.log(np.diag(root)).sum()
                if likelihood > most:
                    weights = np.asarray(np.linalg.solve(root.T, half), dtype=np.float64)
                    scale = float(np.sqrt(variance))
                    best = cls(points, float(values.mean()), scale, float(length), noise, root, weights)
                    most = likelihood
        if best is None:
            raise ValueError(f"values: expected finite numbers, got {values.tolist()}")
        return best

    def predict(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation at points (m, d), float64 (m,) each, without the noise."""
        kernel = matern(distances(points, self.points) / self.length)
        half = np.linalg.solve(self._root, kernel.T)
        variance = np.maximum(1.0 - (half**2).sum(axis=0), 0.0)
        return self.mean + kernel @ self._weights, self.scale * np.sqrt(variance)
