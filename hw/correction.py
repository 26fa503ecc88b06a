"""The small correction of a latency table: what the sum of its layers misses, fitted on whole networks it has seen.

Ridge regression of the measured latency on the predicted sum, a constant, and the width of each layer; relative errors
count. Only the widths are penalised, and the penalty is the one whose leave-one-out error is least.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hw.latency_table import Correction, LatencyTable
from hw.timing import FloatArray

_FEWEST = 8  # networks
_PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 1e6)


def fit_correction(table: LatencyTable) -> LatencyTable:
    """The table with a correction fitted on its networks; unchanged if there are too few of them.

    Earlier refinements stay.
    """
    if len(table.networks) < _FEWEST:
        return table
    design, measured = _observations(table)
    left_out, penalty = _best_penalty(design, measured)
    scale, offset, *slopes = _fit(design, measured, penalty).tolist()
    correction = Correction(
        scale=scale,
        offset=offset - sum(slopes),
        slopes=tuple(slopes),
        networks=len(measured),
        before=float(np.median(np.abs(design[:, 0] / measured - 1.0))),
        after=left_out,
        refinements=table.correction.refinements,
    )
    return replace(table, correction=correction)


def left_out_predictions(table: LatencyTable) -> list[tuple[float, float]]:
    """Predicted and measured latency of each network of the table, each predicted by a fit on the others."""
    if len(table.networks) < _FEWEST:
        return []
    design, measured = _observations(table)
    _, penalty = _best_penalty(design, measured)
    predicted = measured * (1.0 - _left_out_errors(design, measured, penalty))
    return list(zip(predicted.tolist(), measured.tolist(), strict=True))


def _observations(table: LatencyTable) -> tuple[FloatArray, FloatArray]:
    """What the fit sees: per network the sum of the entries, 1, and the widths less the dense ones; and the latency."""
    cost = table.without_correction().bind(table.layers)
    widths = np.array([network.kept_out for network in table.networks], dtype=np.float64)
    sums = np.array([cost(np.array(net.kept_in), np.array(net.kept_out)) for net in table.networks])
    measured = np.array([network.timing.p10 for network in table.networks])
    dense = np.array([layer.out_channels for layer in table.layers], dtype=np.float64)
    return np.concatenate([sums[:, None], np.ones((len(sums), 1)), widths / dense - 1.0], axis=1), measured


def _best_penalty(design: FloatArray, measured: FloatArray) -> tuple[float, float]:
    """The least median error of a network left out of the fit, and the penalty that gives it."""
    errors = ((np.median(np.abs(_left_out_errors(design, measured, penalty))), penalty) for penalty in _PENALTIES)
    return min((float(error), penalty) for error, penalty in errors)


def _fit(design: FloatArray, measured: FloatArray, penalty: float) -> FloatArray:
    rows = design / measured[:, None]
    solution: FloatArray = np.linalg.solve(rows.T @ rows + _ridge(design, penalty), rows.sum(axis=0))
    return solution


def _left_out_errors(design: FloatArray, measured: FloatArray, penalty: float) -> FloatArray:
    """1 - predicted / measured when each network is predicted by a fit on the others, in closed form."""
    rows = design / measured[:, None]
    hat = rows @ np.linalg.solve(rows.T @ rows + _ridge(design, penalty), rows.T)
    errors: FloatArray = (1.0 - hat.sum(axis=1)) / (1.0 - np.diag(hat))
    return errors


def _ridge(design: FloatArray, penalty: float) -> FloatArray:
    weights = np.full(design.shape[1], penalty)
    weights[:2] = 1e-9
    return np.diag(weights)
