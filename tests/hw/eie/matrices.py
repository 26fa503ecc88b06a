"""Matrices that the tests of EIE's form share."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from hw.eie.codebook import Codebook

#: values that are not the codes themselves, so that a mix-up shows
BOOK = Codebook(np.concatenate([[0.0], np.arange(1, 16) / 8 - 1.0625]).astype(np.float32))
BOOK_256 = Codebook(np.concatenate([[0.0], np.arange(1, 256) / 128 - 0.996]).astype(np.float32))


@st.composite
def code_matrices(draw: st.DrawFn, most_rows: int = 90) -> tuple[NDArray[np.uint8], Codebook, int]:
    """Codes (rows, columns), a codebook for them, and a number of elements, perhaps larger than that of rows."""
    rows, columns = draw(st.integers(1, most_rows)), draw(st.integers(1, 5))
    book = draw(st.sampled_from([BOOK, BOOK_256]))
    density = draw(st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    codes: NDArray[Any] = rng.integers(1, len(book.values), (rows, columns))
    codes[rng.random((rows, columns)) >= density] = 0
    return codes.astype(np.uint8), book, draw(st.integers(1, 20))
