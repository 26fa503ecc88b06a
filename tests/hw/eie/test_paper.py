"""The paper's table: complete, and synthetic layers that are as it says."""

from __future__ import annotations

import numpy as np
import pytest

from hw.eie.format import EIEMatrix
from hw.eie.paper import PAPER_LAYERS, PAPER_TIMES_US, SYNTHETIC_CODEBOOK, PaperLayer
from hw.eie.simulator import CLOCK_MHZ, ColumnWork, simulate


def test_nine_layers_and_nine_times_each() -> None:
    assert len(PAPER_LAYERS) == 9
    assert {len(times) for times in PAPER_TIMES_US.values()} == {9}


def test_the_papers_speedups_follow_from_its_times() -> None:
    """189, 13 and 307 times as fast as dense layers on processor, graphics card and mobile one (figure 6): to 3 %."""
    actual = np.array(PAPER_TIMES_US["EIE, actual"])
    for platform, speedup in (("Core i7-5930K", 189), ("Titan X", 13), ("Tegra K1", 307)):
        ratios = np.array(PAPER_TIMES_US[f"{platform}, dense"]) / actual
        assert float(np.exp(np.log(ratios).mean())) == pytest.approx(speedup, rel=0.03)


SMALL = PaperLayer("small", inputs=300, outputs=200, weight_density=0.1, activation_density=0.3)


def test_a_synthetic_layer_has_the_size_and_the_densities() -> None:
    """Five standard deviations: about one seed in a million fails by chance."""
    rng = np.random.default_rng(0)
    weights, activations = SMALL.weights(rng), SMALL.activations(rng)
    assert weights.shape == (200, 300)
    assert weights.density == pytest.approx(0.1, abs=5 * (0.1 * 0.9 / 60_000) ** 0.5)
    assert np.count_nonzero(activations) / 300 == pytest.approx(0.3, abs=5 * (0.3 * 0.7 / 300) ** 0.5)
    assert (activations >= 0).all()
    assert len(np.unique(weights.data)) == 15
    encoded = EIEMatrix.from_csc(weights, SYNTHETIC_CODEBOOK, 64)
    assert np.array_equal(encoded.to_dense(), weights.to_dense())


def test_non_zeros_are_spread_evenly() -> None:
    """Sums over rows and columns of 20 matrices: within five standard deviations (3 seeds in 10,000 fail)."""
    rng = np.random.default_rng(1)
    total = sum((SMALL.weights(rng).to_dense() != 0).astype(int) for _ in range(20))
    for axis, count in ((0, 20 * 200), (1, 20 * 300)):
        sums = np.asarray(total).sum(axis=axis)
        assert abs(sums - 0.1 * count).max() < 5 * (0.09 * count) ** 0.5


def test_a_seed_repeats_a_layer() -> None:
    first, second = (SMALL.weights(np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first.indices, second.indices)
    assert np.array_equal(first.data, second.data)


def test_a_full_and_an_empty_density() -> None:
    full = PaperLayer("full", 5, 4, 1.0, 1.0)
    assert full.weights(np.random.default_rng(0)).density == 1.0
    with pytest.raises(ValueError, match=r"^expected a density above 0 and at most 1, got 0\.0$"):
        PaperLayer("empty", 5, 4, 0.0, 1.0).weights(np.random.default_rng(0))


@pytest.mark.parametrize("index", [2, 6, 8], ids=lambda index: PAPER_LAYERS[index].name)
def test_times_of_synthetic_layers_are_near_the_papers(index: int) -> None:
    """The paper's are those of real networks, which are pruned more unevenly than at random."""
    layer, rng = PAPER_LAYERS[index], np.random.default_rng(0)
    run = simulate(ColumnWork.of_csc(layer.weights(rng)), layer.activations(rng))
    assert 0.75 < run.cycles / CLOCK_MHZ / PAPER_TIMES_US["EIE, actual"][index] < 1.1
