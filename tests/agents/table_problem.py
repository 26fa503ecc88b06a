"""A problem whose errors and costs stand in tables, monotone or not, for tests of heuristics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amc_env.cost_map import ChannelMap
from amc_env.problem import Decision, PruningProblem, Score, Widths
from hw.cost import CostFunction, FloatArray, IntArray
from hw.layers import LayerShape

Table = Sequence[Sequence[float]]


class TableCost:
    """Sum over the decisions of the cost of their width, `costs[decision][width - 1]`."""

    unit = "units"

    def __init__(self, costs: Table, name: str = "table") -> None:
        self.costs, self.name = costs, name

    def bind(self, layers: Sequence[LayerShape]) -> CostFunction:
        def cost(kept_in: IntArray, kept_out: IntArray) -> float:
            return sum(float(column[width - 1]) for column, width in zip(self.costs, kept_out.tolist(), strict=True))

        return cost

    def layer_costs(self, layers: Sequence[LayerShape]) -> FloatArray:
        return np.array([column[-1] for column in self.costs])


class TableProblem(PruningProblem):
    """Error = sum over the decisions of the error of their width, `errors[decision][width - 1]`.

    Args:
        costs: of each width from 1, for each decision.
        errors: likewise.
        limit: on the cost.
        other: a second cost, with its limit.
    """

    def __init__(
        self, costs: Table, errors: Table, limit: float | str, other: tuple[Table, float] | None = None
    ) -> None:
        self.errors = errors
        sizes = [len(column) for column in costs]
        layers = [LayerShape(f"layer{index}", "conv", 1, size) for index, size in enumerate(sizes)]
        models = [TableCost(costs)] + ([] if other is None else [TableCost(other[0], "other")])
        super().__init__(
            [
                Decision(layer.name, size, tuple(range(1, size + 1)), layer)
                for layer, size in zip(layers, sizes, strict=True)
            ],
            layers,
            ChannelMap(
                fixed_in=np.ones(len(sizes), dtype=np.int64),
                in_per_unit=np.zeros((len(sizes), len(sizes)), dtype=np.int64),
                fixed_out=np.zeros(len(sizes), dtype=np.int64),
                out_per_unit=np.eye(len(sizes), dtype=np.int64),
            ),
            budget={"table": limit} | ({} if other is None else {"other": other[1]}),
            cost_models=models,
        )

    def score(self, widths: Widths) -> Score:
        error = sum(column[width - 1] for column, width in zip(self.errors, widths, strict=True))
        return Score(float(error), None)
