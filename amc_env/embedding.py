"""The state embedding of [AMC] section 3.1: eleven features of the layer that the next decision prunes.

Differences from the paper: a decision is a group of channels that must go together, so the layer described is the
one that first produces them, and MACs[t] is summed over all layers that the group decides last (an owner for every
layer, so that nothing is counted twice and nothing rests after the last decision). Static features are divided by
their largest value over the decisions; the paper only says that they are scaled to [0, 1].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from amc_env.problem import PruningProblem

FEATURES = ("t", "n", "c", "h", "w", "stride", "k", "macs", "reduced", "rest", "previous_ratio")
REDUCED, REST, PREVIOUS_RATIO = 8, 9, 10


class LayerEmbedding:
    """Observations of one problem: float32 (11,), each in [0, 1].

    `reduced` is the fraction of the dense MACs that the decisions made so far remove (later layers dense), `rest`
    the fraction of the dense MACs in layers that later decisions own, `previous_ratio` the ratio of the last one.
    """

    def __init__(self, problem: PruningProblem) -> None:
        self._problem = problem
        self._dense = problem.dense_costs["macs"]
        macs = _owned_macs(problem)
        rows = [
            (
                index,
                decision.layer.out_channels,
                decision.layer.in_channels,
                decision.layer.input_size[0],
                decision.layer.input_size[1],
                max(decision.layer.stride),
                max(decision.layer.kernel_size),
                macs[index],
            )
            for index, decision in enumerate(problem.decisions)
        ]
        table = np.array(rows, dtype=np.float64)
        self._static = np.zeros((len(rows), len(FEATURES)), dtype=np.float32)
        self._static[:, : table.shape[1]] = table / np.maximum(table.max(axis=0), 1e-12)
        self._static[:, REST] = np.maximum((macs.sum() - np.cumsum(macs)) / self._dense, 0.0)

    def __call__(self, step: int, decided: list[int]) -> NDArray[np.float32]:
        """The state before decision `step`, when the first `step` decisions keep `decided` units."""
        observation: NDArray[np.float32] = self._static[step].copy()
        if step:
            reduced = 1.0 - self._problem.cost("macs", [*decided, *self._problem.dense_widths[step:]]) / self._dense
            observation[REDUCED] = max(reduced, 0.0)
            observation[PREVIOUS_RATIO] = self._problem.decisions[step - 1].ratio(decided[-1])
        return observation


def _owned_macs(problem: PruningProblem) -> NDArray[np.float64]:
    """Dense MACs per decision: a layer belongs to the last decision that changes its outputs, else its inputs."""
    owned = np.zeros(len(problem.decisions))
    channels = problem.channels
    for layer, outputs, inputs in zip(problem.layers, channels.out_per_unit, channels.in_per_unit, strict=True):
        owners = np.flatnonzero(outputs) if outputs.any() else np.flatnonzero(inputs)
        if len(owners):
            owned[owners[-1]] += layer.macs
    return owned
