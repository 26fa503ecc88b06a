"""Sparse convolutions against torch's in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hw.sparse import ConvMatrix, SparseRows, Window

TOLERANCE = 1e-6


def check(
    window: Window, size: tuple[int, int], channels: tuple[int, int] = (6, 8), *, groups: int = 1, density: float = 0.3,
    images: int = 2,
) -> None:  # fmt: skip
    """Equal to torch's convolution but for rounding, with one thread and with two."""
    inputs, outputs = channels
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((outputs, inputs // groups, *window.kernel_size)).astype(np.float32)
    weight *= rng.random(weight.shape) < density
    x = rng.standard_normal((images, inputs, *size)).astype(np.float32)
    bias = rng.standard_normal(outputs).astype(np.float32)
    matrix = ConvMatrix.pack(SparseRows.from_dense(weight.reshape(outputs, -1)), inputs, window, groups=groups)

    def dense(*arrays: NDArray[Any]) -> NDArray[Any]:
        x, weight, bias = (torch.from_numpy(array.astype(np.float64)) for array in arrays)
        result: NDArray[Any] = torch.nn.functional.conv2d(
            x, weight, bias, window.stride, window.padding, window.dilation, groups
        ).numpy()
        return result

    expected, scale = dense(x, weight, bias), dense(np.abs(x), np.abs(weight), np.abs(bias))
    for threads in (1, 2):
        actual = matrix.apply(x, bias, threads=threads)
        assert actual.dtype == np.float32
        assert actual.shape == expected.shape
        assert np.all(np.abs(actual - expected) <= TOLERANCE * scale)
    assert np.all(np.abs(matrix.apply(x) - (expected - bias[:, None, None])) <= TOLERANCE * scale)


@pytest.mark.parametrize(
    "window",
    [
        Window((1, 1)),
        Window((1, 1), stride=(2, 2)),
        Window((3, 3), padding=(1, 1)),
        Window((3, 3), stride=(2, 2), padding=(1, 1)),
        Window((3, 3)),
        Window((5, 5), padding=(2, 2)),
        Window((7, 7), stride=(2, 2), padding=(3, 3)),
        Window((3, 3), padding=(2, 2), dilation=(2, 2)),
        Window((3, 3), stride=(2, 2), padding=(3, 3), dilation=(3, 3)),
        Window((1, 3), stride=(1, 3), padding=(0, 2)),
        Window((2, 2), stride=(3, 3), padding=(4, 4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(9, 9), (14, 11), (7, 30)])
def test_windows(window: Window, size: tuple[int, int]) -> None:
    check(window, size)


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_groups(groups: int) -> None:
    check(Window((3, 3), padding=(1, 1)), (8, 8), (6, 12), groups=groups)


def test_a_layer_of_several_tiles() -> None:
    check(Window((3, 3), padding=(1, 1)), (16, 16), (64, 8), density=0.1)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [20, 30])
def test_an_image_in_strips(width: int, stride: int) -> None:
    """More bytes than half of the second level of the cache, in rows that do and do not fill whole vectors."""
    window = Window((3, 3), stride=(stride, stride), padding=(1, 1))
    check(window, (57 * stride, width * stride), (64, 3), images=1, density=0.1)


def test_one_image_by_output_channels() -> None:
    check(Window((1, 1)), (14, 14), (20, 50), images=1)
    check(Window((1, 1), stride=(2, 2)), (9, 9), (7, 70), images=1)


def test_no_weights_and_no_images() -> None:
    check(Window((3, 3), padding=(1, 1)), (5, 5), density=0.0)
    check(Window((3, 3), padding=(1, 1)), (5, 5), images=0)
    check(Window((1, 1)), (1, 1), (1, 1), images=1)


def test_channels_last() -> None:
    window = Window((3, 3), padding=(1, 1))
    weight, x = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)), torch.ones(1, 3, 6, 6)
    x = x.cumsum(2).cumsum(3).to(memory_format=torch.channels_last)
    matrix = ConvMatrix.pack(SparseRows.from_dense(weight.reshape(4, -1).numpy()), 3, window)
    expected = torch.nn.functional.conv2d(x, weight, padding=1).numpy()
    np.testing.assert_allclose(matrix.apply(x.numpy()), expected, rtol=1e-4, atol=1e-3)


def test_images_of_two_sizes() -> None:
    matrix = ConvMatrix.pack(SparseRows.from_dense(np.ones((1, 9), np.float32)), 1, Window((3, 3), padding=(1, 1)))
    for side in (4, 6, 4):
        assert matrix.apply(np.ones((1, 1, side, side), np.float32))[0, 0, 1, 1] == 9
    assert matrix.size_bytes > 0


def test_what_does_not_fit_is_refused() -> None:
    matrix = SparseRows.from_dense(np.ones((4, 18), np.float32))
    with pytest.raises(ValueError, match=r"expected 3 / 1 \* 9 columns and rows that 1 divides, got \(4, 18\)"):
        ConvMatrix.pack(matrix, 3, Window((3, 3)))
    conv = ConvMatrix.pack(matrix, 2, Window((3, 3)))
    with pytest.raises(ValueError, match=r"expected an input that the kernel \(3, 3\) fits into, got \(2, 9\) pixels"):
        conv.apply(np.ones((1, 2, 2, 9), np.float32))
    with pytest.raises(
        ValueError, match=r"expected images float32 \(images, 2, height, width\), got float32 \(1, 3, 9, 9\)"
    ):
        conv.apply(np.ones((1, 3, 9, 9), np.float32))
