"""Weight sharing: by hand, against scikit-learn, and in the corners where clusters run empty."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.cluster import KMeans

from hw.cost import FloatArray
from hw.eie.codebook import Codebook, fit_codebook


def squared_error(weights: FloatArray, book: Codebook) -> float:
    return float(((book.weights(book.codes(weights)) - weights) ** 2).sum())


def test_three_clusters_by_hand() -> None:
    # linear start -4, 0, 4; borders -2 and 2: {-4, -3} {-1, 1.5} {4}; means -3.5, 0.25, 4: nothing moves any more
    book = fit_codebook(np.array([[-4.0, 0.0, 1.5], [-1.0, 4.0, -3.0]]), entries=4)
    assert book.values.tolist() == [0.0, -3.5, 0.25, 4.0]
    assert book.codes(np.array([[-4.0, 0.0, 1.5], [-1.0, 4.0, -3.0]])).tolist() == [[1, 0, 2], [2, 3, 1]]


@pytest.mark.parametrize("entries", [16, 256])
def test_equals_scikit_learn_from_the_same_start(entries: int) -> None:
    weights = np.random.default_rng(0).normal(size=5000)
    start = np.quantile(weights, (np.arange(entries - 1) + 0.5) / (entries - 1))
    expected = KMeans(entries - 1, init=start[:, None], n_init=1, max_iter=1000, tol=0.0).fit(weights[:, None])
    book = fit_codebook(weights, entries, initial=start)
    np.testing.assert_allclose(book.values[1:], np.sort(expected.cluster_centers_[:, 0]), atol=1e-5)


def test_an_empty_cluster_starts_anew_at_the_weight_furthest_from_its_centroid() -> None:
    # linear start -10, 0.5, 11: nothing is nearest to 0.5; it moves to 11, furthest from the mean of 8, 9 and 11
    book = fit_codebook(np.array([-10.0, 8.0, 9.0, 11.0]), entries=4)
    assert book.values.tolist() == [0.0, -10.0, 8.5, 11.0]


@settings(max_examples=60)
@given(
    arrays(np.float64, st.integers(0, 60), elements=st.floats(-8, 8, width=16)),
    st.sampled_from([2, 3, 5, 16, 256]),
)
def test_every_value_is_the_mean_of_the_weights_nearest_to_it(weights: FloatArray, entries: int) -> None:
    book = fit_codebook(weights, entries)
    codes = book.codes(weights)
    assert 1 <= len(book.values) <= entries
    assert np.array_equal(codes == 0, weights == 0)
    assert sorted(set(codes[codes != 0].tolist())) == list(range(1, len(book.values)))
    distances = np.sort(np.abs(weights[:, None] - book.values[None, 1:].astype(np.float64)), axis=1)
    if distances.shape[1] > 1:
        assume((distances[:, 1] - distances[:, 0]).min(initial=1.0) > 1e-5)  # float32 decides where two are as near
    for code in range(1, len(book.values)):
        assert book.values[code] == pytest.approx(weights[codes == code].mean(), abs=1e-6)


def test_few_distinct_weights_are_their_own_codebook() -> None:
    weights = np.array([0.5, -0.25, 0.0, 0.5])
    book = fit_codebook(weights)
    assert book.values.tolist() == [0.0, -0.25, 0.5]
    assert np.array_equal(book.weights(book.codes(weights)), weights)
    assert fit_codebook(np.zeros((2, 2))).values.tolist() == [0.0]


def test_sixteen_entries_keep_the_energy_of_a_normal_distribution() -> None:
    weights = np.random.default_rng(0).normal(size=(256, 256))
    assert squared_error(weights, fit_codebook(weights)) < 0.02 * float((weights**2).sum())


def test_more_entries_err_less_and_results_repeat() -> None:
    weights = np.random.default_rng(1).normal(size=5000)
    errors = [squared_error(weights, fit_codebook(weights, entries)) for entries in (4, 16, 64, 256)]
    assert errors == sorted(errors, reverse=True)
    assert np.array_equal(fit_codebook(weights).values, fit_codebook(weights[::-1]).values)


def test_codes_are_nearest_in_a_codebook_of_any_order() -> None:
    book = Codebook(np.array([0.0, 2.0, -1.0, 0.5], np.float32))
    assert book.codes(np.array([1.9, -7.0, 0.0, 0.01, 1.0])).tolist() == [1, 2, 0, 3, 3]
    assert (book.code_bits, book.size_bytes) == (4, 16)
    assert Codebook(np.zeros(17, np.float32)).code_bits == 8


def test_shared_weights_return_exactly() -> None:
    weights = np.random.default_rng(2).choice(np.arange(256, dtype=np.float32), (40, 50))
    book = Codebook.of_values(weights)
    assert len(book.values) == 256
    assert np.array_equal(book.weights(book.codes(weights)), weights)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: fit_codebook(np.ones(3), 1), "expected 2 to 256 entries, got 1"),
        (lambda: fit_codebook(np.ones(3), 257), "expected 2 to 256 entries, got 257"),
        (
            lambda: fit_codebook(np.ones(3), 4, np.zeros(2)),
            r"expected 3 initial centroids for 4 entries, got \(2,\)",
        ),
        (lambda: fit_codebook(np.array([1.0, np.nan])), "expected finite weights, got NaN or infinity"),
        (lambda: fit_codebook(np.array([1.0, -np.inf])), "expected finite weights, got NaN or infinity"),
        (
            lambda: Codebook.of_values(np.arange(257)),
            r"expected at most 255 distinct non-zero weights, got 256; share them first: fit_codebook\(weights\)",
        ),
        (lambda: Codebook(np.zeros(0, np.float32)), "codebook: expected 1 to 256 entries, got 0"),
        (
            lambda: Codebook(np.ones(2, np.float32)),
            r"codebook: expected finite values and 0.0 as entry 0, got \[1.0, 1.0\]",
        ),
        (
            lambda: Codebook(np.zeros(1, np.float32)).codes(np.ones(2)),
            "expected no weight but 0 for an empty codebook, got 2 non-zero weights",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        call()
