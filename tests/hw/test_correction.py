"""The correction of a table, on networks whose latency is a known function of the sum and the widths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.correction import fit_correction, left_out_predictions
from hw.cost import FloatArray
from hw.host import Conditions, Host
from hw.latency_table import Correction, Entry, LatencyTable, MeasuredNetwork
from hw.layers import LayerShape
from hw.timing import Timing

LAYERS = tuple(
    LayerShape(f"conv{i}", "conv", ins, outs, input_size=(size, size), output_size=(size, size))
    for i, (ins, outs, size) in enumerate([(3, 32, 32), (32, 64, 16), (64, 64, 8), (64, 10, 1)])
)
DENSE = np.array([layer.out_channels for layer in LAYERS], dtype=np.float64)


def layer_ms(layer: LayerShape, ins: int, outs: int) -> float:
    """Bilinear, so that a surface knows it exactly."""
    return 0.05 + ins * outs * layer.input_size[0] / 20_000


def bare_table() -> LatencyTable:
    entries = []
    for layer in LAYERS:
        for ins in {min(layer.in_channels, width) for width in (3, 8, 64)}:
            for outs in {min(layer.out_channels, width) for width in (8, 10, 64)}:
                ms = layer_ms(layer, ins, outs)
                entries.append(Entry(replace(layer.pruned(ins, outs), name=""), 9, ms, ms, ms, ms))
    return LatencyTable(Conditions(), Host(), tuple(entries), LAYERS)


TABLE = bare_table()


def sum_ms(kept_in: tuple[int, ...], kept_out: tuple[int, ...]) -> float:
    return sum(layer_ms(layer, i, o) for layer, i, o in zip(LAYERS, kept_in, kept_out, strict=True))


def network(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    first, second, third = (int(rng.integers(8, limit + 1)) for limit in (32, 64, 64))
    return (3, first, second, third), (first, second, third, 10)


def measured(
    networks: int, truth: Callable[[float, FloatArray], float], *, seed: int = 0, noise: float = 0.0
) -> LatencyTable:
    """The table with random networks whose p10 is truth(sum of the layers, shares of their widths)."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(networks):
        kept_in, kept_out = network(rng)
        ms = truth(sum_ms(kept_in, kept_out), np.array(kept_out) / DENSE) * rng.lognormal(sigma=noise)
        found.append(MeasuredNetwork(kept_in, kept_out, Timing(30, 1.3 * ms, ms, 2.0 * ms)))
    return replace(TABLE, networks=tuple(found))


def bent(total: float, shares: FloatArray) -> float:
    """What no sum of the layers knows: a factor and a constant."""
    return 1.1 * total + 0.3


def test_predicts_networks_that_it_has_not_seen() -> None:
    table = fit_correction(measured(40, bent))
    rng = np.random.default_rng(99)
    for _ in range(20):
        kept_in, kept_out = network(rng)
        expected = bent(sum_ms(kept_in, kept_out), np.array(kept_out) / DENSE)
        assert table.predict(kept_in, kept_out) == pytest.approx(expected, rel=0.01)
        assert table.without_correction().predict(kept_in, kept_out) < 0.9 * expected


def test_networks_left_out_are_predicted_within_a_percent() -> None:
    table = measured(40, bent)
    pairs = left_out_predictions(table)
    assert [ms for _, ms in pairs] == pytest.approx([network.timing.p10 for network in table.networks])
    assert max(abs(predicted / ms - 1.0) for predicted, ms in pairs) < 0.01


def test_finds_factor_and_constant() -> None:
    fitted = fit_correction(measured(20, lambda total, shares: 1.2 * total + 0.25)).correction
    assert fitted.scale == pytest.approx(1.2, rel=1e-4)
    assert fitted.offset == pytest.approx(0.25, rel=1e-3)
    assert fitted.networks == 20


def test_tells_the_error_before_and_after() -> None:
    table = measured(15, lambda total, shares: 2.0 * total)
    fitted = fit_correction(table).correction
    assert fitted.before == pytest.approx(0.5)
    assert fitted.after is not None
    assert fitted.after < 1e-4


def test_the_error_after_is_that_of_the_networks_left_out() -> None:
    table = measured(25, bent, noise=0.03)
    errors = [abs(predicted / ms - 1.0) for predicted, ms in left_out_predictions(table)]
    assert fit_correction(table).correction.after == pytest.approx(float(np.median(errors)))


@settings(max_examples=30)
@given(st.floats(1.05, 2.0), st.floats(0.0, 0.5), st.integers(8, 30), st.integers(0, 1000))
def test_what_is_left_is_no_more_than_before(scale: float, offset: float, networks: int, seed: int) -> None:
    table = measured(networks, lambda total, shares: scale * total + offset, seed=seed)
    fitted = fit_correction(table).correction
    assert fitted.before is not None
    assert fitted.after is not None
    assert fitted.after <= fitted.before


def test_leaving_out_equals_the_table_fitted_without() -> None:
    table = measured(12, bent, noise=0.05)
    for left, (predicted, _) in enumerate(left_out_predictions(table)):
        others = tuple(network for index, network in enumerate(table.networks) if index != left)
        without = fit_correction(replace(table, networks=others))
        out = table.networks[left]
        assert predicted == pytest.approx(without.predict(out.kept_in, out.kept_out), rel=1e-6)


@pytest.mark.parametrize("networks", [0, 1, 7])
def test_too_few_networks_leave_the_table_as_it_is(networks: int) -> None:
    table = measured(networks, bent)
    assert fit_correction(table) is table
    assert left_out_predictions(table) == []


def test_eight_networks_are_enough() -> None:
    table = measured(8, bent)
    assert fit_correction(table).correction.networks == 8
    assert len(left_out_predictions(table)) == 8


def test_an_earlier_correction_does_not_count_but_its_refinements_stay() -> None:
    table = measured(20, bent)
    earlier = Correction(scale=3.0, offset=1.0, networks=9, refinements=(0.25,))
    fitted = fit_correction(replace(table, correction=earlier)).correction
    assert fitted.refinements == (0.25,)
    assert replace(fitted, refinements=()) == fit_correction(table).correction


def test_everything_else_of_the_table_stays() -> None:
    table = measured(20, bent)
    fitted = fit_correction(table)
    assert replace(fitted, correction=Correction()).entries is table.entries
    assert (fitted.networks, fitted.layers, fitted.conditions) == (table.networks, table.layers, table.conditions)
