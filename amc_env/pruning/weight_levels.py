"""The single weights of a layer at every level of an order of removal: which stay, and what becomes of them.

The weights of a row (an output) that stay are the row's least-squares fit to the dense output on the dense network's
inputs. The rows of a layer lose different weights, so that each has its own factor (`NestedLeastSquares`) over its own
order: all levels of a row follow from one Cholesky decomposition. Where the rows of the calibration are few for the
columns, ridge and errors are those of cross-validation, as for channels (see `amc_env.pruning.prefix`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.pruning.calibration import Calibration, Moments
from amc_env.pruning.consumers import Layer, write_layer
from amc_env.pruning.exact_obs import obs_scores
from amc_env.pruning.graph import IntArray
from amc_env.pruning.least_squares import Consumer, NestedLeastSquares, choose_ridge, few_rows
from amc_env.pruning.patterns import FINE_GRAINED, Pattern
from amc_env.pruning.sharing import share

_VERSION = 2  # of what is kept on disk; raise it whenever the same moments would give other orders or weights

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class LevelSettings:
    """How the weights of each level come about.

    Attributes:
        criterion: "obs", see `obs_scores`; or that of the scores that are given.
        fitted: whether the weights that stay are fitted; else they are the dense network's.
        codebook: shared values of a layer, 0.0 included; None: weights are not shared.
        pattern: which weights go together.
    """

    criterion: str
    fitted: bool
    codebook: int | None
    pattern: Pattern = FINE_GRAINED


class WeightLevels:
    """The levels of one layer; each is as many weights as stay. Computed when first asked for, and kept on disk.

    Args:
        network: dense.
        layer: a convolution or linear layer of it.
        levels: counts of weights that stay, at least one, ascending and below the layer's own; the pattern allows them.
        settings: how.
        calibration: of the layer.
        scores: of its weights, float64 of their shape, larger stays longer; of "obs" they follow from the calibration.
    """

    def __init__(
        self,
        network: nn.Module,
        layer: Layer,
        levels: Sequence[int],
        settings: LevelSettings,
        calibration: Calibration,
        scores: FloatArray | None = None,
    ) -> None:
        if (scores is None) != (settings.criterion == "obs"):
            raise ValueError(f"scores: expected for every criterion but obs, got criterion {settings.criterion!r}")
        self._given = scores
        self.layer, self.levels, self._settings, self._calibration = layer, tuple(levels), settings, calibration
        self._weight = network.get_parameter(f"{layer.name}.weight").detach()
        bias = network.get_submodule(layer.name).bias
        self._bias = bias.detach().cpu() if isinstance(bias, torch.Tensor) else None
        self.dense: FloatArray = self._weight.cpu().double().reshape(len(self._weight), -1).numpy()

    @cached_property
    def order(self) -> IntArray:
        """Weights from the last to the first removed, int64 (weights,): indices row * columns + column."""
        return self._settings.pattern.order(self._scores.reshape(self._weight.shape))

    @property
    def _scores(self) -> FloatArray:
        """Of each weight, float64 (rows, columns); a pattern removes what has the smallest sums first."""
        if self._given is not None:
            return self._given.reshape(self.dense.shape)
        name = f"scores-{_VERSION}-{self._settings.criterion}-{self.layer.name}"
        return self._calibration.remember(name, lambda: {"scores": obs_scores(self._consumers, self._ridge)})["scores"]

    def removal_scores(self) -> FloatArray:
        """Mean score of what each weight goes with, float64 (weights,), in the order.

        Those of obs, squared errors of the layer's outputs, are relative to the variance of them.
        """
        units = self._settings.pattern.units(self._weight.shape).reshape(-1)
        means = np.bincount(units, weights=self._scores.reshape(-1)) / np.bincount(units)
        if self._given is None:
            means /= sum(consumer.energy for consumer in self._consumers)
        scores: FloatArray = means[units][self.order]
        return scores

    def mask(self, kept: int) -> NDArray[np.bool_]:
        """Which weights stay when so many do, bool (rows, columns)."""
        mask = np.zeros(self.dense.size, dtype=bool)
        mask[self.order[:kept]] = True
        return mask.reshape(self.dense.shape)

    def errors(self) -> FloatArray:
        """What each level costs by itself, all else dense and the weights fitted: float64 (levels,).

        Squared error of the layer's outputs relative to their variance; where rows are few for the columns, what
        cross-validation expects of it on others; an order by "obs" is fitted to them too, which it does not see: on
        others the error may be twice that. Never rising with the weights that stay.
        """
        return self._fits["errors"]

    def write(self, network: nn.Module, kept: int) -> None:
        """Give the layer of a copy of the network the weights, and the bias if there is one, of a level."""
        place = self.levels.index(kept)
        first = sum(self.levels[:place])
        matrix = np.zeros(self.dense.size, dtype=np.float32)
        matrix[self.order[:kept]] = self._stored["values"][first : first + kept]
        bias = torch.from_numpy(self._stored["shifts"][place])
        if self._bias is not None:
            bias = bias + self._bias
        write_layer(network, self.layer, torch.from_numpy(matrix).reshape(self._weight.shape), bias)

    def prepare(self, *, error_curves: bool) -> None:
        """Compute now what is kept on disk."""
        _ = self._stored
        if error_curves:
            _ = self._fits

    @cached_property
    def _stored(self) -> Mapping[str, NDArray[Any]]:
        """`values` of each level, float32, one level after the other; `shifts` of the bias, float32 (levels, rows)."""
        if not self._settings.fitted and self._settings.codebook is None:
            return self._compute_stored()
        kind = "fitted" if self._settings.fitted else "magnitude"
        return self._calibration.remember(self._file(f"{kind}-{self._settings.codebook}"), self._compute_stored)

    def _compute_stored(self) -> dict[str, NDArray[Any]]:
        values, shifts = [], []
        for place, kept in enumerate(self.levels):
            matrix = np.zeros_like(self.dense)
            matrix.reshape(-1)[self.order[:kept]] = self._values(place)
            if self._settings.codebook is not None:
                matrix = share(matrix, self._settings.codebook, self._consumers if self._settings.fitted else ())
            values.append(matrix.reshape(-1)[self.order[:kept]])
            shifts.append(self._shift(matrix))
        return {"values": np.concatenate(values).astype(np.float32), "shifts": np.array(shifts, dtype=np.float32)}

    def _values(self, place: int) -> FloatArray:
        """The weights that stay at a level, before they are shared: float64 (kept,), in the order."""
        first, kept = sum(self.levels[:place]), self.levels[place]
        if not self._settings.fitted:
            return self.dense.reshape(-1)[self.order[:kept]]
        values: FloatArray = self._fits["values"][first : first + kept]
        return values

    def _shift(self, matrix: FloatArray) -> FloatArray:
        """What keeps the mean of the outputs, float64 (rows,); 0 if the layer cannot store it or nothing is fitted."""
        if not (self._settings.fitted and self.layer.intercept):
            return np.zeros(len(matrix))
        lost = (self.dense - matrix).reshape(self.layer.groups, -1, matrix.shape[1])
        means = _by_input(self._moments.mean.reshape(self.layer.groups, -1), self.layer.taps).numpy()
        shift: FloatArray = np.einsum("grc,gc->gr", lost, means).reshape(-1)
        return shift

    @cached_property
    def _fits(self) -> Mapping[str, NDArray[Any]]:
        """Fitted `values` of each level, float64, one level after the other, and `errors`, float64 (levels,)."""
        return self._calibration.remember(self._file("fits"), self._compute_fits)

    def _compute_fits(self) -> dict[str, NDArray[Any]]:
        rows, columns = self.dense.shape
        values = [np.empty(kept) for kept in self.levels]
        errors = np.zeros(len(self.levels))
        few = few_rows(self._moments.rows, columns)
        # where each row's weights stand in the order of the layer, int64 (rows, columns), ascending
        places = np.argsort(self.order // columns, kind="stable").reshape(rows, columns)
        for row in range(rows):
            consumer = self._consumers[row * self.layer.groups // rows]
            own = self.order[places[row]] % columns
            output = row % (rows // self.layer.groups)
            ordered = Consumer(consumer.gram[own][:, own], consumer.weights[own, output].unsqueeze(1))
            least_squares = NestedLeastSquares(ordered, self._ridge)
            left = np.searchsorted(places[row], self.levels)  # weights of this row at each level
            of_row = least_squares.errors_elsewhere(self._moments.rows) if few else least_squares.errors()
            errors += of_row.numpy()[left]
            for level, count in enumerate(left.tolist()):
                values[level][places[row][:count]] = least_squares.weights(count).numpy()[:, 0]
        energy = sum(consumer.energy for consumer in self._consumers)
        return {"values": np.concatenate(values), "errors": np.minimum.accumulate(errors) / energy}

    @cached_property
    def _moments(self) -> Moments:
        return self._calibration.moments(self.layer.name)

    @cached_property
    def _consumers(self) -> list[Consumer]:
        return row_consumers(self.layer, self._moments, torch.from_numpy(self.dense))

    @cached_property
    def _ridge(self) -> float:
        return choose_ridge(self._consumers, self._moments.rows)

    def _file(self, kind: str) -> str:
        settings = f"{_VERSION} {self._settings.criterion} {self._settings.pattern.name} {self.levels}"
        if self._given is not None:  # the order depends on more than the calibration
            settings += hashlib.sha256(np.ascontiguousarray(self.order).data).hexdigest()
        return f"levels-{hashlib.sha256(settings.encode()).hexdigest()[:16]}-{kind}-{self.layer.name}"


def row_consumers(layer: Layer, moments: Moments, dense: torch.Tensor) -> list[Consumer]:
    """The layer's groups as least-squares problems; columns as torch stores them, input channel * taps + tap.

    Args:
        layer: of which.
        moments: of its inputs.
        dense: its weights, float64 (rows, columns).
    """
    means = moments.mean.reshape(layer.groups, -1)
    grams = moments.gram.reshape(layer.groups, means.shape[1], -1)
    if not layer.intercept:
        grams = grams + moments.rows * means.unsqueeze(2) * means.unsqueeze(1)
    by_input = partial(_by_input, taps=layer.taps)
    return [
        Consumer(by_input(by_input(gram).mT).mT.contiguous(), weights.mT.contiguous())
        for gram, weights in zip(grams, dense.reshape(layer.groups, -1, dense.shape[1]), strict=True)
    ]


def _by_input(columns: torch.Tensor, taps: int) -> torch.Tensor:
    """The last dimension from tap * channels + channel to channel * taps + tap."""
    return columns.reshape(*columns.shape[:-1], taps, -1).mT.flatten(-2)
