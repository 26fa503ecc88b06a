"""The nine layers that the paper measures, its times for them, and matrices like them ([EIE], tables III and IV).

The weights of these networks are not at hand: the synthetic matrices have the layers' sizes and densities, with
non-zeros where a random generator puts them. Real pruned layers are less even than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw.cost import IntArray
from hw.csc import CSCMatrix
from hw.eie.codebook import Codebook

#: 15 shared values, made up for the synthetic matrices: a tenth apart, none of them zero
SYNTHETIC_CODEBOOK = Codebook(np.concatenate([[0.0], np.arange(-7, 8) / 10 + 0.05]).astype(np.float32))


@dataclass(frozen=True, slots=True)
class PaperLayer:
    """One row of table III.

    Attributes:
        name: as the paper's figures call it.
        inputs, outputs: columns and rows of the weight matrix.
        weight_density, activation_density: shares of weights and of input activations that are not zero.
    """

    name: str
    inputs: int
    outputs: int
    weight_density: float
    activation_density: float

    def weights(self, rng: np.random.Generator) -> CSCMatrix:
        """Random weights of this size: each is non-zero with the layer's density, its value drawn from the codebook."""
        positions = _random_positions(self.inputs * self.outputs, self.weight_density, rng)
        values = SYNTHETIC_CODEBOOK.values[rng.integers(1, len(SYNTHETIC_CODEBOOK.values), len(positions))]
        starts = np.searchsorted(positions, self.outputs * np.arange(self.inputs + 1))
        rows = (positions % self.outputs).astype(np.int32)
        return CSCMatrix((self.outputs, self.inputs), values, rows, starts.astype(np.int32))

    def activations(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Random input, float32 (inputs,): positive with the layer's density, else 0, as a ReLU leaves it."""
        values = 1.0 - rng.random(self.inputs, np.float32)
        return np.where(rng.random(self.inputs) < self.activation_density, values, np.float32(0.0))


#: table III, in its order
PAPER_LAYERS = (
    PaperLayer("Alex-6", 9216, 4096, 0.09, 0.351),
    PaperLayer("Alex-7", 4096, 4096, 0.09, 0.353),
    PaperLayer("Alex-8", 4096, 1000, 0.25, 0.375),
    PaperLayer("VGG-6", 25088, 4096, 0.04, 0.183),
    PaperLayer("VGG-7", 4096, 4096, 0.04, 0.375),
    PaperLayer("VGG-8", 4096, 1000, 0.23, 0.411),
    PaperLayer("NT-We", 4096, 600, 0.10, 1.0),
    PaperLayer("NT-Wd", 600, 8791, 0.11, 1.0),
    PaperLayer("NT-LSTM", 1201, 2400, 0.10, 1.0),
)

#: the paper's own times (table IV), not measured here: microseconds for one input at batch size 1, of each layer in the
#: order of `PAPER_LAYERS`. "dense" is the uncompressed layer, "sparse" the pruned one in CSR.
PAPER_TIMES_US: Mapping[str, tuple[float, ...]] = {
    "Core i7-5930K, dense": (7516.2, 6187.1, 1134.9, 35022.8, 5372.8, 774.2, 605.0, 1361.4, 470.5),
    "Core i7-5930K, sparse": (3066.5, 1282.1, 890.5, 3774.3, 545.1, 777.3, 261.2, 437.4, 260.0),
    "Titan X, dense": (541.5, 243.0, 80.5, 1467.8, 243.0, 80.5, 65.0, 90.1, 51.9),
    "Titan X, sparse": (134.8, 65.8, 54.6, 167.0, 39.8, 48.0, 17.7, 41.1, 18.5),
    "Tegra K1, dense": (12437.2, 5765.0, 2252.1, 35427.0, 5544.3, 2243.1, 1316.0, 2565.5, 956.9),
    "Tegra K1, sparse": (2879.3, 1256.5, 837.0, 4377.2, 626.3, 745.1, 240.6, 570.6, 315.0),
    "EIE, theoretical": (28.1, 11.7, 8.9, 28.1, 7.9, 7.3, 5.2, 13.0, 6.5),
    "EIE, actual": (30.3, 12.2, 9.9, 34.4, 8.7, 8.4, 8.0, 13.9, 7.5),
}


def _random_positions(count: int, density: float, rng: np.random.Generator) -> IntArray:
    """Ascending numbers below `count`, each there with this probability: distances between them are geometric."""
    if not 0.0 < density <= 1.0:
        raise ValueError(f"expected a density above 0 and at most 1, got {density}")
    parts = [np.zeros(0, np.int64)]
    last = -1
    while last < count:
        parts.append(last + np.cumsum(rng.geometric(density, int((count - last) * density * 1.01) + 100)))
        last = int(parts[-1][-1])
    positions = np.concatenate(parts)
    return positions[positions < count]
