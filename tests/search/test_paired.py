"""The paired test of two networks on the same images."""

from __future__ import annotations

import base64
import math

import numpy as np
import pytest

from search.paired import discordant, mcnemar


def packed(hits: list[bool]) -> str:
    return base64.b64encode(np.packbits(hits).tobytes()).decode()


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (7, 7, 1.0),
        (0, 10, 2 / 1024),
        (5, 12, 0.1434631),  # R: binom.test(5, 17)
        (10, 20, 0.0987371),  # R: binom.test(10, 30)
    ],
)
def test_mcnemar(first: int, second: int, p: float) -> None:
    assert mcnemar(first, second) == pytest.approx(p, rel=1e-5)
    assert mcnemar(second, first) == mcnemar(first, second)


@pytest.mark.parametrize(("first", "second"), [(1, 2), (30, 41), (200, 260)])
def test_mcnemar_is_the_sum_of_binomials(first: int, second: int) -> None:
    total = first + second
    tail = sum(math.comb(total, i) for i in range(first + 1))
    assert mcnemar(first, second) == pytest.approx(2 * tail / 2**total, rel=1e-9)


def test_of_many_images_it_is_the_normal_distribution() -> None:
    """With the correction for continuity, erfc((|b - c| - 1) / sqrt(2 (b + c)))."""
    assert mcnemar(20_000, 20_400) == pytest.approx(math.erfc(399 / math.sqrt(2 * 40_400)), rel=1e-3)


def test_discordant_images_are_counted_for_each_side() -> None:
    first = [True, True, False, False, True, True, False, False, True]
    second = [True, False, True, False, True, False, False, False, False]
    assert discordant(packed(first), packed(second)) == (3, 1)
    with pytest.raises(ValueError, match="expected hits on the same images, got 16 and 8 bits"):
        discordant(packed(first), packed(second[:8]))
