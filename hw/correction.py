"""The small correction of a latency table: what the sum of its layers misses, fitted on whole networks it has seen.

A line: latency = scale * sum + offset, by least squares of the relative error. More was tried (a term for the width of
each layer, ridge regression) and predicts other networks no better.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hw.latency_table import Correction, LatencyTable
from hw.timing import FloatArray

_FEWEST = 8  # networks


def fit_correction(table: LatencyTable) -> LatencyTable:
    """The table with a correction fitted on its networks; unchanged if there are too few of them.

    Earlier refinements stay.
    """
    if len(table.networks) < _FEWEST:
        return table
    design, measured = _observations(table)
    rows = design / measured[:, None]
    scale, offset = np.linalg.solve(rows.T @ rows, rows.sum(axis=0)).tolist()
    correction = Correction(
        scale=scale,
        offset=offset,
        networks=len(measured),
        before=float(np.median(np.abs(design[:, 0] / measured - 1.0))),
        after=float(np.median(np.abs(_left_out_errors(design, measured)))),
        refinements=table.correction.refinements,
    )
    return replace(table, correction=correction)


def left_out_predictions(table: LatencyTable) -> list[tuple[float, float]]:
    """Predicted and measured latency of each network of the table, each predicted by a fit on the others."""
    if len(table.networks) < _FEWEST:
        return []
    design, measured = _observations(table)
    predicted = measured * (1.0 - _left_out_errors(design, measured))
    return list(zip(predicted.tolist(), measured.tolist(), strict=True))


def _observations(table: LatencyTable) -> tuple[FloatArray, FloatArray]:
    """What the fit sees: per network the sum of the entries and 1; and the latency."""
    cost = table.without_correction().bind(table.layers)
    sums = np.array([cost(np.array(net.kept_in), np.array(net.kept_out)) for net in table.networks])
    measured = np.array([network.timing.p10 for network in table.networks])
    return np.stack([sums, np.ones(len(sums))], axis=1), measured


def _left_out_errors(design: FloatArray, measured: FloatArray) -> FloatArray:
    """1 - predicted / measured when each network is predicted by a fit on the others, in closed form."""
    rows = design / measured[:, None]
    hat = rows @ np.linalg.solve(rows.T @ rows, rows.T)
    errors: FloatArray = (1.0 - hat.sum(axis=1)) / (1.0 - np.diag(hat))
    return errors
