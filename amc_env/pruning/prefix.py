"""Reconstruction on the dense network's own inputs: the weights of every width, and its error, known in advance.

[AMC] section 3.2 fits the kept channels to the dense outputs anew in each episode; kept sets that are prefixes of one
order need one factorisation per layer instead (`NestedLeastSquares`).

A layer with few rows for its columns (a linear layer has one for each image) is met by its fit on them and not on
others: its ridge is chosen, and its error told, by generalised cross-validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.pruning.calibration import Calibration
from amc_env.pruning.consumers import Layer, consumer, dense_weights, find_layers, readers, write_layer
from amc_env.pruning.graph import ChannelGraph, IntArray, KeptUnits
from amc_env.pruning.least_squares import (
    Consumer,
    NestedLeastSquares,
    choose_ridge,
    few_rows,
    solve_subset,
)


class PrefixReconstruction:
    """Reconstructed weights of a network's layers for groups that keep prefixes of fixed orders.

    A layer that reads one group has one factor for all widths; one that reads several (after a concatenation) is
    solved for each combination of widths when it is first met. Solutions are kept, up to `most_bytes` in all.

    Args:
        network: dense.
        graph: its channels.
        orders: for each group its units, the last removed first.
        calibration: of the layers that read groups.
        ridge: as a fraction of the mean diagonal of the Gram matrix; 1e-4 unless told, but of layers with fewer than
            four rows for each column the power of ten, from 1e-4 to 10, that is best by cross-validation.
        most_bytes: of solutions kept in memory; beyond it they are solved again when they are needed.
    """

    def __init__(
        self,
        network: nn.Module,
        graph: ChannelGraph,
        orders: Sequence[IntArray],
        calibration: Calibration,
        *,
        ridge: float | None = None,
        most_bytes: int = 2**30,
    ) -> None:
        self._network, self._graph, self._orders = network, graph, orders
        self._calibration, self._ridge, self._most_bytes = calibration, ridge, most_bytes
        self._layers = find_layers(graph)
        self._ridges: dict[str, float] = {}
        self._factors: dict[tuple[str, int], _Factor] = {}
        self._solutions: dict[tuple[str, tuple[int, ...]], tuple[torch.Tensor, torch.Tensor]] = {}
        self._bytes = 0

    def prepare(self, widths: Sequence[Sequence[int]]) -> None:
        """Solve for all these widths of each group in advance, as long as they fit into memory."""
        for layer in readers(self._layers):
            groups = self._groups_read(layer)
            for width in widths[groups[0]] if len(groups) == 1 else ():
                if self._bytes < self._most_bytes:
                    self._solution(layer, {groups[0]: width})

    def apply(self, thin: nn.Module, kept: KeptUnits) -> None:
        """Give the layers of the thin network, in which each group keeps these units, their reconstructed weights."""
        stays = self._graph.keep_mask(kept)
        for layer in readers(self._layers):
            if not stays[layer.inputs].all():
                widths = {group: len(kept[group]) for group in self._groups_read(layer)}
                weight, bias = self._solution(layer, widths)
                outputs = torch.from_numpy(np.flatnonzero(stays[layer.outputs]))
                write_layer(thin, layer, weight[outputs], bias[outputs])

    def errors(self, group: int) -> NDArray[np.float64]:
        """What keeping 0, 1, ... units of a group costs, all else dense: float64 (units + 1,).

        Squared error of the outputs of each layer that reads the group, relative to their variance, summed over them;
        where rows are few for the columns, what cross-validation expects of it on others. Never rising with the width.
        """
        size = self._graph.groups[group].size
        total = np.zeros(size + 1)
        for layer in readers(self._layers, self._graph.groups[group]):
            factor = self._factor(layer, group)
            total += factor.errors.numpy()[factor.columns_at(0) :: factor.per_unit] / factor.energy
        return np.minimum.accumulate(total)  # a fit on more columns may leave them out

    def _groups_read(self, layer: Layer) -> list[int]:
        return [
            index
            for index, group in enumerate(self._graph.groups)
            if ((layer.inputs >= group.first_unit) & (layer.inputs < group.first_unit + group.size)).any()
        ]

    def _solution(self, layer: Layer, widths: dict[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights, float32 (outputs, kept inputs, *kernel), and bias of the layer at these widths."""
        key = (layer.name, tuple(widths.values()))
        if key in self._solutions:
            return self._solutions[key]
        solution = self._solve(layer, widths)
        if self._bytes < self._most_bytes:
            self._solutions[key] = solution
            self._bytes += solution[0].nbytes
        return solution

    def _solve(self, layer: Layer, widths: dict[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        if len(widths) == 1:
            ((group, width),) = widths.items()
            factor = self._factor(layer, group)
            columns = factor.order[: factor.columns_at(width)]
            weights = factor.least_squares.weights(len(columns))
            return self._as_stored(layer, columns, weights, factor.mean)
        moments = self._calibration.moments(layer.name)
        removed = [self._order_of(layer, group)[width:].reshape(-1) for group, width in widths.items()]
        columns = np.setdiff1d(np.arange(layer.columns), np.concatenate(removed))
        whole = consumer(self._network, layer, moments)
        weights = solve_subset(whole, columns, self._ridge_of(layer, whole, moments.rows))
        return self._as_stored(layer, columns, weights, moments.mean)

    def _factor(self, layer: Layer, group: int) -> _Factor:
        """All columns of other groups first, then this group's in its order."""
        key = (layer.name, group)
        if key not in self._factors:
            moments = self._calibration.moments(layer.name)
            blocks = self._order_of(layer, group)
            others = np.setdiff1d(np.arange(layer.columns), blocks)
            order = np.concatenate([others, blocks.reshape(-1)])
            whole = consumer(self._network, layer, moments)
            ordered = Consumer(whole.gram[order][:, order], whole.weights[order])
            least_squares = NestedLeastSquares(ordered, self._ridge_of(layer, whole, moments.rows))
            few = moments.rows if few_rows(moments.rows, layer.columns) else None
            self._factors[key] = _Factor(
                order, blocks.shape[1], len(others), least_squares, few, whole.energy, moments.mean
            )
        return self._factors[key]

    def _ridge_of(self, layer: Layer, whole: Consumer, rows: int) -> float:
        if self._ridge is not None:
            return self._ridge
        if layer.name not in self._ridges:
            self._ridges[layer.name] = choose_ridge([whole], rows)
        return self._ridges[layer.name]

    def _order_of(self, layer: Layer, group: int) -> IntArray:
        """Columns of the group's units, the last removed first: int64 (units, columns per unit)."""
        columns: IntArray = layer.unit_columns(self._graph.groups[group])[self._orders[group]]
        return columns

    def _as_stored(
        self, layer: Layer, columns: IntArray, weights: torch.Tensor, mean: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights (outputs, kept inputs, *kernel), inputs ascending, and the bias that keeps the mean output."""
        module = self._network.get_submodule(layer.name)
        shape = self._network.get_parameter(f"{layer.name}.weight").shape
        ascending = np.argsort(columns)
        kept = weights[ascending].reshape(layer.taps, -1, shape[0]).permute(2, 1, 0)
        bias = mean @ dense_weights(self._network, layer) - mean[columns] @ weights
        if isinstance(module.bias, torch.Tensor):
            bias = bias + module.bias.detach().cpu().double()
        return kept.reshape(shape[0], -1, *shape[2:]).float(), bias.float()


@dataclass(frozen=True)
class _Factor:
    """The least squares of one layer over the widths of one group.

    Attributes:
        order: its columns as they are kept.
        per_unit: columns of one unit of the group.
        others: columns of other groups, which come first.
        few_rows: how many its moments are of, if they are few for its columns.
        energy: of the dense outputs.
        mean: of the inputs, (columns,), in the layer's own order.
    """

    order: IntArray
    per_unit: int
    others: int
    least_squares: NestedLeastSquares
    few_rows: int | None
    energy: float
    mean: torch.Tensor

    @cached_property
    def errors(self) -> torch.Tensor:
        """Squared, of each number of columns, float64 (columns + 1,)."""
        if self.few_rows is None:
            return self.least_squares.errors()
        return self.least_squares.errors_elsewhere(self.few_rows)

    def columns_at(self, width: int) -> int:
        return self.others + width * self.per_unit
