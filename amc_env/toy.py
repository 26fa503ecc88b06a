"""A pruning problem with a closed-form accuracy and a known best policy, for tests and for research."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from amc_env.cost_map import ChannelMap, CostMap, SeparableCosts
from amc_env.problem import Decision, FloatArray, PruningProblem, RewardForm, Score, Widths
from hw.layers import LayerShape


class ToyProblem(PruningProblem):
    """1x1 layers; accuracy = 1 - sum_i s_i * r_i^2 with sensitivities s_i that sum to 0.9.

    Layer i costs `c_i * kept_i` MACs, so the problem is a knapsack and `best_widths` is exact (dynamic programming).
    On a staircase it costs what the next multiple of `staircase` channels costs, as on a device that computes channels
    in blocks.
    With an interaction k between neighbours, where removing channels of one layer makes those of the next worth more,

        accuracy = 1 - (sum_i s_i * r_i^2 + k * sum_i sqrt(s_i * s_i+1) * r_i * r_i+1) / (1 + k),

    at least 0.1. The error curves, each with all else dense, then tell only a part; with k > 1 the loss is not convex.

    Args:
        decisions: number of layers, at least 1.
        channels: output channels of each layer.
        budget: as of `PruningProblem`; half the MACs unless told.
        interaction: k, at least 0.
        staircase: channels that are computed at once, at least 1.
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
        staircase: int = 1,
        seed: int = 0,
    ) -> None:
        if decisions < 1 or channels < 2:
            raise ValueError(f"expected at least 1 decision of at least 2 channels, got {decisions} of {channels}")
        if not interaction >= 0.0:
            raise ValueError(f"interaction: expected a number of at least 0, got {interaction}")
        if staircase < 1:
            raise ValueError(f"staircase: expected at least 1, got {staircase}")
        self.interaction, self.staircase = interaction, staircase
        rng = np.random.default_rng(seed)
        self.channel_costs = rng.integers(1, 6, size=decisions)
        weights = rng.exponential(size=decisions)
        self.sensitivities = 0.9 * weights / weights.sum()
        self._couplings = interaction * np.sqrt(self.sensitivities[:-1] * self.sensitivities[1:])
        layers = [LayerShape(f"layer{i}", "conv", int(cost), channels) for i, cost in enumerate(self.channel_costs)]
        super().__init__(
            [Decision(layer.name, channels, tuple(range(1, channels + 1)), layer) for layer in layers],
            layers,
            self._cost_map(layers),
            budget={"macs": "50%"} if budget is None else budget,
            reward=reward,
        )

    def _cost_map(self, layers: Sequence[LayerShape]) -> CostMap:
        if self.staircase == 1:
            return ChannelMap(
                fixed_in=np.array([layer.in_channels for layer in layers]),
                in_per_unit=np.zeros((len(layers), len(layers)), dtype=np.int64),
                fixed_out=np.zeros(len(layers), dtype=np.int64),
                out_per_unit=np.eye(len(layers), dtype=np.int64),
            )
        macs = [{kept: self._macs(layer, kept) for kept in range(1, layer.out_channels + 1)} for layer in layers]
        sizes = [{kept: 4 * cost for kept, cost in table.items()} for table in macs]
        return SeparableCosts({"macs": 0, "size": 0}, {"macs": macs, "size": sizes})

    def _macs(self, layer: LayerShape, kept: int) -> int:
        """Of a layer with so many channels, filled up to whole blocks; no more than dense."""
        return layer.in_channels * min(-(-kept // self.staircase) * self.staircase, layer.out_channels)

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

    def removal_scores(self) -> tuple[FloatArray, ...]:
        """What the removal of each further unit adds to the error curve."""
        return tuple(
            -np.diff(np.append(sensitivity / (1.0 + self.interaction), curve))
            for sensitivity, curve in zip(self.sensitivities, self.reconstruction_errors(), strict=True)
        )

    def best_widths(self) -> Widths:
        """The feasible widths of highest accuracy under a MAC budget alone.

        Raises:
            ValueError: the problem has another budget than one on "macs".
        """
        if [budget.cost for budget in self.budgets] != ["macs"]:
            raise ValueError(f"best_widths: expected one budget, on 'macs', got {[b.cost for b in self.budgets]}")
        limit = int(self.budgets[0].limit)
        channels = self.dense_widths[0]
        ratios = 1.0 - np.arange(1, channels + 1) / channels
        # losses[kept - 1, spent] of the layers so far, the last of which keeps so many channels
        losses = np.full((channels, limit + 1), np.inf)
        losses[-1, 0] = 0.0  # before the first layer nothing is removed, so that nothing interacts with it
        before = []
        for index, layer in enumerate(self.layers):
            coupling = self._couplings[index - 1] if index else 0.0
            paired = losses[:, None, :] + coupling * (ratios[:, None] * ratios)[:, :, None]
            before.append(paired.argmin(axis=0))
            least = paired.min(axis=0) + self.sensitivities[index] * (ratios**2)[:, None]
            losses = np.full_like(losses, np.inf)
            for place in range(channels):
                spent = min(self._macs(layer, place + 1), limit + 1)
                losses[place, spent:] = least[place, : limit + 1 - spent]
        place, spent = map(int, np.unravel_index(losses.argmin(), losses.shape))
        widths: list[int] = []
        for layer, earlier in zip(reversed(self.layers), reversed(before), strict=True):
            widths.append(place + 1)
            spent -= self._macs(layer, place + 1)
            place = int(earlier[place, spent])
        return tuple(reversed(widths))
