"""How a network's costs follow from the widths of its decisions: of channels, or of single weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from hw.cost import BilinearCost, CostFunction, CostModel, FloatArray, IntArray, ManyCost
from hw.layers import LayerShape


@dataclass(frozen=True)
class QuadraticCost:
    """constant + linear @ w + w @ square @ w, exactly."""

    constant: int
    linear: IntArray
    square: IntArray

    def __call__(self, widths: Sequence[int] | IntArray) -> int:
        kept = np.asarray(widths, dtype=np.int64)
        return self.constant + int(kept @ (self.linear + self.square @ kept))

    def many(self, plans: IntArray) -> FloatArray:
        """The costs of plans int64 (plans, decisions), float64 (plans,): whole numbers, exact below 2^53."""
        kept = plans.astype(np.float64)  # numpy multiplies whole matrices of integers slowly
        costs: FloatArray = self.constant + (kept * (self.linear + kept @ self._square)).sum(axis=1)
        return costs

    @cached_property
    def _square(self) -> FloatArray:
        return self.square.T.astype(np.float64)


@dataclass(frozen=True)
class LayeredCost:
    """A cost of the layers' channels, by the widths that these follow from."""

    channels: ChannelMap
    cost: CostFunction

    def __call__(self, widths: Sequence[int] | IntArray) -> float:
        return self.cost(*self.channels.channels(widths))

    def many(self, plans: IntArray) -> FloatArray:
        """The costs of plans int64 (plans, decisions), float64 (plans,)."""
        kept_in, kept_out = self.channels.channels(plans)
        if isinstance(self.cost, ManyCost):
            return self.cost.many(kept_in, kept_out)
        return np.array([self.cost(*kept) for kept in zip(kept_in, kept_out, strict=True)], dtype=np.float64)


#: what the network costs when each decision keeps so many units
WidthCost = QuadraticCost | LayeredCost | Callable[[Sequence[int] | IntArray], float]


class CostMap(Protocol):
    """Binds cost models to the widths of one network's decisions."""

    def cost_function(self, model: CostModel, layers: Sequence[LayerShape]) -> WidthCost:
        """One cost as a function of the widths.

        Raises:
            ValueError: this cost does not follow from the widths.
        """
        ...

    def owned_costs(self, model: CostModel, layers: Sequence[LayerShape]) -> tuple[FloatArray, float]:
        """Dense cost of the layers that each decision owns, float64 (decisions,), and of all layers.

        No layer is owned twice.
        """
        ...


@dataclass(frozen=True)
class ChannelMap:
    """How the layers' channels follow from the widths: kept = fixed + per_unit @ widths, for inputs and outputs.

    Attributes:
        fixed_in, fixed_out: int64 (layers,): channels that no decision touches.
        in_per_unit, out_per_unit: int64 (layers, decisions): channels of the layer in one unit of the decision.
    """

    fixed_in: IntArray
    in_per_unit: IntArray
    fixed_out: IntArray
    out_per_unit: IntArray

    def channels(self, widths: Sequence[int] | IntArray) -> tuple[IntArray, IntArray]:
        """Input and output channels of each layer, int64 (layers,) each; of many plans (plans, layers)."""
        kept = np.asarray(widths, dtype=np.int64)
        return self.fixed_in + kept @ self.in_per_unit.T, self.fixed_out + kept @ self.out_per_unit.T

    def cost_function(self, model: CostModel, layers: Sequence[LayerShape]) -> WidthCost:
        return self.cost_of_widths(model.bind(layers))

    def cost_of_widths(self, cost: CostFunction) -> WidthCost:
        """The cost as a function of the widths; a bilinear one becomes quadratic."""
        if not isinstance(cost, BilinearCost):
            return LayeredCost(self, cost)
        fixed = cost.per_product * self.fixed_in + cost.per_channel
        return QuadraticCost(
            constant=int(self.fixed_out @ fixed),
            linear=fixed @ self.out_per_unit + (cost.per_product * self.fixed_out) @ self.in_per_unit,
            square=(self.out_per_unit.T * cost.per_product) @ self.in_per_unit,
        )

    def owned_costs(self, model: CostModel, layers: Sequence[LayerShape]) -> tuple[FloatArray, float]:
        """A layer belongs to the last decision that changes its outputs, else its inputs."""
        owned = np.zeros(self.in_per_unit.shape[1])
        costs = model.layer_costs(layers)
        for cost, outputs, inputs in zip(costs, self.out_per_unit, self.in_per_unit, strict=True):
            owners = np.flatnonzero(outputs) if outputs.any() else np.flatnonzero(inputs)
            if len(owners):
                owned[owners[-1]] += cost
        return owned, float(costs.sum())


@dataclass(frozen=True)
class SeparableCosts:
    """Costs of decisions that do not touch each other's layers: fixed + the sum of tables[decision][width].

    Attributes:
        fixed: cost name -> what no decision changes.
        tables: cost name -> for each decision, its choices and what its layer costs at each.
    """

    fixed: Mapping[str, float]
    tables: Mapping[str, Sequence[Mapping[int, float]]]

    def cost_function(self, model: CostModel, layers: Sequence[LayerShape]) -> WidthCost:
        fixed, tables = self._of(model)

        def cost(widths: Sequence[int] | IntArray) -> float:
            return fixed + sum([table[width] for table, width in zip(tables, widths, strict=True)])

        return cost

    def owned_costs(self, model: CostModel, layers: Sequence[LayerShape]) -> tuple[FloatArray, float]:
        fixed, tables = self._of(model)
        owned = np.array([table[max(table)] for table in tables], dtype=np.float64)
        return owned, float(owned.sum()) + fixed

    def _of(self, model: CostModel) -> tuple[float, Sequence[Mapping[int, float]]]:
        if model.name not in self.tables:
            known = ", ".join(self.tables)
            raise ValueError(f"budget: no decision changes {model.name}; limit one of {known}")
        return self.fixed[model.name], self.tables[model.name]
