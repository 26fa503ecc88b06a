"""Direct sparse convolution: each weight times a shifted run of its input channel, no patches are copied.

The input is padded once. Results are summed over the padded width, so that one offset per weight (channel, row and
column of the kernel) serves every pixel; the few results that belong to the padding are dropped. With a stride the
padded input is first taken apart into its phases (every second row and column, say), in each of which the stride is 1.
A 1x1 convolution is the case in which nothing is padded and the offset is the channel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from hw.sparse.jit import check_threads, compiled, parallel, signed, use_threads
from hw.sparse.panels import PANEL, SLACK, WEIGHTS_PER_TILE, TiledRows, aligned, copy, row_bounds, sum_panel, widest
from hw.sparse.rows import FloatArray, SparseRows, check_bias
from hw.sparse.vector import LANES, at

Pair = tuple[int, int]
#: bytes of the input that a panel should see of a tile of channels: the first level of the cache
_TILE_BYTES = 32 * 1024


@dataclass(frozen=True)
class Window:
    """How the kernel of a convolution moves; (height, width), in pixels."""

    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def output_size(self, size: Pair) -> Pair:
        """Height and width of the result.

        Raises:
            ValueError: the padded input is smaller than the kernel.
        """
        height, width = (
            (pixels + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for pixels, kernel, stride, padding, dilation in zip(
                size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True
            )
        )
        if min(height, width) < 1:
            raise ValueError(f"expected an input that the kernel {self.kernel_size} fits into, got {size} pixels")
        return height, width


class _Planes(NamedTuple):
    """The padded input as the kernel reads it: `channels` times `rows_apart * columns_apart` planes (phases).

    Attributes:
        channels, height, width: of the input.
        out_height, out_width: of the result.
        plane_height, plane_width: of a plane.
        plane: floats from one plane to the next; an odd number of cache lines, so that planes do not share a place in
            the cache.
    """

    channels: int
    height: int
    width: int
    out_height: int
    out_width: int
    plane_height: int
    plane_width: int
    plane: int


@dataclass(frozen=True, eq=False)
class _Packed:
    """Weights for inputs of one size."""

    planes: _Planes
    phases: tuple[NDArray[np.int64], NDArray[np.int64]]
    tiles: TiledRows


@dataclass(frozen=True, eq=False)
class ConvMatrix:
    """A sparse convolution of NCHW images.

    Attributes:
        matrix: the weights (out channels, in channels * kernel height * kernel width), all groups side by side.
        in_channels: of the image.
        window: how the kernel moves.
    """

    matrix: SparseRows
    in_channels: int
    window: Window
    _packed: dict[Pair, _Packed] = field(default_factory=dict, repr=False)

    @classmethod
    def pack(cls, matrix: SparseRows, in_channels: int, window: Window, *, groups: int = 1) -> ConvMatrix:
        """Prepare a convolution.

        Args:
            matrix: weights (out channels, in channels / groups * kernel height * kernel width).
            in_channels: of the image.
            window: how the kernel moves.
            groups: in which inputs and outputs are divided.

        Raises:
            ValueError: the matrix has another number of columns, or the groups do not divide the channels.
        """
        taps = window.kernel_size[0] * window.kernel_size[1]
        rows, columns = matrix.shape
        if in_channels % groups or rows % groups or columns != in_channels // groups * taps:
            raise ValueError(
                f"expected {in_channels} / {groups} * {taps} columns and rows that {groups} divides, got {matrix.shape}"
            )
        group = matrix.rows // max(rows // groups, 1)
        indices = (matrix.indices + group * columns).astype(np.int32)
        return cls(SparseRows((rows, groups * columns), matrix.values, indices, matrix.indptr), in_channels, window)

    @property
    def size_bytes(self) -> int:
        """Bytes of the weights that one multiplication reads, for the sizes of images seen so far."""
        return max((packed.tiles.size_bytes for packed in self._packed.values()), default=0)

    def apply(self, x: NDArray[Any], bias: NDArray[Any] | None = None, *, threads: int = 1) -> FloatArray:
        """The convolution. The first image of a size takes longer: the weights are laid out for it.

        Args:
            x: float32 (images, channels, height, width).
            bias: float32 (out channels,).
            threads: that share the output channels.

        Returns:
            float32 (images, out channels, height, width).

        Raises:
            ValueError: images of another type, number of channels, or too small.
        """
        if x.dtype != np.float32 or x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"expected images float32 (images, {self.in_channels}, height, width), got {x.dtype} {x.shape}"
            )
        size = (x.shape[2], x.shape[3])
        if size not in self._packed:
            self._packed[size] = self._pack(size)
        packed, window = self._packed[size], self.window
        rows, planes = self.matrix.shape[0], packed.planes
        y = np.empty((len(x), rows, planes.out_height, planes.out_width), np.float32)
        _convolve(
            check_threads(threads), tuple(planes), window.stride, window.padding, *packed.phases, tuple(packed.tiles),
            check_bias(bias, rows), np.ascontiguousarray(x), y,
        )  # fmt: skip
        return y

    def _pack(self, size: Pair) -> _Packed:
        window = self.window
        out_height, out_width = window.output_size(size)
        vertical, horizontal = (_taps(window, axis) for axis in (0, 1))
        plane_height, plane_width = out_height + int(vertical[1].max()), out_width + int(horizontal[1].max())
        lines = -(-plane_height * plane_width // LANES)
        plane = LANES * (lines + 1 - lines % 2)
        rows_apart, columns_apart = (len(phases) for phases in _phases(window))
        channel = np.arange(self.in_channels)[:, None, None]
        above, left = vertical[0][:, None], horizontal[0][None, :]
        of_plane = (channel * rows_apart + above) * columns_apart + left
        offsets = of_plane * plane + vertical[1][:, None] * plane_width + horizontal[1][None, :]
        reach = int(vertical[1].max()) * plane_width + int(horizontal[1].max())
        seen = 4 * self.in_channels * (PANEL + reach) * rows_apart * columns_apart
        per_tile = self._channels_per_tile(seen) * window.kernel_size[0] * window.kernel_size[1]
        planes = _Planes(self.in_channels, *size, out_height, out_width, plane_height, plane_width, plane)
        return _Packed(
            planes, _phases(window), TiledRows.pack(self.matrix, per_tile, offsets.reshape(-1).astype(np.int32))
        )

    def _channels_per_tile(self, seen: int) -> int:
        """Channels of a tile if a panel sees so many bytes of all of them."""
        per_row = len(self.matrix.values) / max(self.matrix.shape[0], 1)
        tiles = max(min(-(-seen // _TILE_BYTES), int(per_row / WEIGHTS_PER_TILE)), 1)
        return -(-self.in_channels // tiles)


def _phases(window: Window) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row and the first column of each phase that the kernel needs."""
    first, second = (
        np.unique(np.arange(kernel) * dilation % stride).astype(np.int64)
        for kernel, dilation, stride in zip(window.kernel_size, window.dilation, window.stride, strict=True)
    )
    return first, second


def _taps(window: Window, axis: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Along one axis, the phase of each row (or column) of the kernel, by number, and its place in that phase."""
    place = np.arange(window.kernel_size[axis]) * window.dilation[axis]
    return np.searchsorted(_phases(window)[axis], place % window.stride[axis]), place // window.stride[axis]


@compiled
def _pad(
    thread: int, threads: int, planes: _Planes, stride: Pair, padding: Pair, rows_from: NDArray[np.int64],
    columns_from: NDArray[np.int64], image: FloatArray, source: FloatArray,
) -> None:  # fmt: skip
    """The planes of one thread's channels."""
    apart = len(rows_from) * len(columns_from)
    for channel in range(planes.channels * thread // threads, planes.channels * (thread + 1) // threads):
        for phase in range(apart):
            top, left = rows_from[phase // len(columns_from)], columns_from[phase % len(columns_from)]
            plane = (channel * apart + phase) * planes.plane
            pixels = channel * planes.height * planes.width
            _pad_plane(planes, stride, top - padding[0], left - padding[1], image, pixels, source, plane)


@compiled
def _pad_plane(
    planes: _Planes, stride: Pair, top: int, left: int, image: FloatArray, pixels: int, source: FloatArray, plane: int
) -> None:
    """source[plane + (row, column)] = image[pixels + (top + row * stride, left + column * stride)], zero outside."""
    width, size = planes.plane_width, planes.height * planes.width
    if width == planes.width and planes.plane_height * width == size and stride[0] == 1:  # nothing to pad
        copy(source, plane, image, pixels, size)
        _clear(source, plane + size, plane + planes.plane)
        return
    begin = min(max((stride[1] - 1 - left) // stride[1], 0), width)
    end = min(max((planes.width - left + stride[1] - 1) // stride[1], begin), width)
    line = plane
    for y in range(top, top + planes.plane_height * stride[0], stride[0]):
        if y < 0 or y >= planes.height:
            _clear(source, line, line + width)
        else:
            first = pixels + y * planes.width + left
            _clear(source, line, line + begin)
            if stride[1] == 1:
                copy(source, line + begin, image, first + begin, end - begin)
            else:
                for place in range(begin, end):
                    source[line + place] = at(image, first + place * stride[1])
            _clear(source, line + end, line + width)
        line += width
    _clear(source, line, plane + planes.plane)


@compiled
def _clear(source: FloatArray, first: int, last: int) -> None:
    for place in range(first, last):
        source[place] = 0


@compiled
def _sum(
    thread: int, threads: int, planes: _Planes, tiles: TiledRows, bias: FloatArray, source: FloatArray,
    target: FloatArray, y: FloatArray,
) -> None:  # fmt: skip
    """The output channels of one thread, without the results that belong to the padding."""
    first, last = row_bounds(tiles, thread, threads)
    positions = (planes.out_height - 1) * planes.plane_width + planes.out_width
    pitch = (positions + PANEL - 1) // PANEL * PANEL
    start = 0
    while start < positions:
        width = widest(positions - start)
        sum_panel(width, tiles, first, last, source, start, 1, bias, target, start, pitch)
        start += width
    whole = planes.plane_width == planes.out_width
    height, width = (1, positions) if whole else (planes.out_height, planes.out_width)
    for row in range(first, last):
        for line in range(height):
            copy(y, (row * height + line) * width, target, row * pitch + line * planes.plane_width, width)


@parallel
def _convolve(
    threads: int, geometry: tuple[int, ...], stride: Pair, padding: Pair, rows_from: NDArray[np.int64],
    columns_from: NDArray[np.int64], weights: tuple[Any, ...], bias: FloatArray, x: FloatArray, y: FloatArray,
) -> None:  # fmt: skip
    planes, tiles = _Planes(*geometry), TiledRows(*weights)
    floats = planes.channels * len(rows_from) * len(columns_from) * planes.plane
    source = aligned(floats + SLACK)
    source[floats:] = 0
    positions = (planes.out_height - 1) * planes.plane_width + planes.out_width
    target = aligned(tiles.rows * ((positions + PANEL - 1) // PANEL * PANEL))
    before = use_threads(threads)
    for image in range(len(x)):
        pixels, result = x[image].reshape(-1), y[image].reshape(-1)
        for index in prange(threads):
            thread = signed(index)
            _pad(thread, threads, planes, stride, padding, rows_from, columns_from, pixels, source)
        for index in prange(threads):
            thread = signed(index)
            _sum(thread, threads, planes, tiles, bias, source, target, result)
    use_threads(before)
