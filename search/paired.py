"""Two networks on the same images: what counts is on which images they differ.

[McNemar] Note on the sampling error of the difference between correlated proportions or percentages, Psychometrika 12,
1947; here its exact form, a sign test on the images that one of the two alone classifies rightly.
"""

from __future__ import annotations

import base64
import math

import numpy as np


def discordant(first: str, second: str) -> tuple[int, int]:
    """How many images the first alone and the second alone classifies rightly.

    Args:
        first, second: `PolicyRecord.test_correct` of networks scored on the same images.

    Raises:
        ValueError: they are of unequally many images.
    """
    hits = [np.unpackbits(np.frombuffer(base64.b64decode(packed), dtype=np.uint8)) for packed in (first, second)]
    if len(hits[0]) != len(hits[1]):
        raise ValueError(f"expected hits on the same images, got {len(hits[0])} and {len(hits[1])} bits")
    return int((hits[0] > hits[1]).sum()), int((hits[1] > hits[0]).sum())


def mcnemar(first: int, second: int) -> float:
    """The two-sided p-value of so many images for either, if each were as likely to fall to the one as to the other."""
    total, fewer = first + second, min(first, second)
    if first == second:
        return 1.0
    whole = math.lgamma(total + 1) - total * math.log(2.0)
    tail = math.fsum(math.exp(whole - math.lgamma(i + 1) - math.lgamma(total - i + 1)) for i in range(fewer + 1))
    return min(1.0, 2.0 * tail)
