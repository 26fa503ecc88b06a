"""Where sparsity pays: the density that follows from measured times, and how other densities are made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hw.sparse.break_even import break_even, measure_layer, thinned


@pytest.mark.parametrize(
    ("dense", "expected"),
    [
        (0.5, 0.0),  # slower at the lowest density already
        (1.0, 0.0),  # equal is not faster
        (2.0, 0.15),  # half of the way from 1 ms at 10 % to 3 ms at 20 %
        (3.0, 0.2),
        (4.5, 0.35),  # half of the way from 3 ms at 20 % to 6 ms at 50 %
        (7.0, None),  # faster at all
    ],
)
def test_break_even_lies_where_the_times_cross(dense: float, expected: float | None) -> None:
    found = break_even(((0.1, 1.0), (0.2, 3.0), (0.5, 6.0)), dense)
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_thinned_layer_has_so_many_of_its_own_values() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, 3)
    with torch.no_grad():
        layer.weight[:4] = 0.0
    thin = thinned(layer, 0.25, np.random.default_rng(0))
    assert int(torch.count_nonzero(thin.weight)) == round(0.25 * layer.weight.numel())
    own = set(layer.weight.detach().flatten().tolist())
    assert set(thin.weight.detach().flatten().tolist()) <= own
    assert int(torch.count_nonzero(thin.weight[:4])) > 0  # any place may stay, also where the layer has none
    again = thinned(layer, 0.25, np.random.default_rng(0))
    assert torch.equal(thin.weight, again.weight)


def test_a_layer_is_measured_at_its_own_density_and_at_others() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(32, 16)
    with torch.no_grad():
        layer.weight *= torch.rand_like(layer.weight) < 0.3
    own = int(torch.count_nonzero(layer.weight)) / 512
    measured = measure_layer(layer.eval(), torch.randn(1, 32), threads=1, densities=(0.1, 0.6))
    assert [density for density, _ in measured.sparse] == [0.1, own, 0.6]
    assert set(measured.milliseconds) == {
        "torch", "onnxruntime", "onnxruntime int8", "torch CSR", "lanes", "columns", "panels",
    }  # fmt: skip
    assert all(value > 0.0 for value in measured.milliseconds.values())
    assert dict(measured.sparse)[own] == min(measured.milliseconds[kernel] for kernel in ("lanes", "columns", "panels"))


def test_a_linear_layer_at_several_positions_is_timed_on_all_of_them() -> None:
    torch.manual_seed(0)
    measured = measure_layer(nn.Linear(8, 12), torch.randn(2, 5, 8), threads=1, densities=(0.5,))
    assert {"torch", "onnxruntime"} <= set(measured.milliseconds)
