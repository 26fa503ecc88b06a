"""The state embedding of [AMC] section 3.1: eleven features of the layer that the next decision prunes.

Differences from the paper: a decision is a group of channels that must go together, so the layer described is the
one that first produces them, and MACs[t] is summed over all layers that the group decides last (an owner for every
layer, so that nothing is counted twice and nothing rests after the last decision). Static features are divided by
their largest value over the decisions; the paper only says that they are scaled to [0, 1]. Where the paper counts
FLOPs, the problem chooses what is counted (`feature_cost`): MACs, or the latency of a table. A twelfth feature, the
budget, can be asked for: one actor then learns of several budgets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from amc_env.front import budget_fraction
from amc_env.problem import PruningProblem

FEATURES = ("t", "n", "c", "h", "w", "stride", "k", "macs", "reduced", "rest", "previous_ratio")
REDUCED, REST, PREVIOUS_RATIO, BUDGET = 8, 9, 10, 11


class LayerEmbedding:
    """Observations of one problem: float32 (11,), or (12,) with the budget, each in [0, 1].

    `reduced` is the fraction of the dense cost that the decisions made so far remove (later layers dense), `rest`
    the fraction of the dense cost in layers that later decisions own, `previous_ratio` the ratio of the last one,
    `budget` the limit as a fraction of the dense cost.

    Args:
        problem: what is observed; with one budget if that is to be seen.
        budget: whether the budget is a feature.
    """

    def __init__(self, problem: PruningProblem, *, budget: bool = False) -> None:
        self.problem = problem
        model = problem.cost_models[problem.feature_cost]
        owned, total = problem.cost_map.owned_costs(model, problem.layers)
        rows = [
            (
                index,
                decision.layer.out_channels,
                decision.layer.in_channels,
                decision.layer.input_size[0],
                decision.layer.input_size[1],
                max(decision.layer.stride),
                max(decision.layer.kernel_size),
                owned[index],
            )
            for index, decision in enumerate(problem.decisions)
        ]
        table = np.array(rows, dtype=np.float64)
        #: by what the first eight features were divided, float64 (8,)
        self.scales = np.maximum(table.max(axis=0), 1e-12)
        #: what no decision changes, float32 (decisions, features)
        self.static = np.zeros((len(rows), len(FEATURES) + budget), dtype=np.float32)
        self.static[:, : table.shape[1]] = table / self.scales
        self.static[:, REST] = np.maximum((owned.sum() - np.cumsum(owned)) / total, 0.0)
        if budget:
            self.static[:, BUDGET] = budget_fraction(problem)

    def __call__(self, step: int, decided: list[int]) -> NDArray[np.float32]:
        """The state before decision `step`, when the first `step` decisions keep `decided` units."""
        observation: NDArray[np.float32] = self.static[step].copy()
        if step:
            observation[REDUCED] = self.reduced([*decided, *self.problem.dense_widths[step:]])
            observation[PREVIOUS_RATIO] = self.problem.decisions[step - 1].ratio(decided[-1])
        return observation

    def reduced(self, widths: Sequence[int]) -> float:
        """The fraction of the dense cost that these widths remove, in [0, 1]."""
        name = self.problem.feature_cost
        return min(max(1.0 - self.problem.cost(name, widths) / self.problem.dense_costs[name], 0.0), 1.0)
