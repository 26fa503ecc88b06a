"""A pruning problem with a closed-form accuracy and a known best policy, for tests and for research."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from amc_env.cost_map import ChannelMap
from amc_env.problem import Decision, FloatArray, PruningProblem, RewardForm, Score, Widths
from hw.layers import LayerShape


class ToyProblem(PruningProblem):
    """1x1 layers; accuracy = 1 - sum_i s_i * r_i^2 with sensitivities s_i that sum to 0.9.

    Layer i costs `c_i * kept_i` MACs, so the problem is a knapsack and `best_widths` is exact (dynamic programming).
    With an interaction k between neighbours, where removing channels of one layer makes those of the next worth more,

        accuracy = 1 - (sum_i s_i * r_i^2 + k * sum_i sqrt(s_i * s_i+1) * r_i * r_i+1) / (1 + k),

    at least 0.1. The error curves, each with all else dense, then tell only a part; with k > 1 the loss is not convex.

    Args:
        decisions: number of layers, at least 1.
        channels: output channels of each layer.
        budget: as of `PruningProblem`; half the MACs unless told.
        interaction: k, at least 0.
        seed: draws the sensitivities and the costs per channel.
    """

    def __init__(
        self,
        decisions: int = 6,
        *,
        channels: int = 16,
        budget: Mapping[str, float | str] | None = None,
        reward: RewardForm = "error",
        interaction: float = 0.0,
        seed: int = 0,
    ) -> None:
        if decisions < 1 or channels < 2:
            raise ValueError(f"expected at least 1 decision of at least 2 channels, got {decisions} of {channels}")
        if not interaction >= 0.0:
            raise ValueError(f"interaction: expected a number of at least 0, got {interaction}")
        self.interaction = interaction
        rng = np.random.default_rng(seed)
        self.channel_costs = rng.integers(1, 6, size=decisions)
        weights = rng.exponential(size=decisions)
        self.sensitivities = 0.9 * weights / weights.sum()
        self._couplings = interaction * np.sqrt(self.sensitivities[:-1] * self.sensitivities[1:])
        layers = [LayerShape(f"layer{i}", "conv", int(cost), channels) for i, cost in enumerate(self.channel_costs)]
        super().__init__(
            [Decision(layer.name, channels, tuple(range(1, channels + 1)), layer) for layer in layers],
            layers,
            ChannelMap(
                fixed_in=np.array([layer.in_channels for layer in layers]),
                in_per_unit=np.zeros((decisions, decisions), dtype=np.int64),
                fixed_out=np.zeros(decisions, dtype=np.int64),
                out_per_unit=np.eye(decisions, dtype=np.int64),
            ),
            budget={"macs": "50%"} if budget is None else budget,
            reward=reward,
        )

    def score(self, widths: Widths) -> Score:
        ratios = self.ratios(widths)
        error = (self.sensitivities * ratios**2).sum()
        if self.interaction:
            error = (error + (self._couplings * ratios[:-1] * ratios[1:]).sum()) / (1.0 + self.interaction)
        accuracy = float(1.0 - error)
        return Score(1.0 - accuracy, accuracy)

    def reconstruction_errors(self) -> tuple[FloatArray, ...]:
        """s_i * r_i^2 / (1 + k): exact without interaction."""
        return tuple(
            sensitivity * (1.0 - np.array(decision.choices) / decision.size) ** 2 / (1.0 + self.interaction)
            for sensitivity, decision in zip(self.sensitivities, self.decisions, strict=True)
        )

    def best_widths(self) -> Widths:
        """The feasible widths of highest accuracy under a MAC budget alone.

        Raises:
            ValueError: the problem has another budget than one on "macs".
        """
        if [budget.cost for budget in self.budgets] != ["macs"]:
            raise ValueError(f"best_widths: expected one budget, on 'macs', got {[b.cost for b in self.budgets]}")
        limit = int(self.budgets[0].limit)
        # spent -> (loss, widths); with interaction (spent, last width) -> (loss, widths)
        best: dict[tuple[int, int], tuple[float, Widths]] = {(0, 0): (0.0, ())}
        for index, decision in enumerate(self.decisions):
            extended: dict[tuple[int, int], tuple[float, Widths]] = {}
            for (spent, _), (loss, widths) in best.items():
                for kept in decision.choices:
                    total = spent + kept * int(self.channel_costs[index])
                    if total > limit:
                        break
                    entry = (loss + self._loss(index, kept, widths), (*widths, kept))
                    state = (total, kept if self.interaction else 0)
                    if state not in extended or entry < extended[state]:
                        extended[state] = entry
            best = extended
        return min(best.values())[1]

    def _loss(self, index: int, kept: int, before: Widths) -> float:
        """What a width adds to the loss, times 1 + k, given those of the layers before."""
        ratio = self.decisions[index].ratio(kept)
        loss = self.sensitivities[index] * ratio**2
        if self.interaction and before:
            loss += self._couplings[index - 1] * self.decisions[index - 1].ratio(before[-1]) * ratio
        return float(loss)
