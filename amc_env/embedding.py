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
        self._static = table / np.maximum(table.max(axis=0), 1e-12)
        self._rest = (macs.sum() - np.cumsum(macs)) / self._dense
        self._widths = np.array(problem.dense_widths, dtype=np.int64)

    def __call__(self, step: int, decided: list[int]) -> NDArray[np.float32]:
        """The state before decision `step`, when the first `step` decisions keep `decided` units."""
        widths = self._widths.copy()
        widths[:step] = decided
        reduced = 1.0 - self._problem.cost("macs", widths) / self._dense
        previous = self._problem.decisions[step - 1].ratio(decided[-1]) if step else 0.0
        dynamic = (max(reduced, 0.0), max(self._rest[step], 0.0), previous)
        return np.concatenate([self._static[step], dynamic]).astype(np.float32)


def _owned_macs(problem: PruningProblem) -> NDArray[np.float64]:
    """Dense MACs per decision: a layer belongs to the last decision that changes its outputs, else its inputs."""
    owned = np.zeros(len(problem.decisions))
    channels = problem.channels
    for layer, outputs, inputs in zip(problem.layers, channels.out_per_unit, channels.in_per_unit, strict=True):
        owners = np.flatnonzero(outputs) if outputs.any() else np.flatnonzero(inputs)
        if len(owners):
            owned[owners[-1]] += layer.macs
    return owned
