"""Direct sparse convolution: each weight times a shifted run of its input channel.

For each column of the kernel the padded input is copied once, shifted (and thinned, if there is a stride) so that its
rows lie as those of the result do: one offset per weight (channel, row and column of the kernel) then serves every
pixel, and all loads are aligned. Rows are filled up to whole vectors, whose few additional results are dropped. With a
vertical stride there is a copy for every phase (every second row, say). An image that is too narrow for that is copied
for each row of the kernel too, without gaps between its rows. A 1x1 convolution is the case of one copy.

All this is done for a strip of the result's rows at a time, small enough for the second level of the cache. Threads
share out images and strips. Those of few images of a 1x1 convolution share out its output channels instead, and each
copies the image: the borders of strips lie inside cache lines, for which two threads that write them must wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from hw.sparse.jit import check_threads, compiled, parallel, signed, use_threads
from hw.sparse.panels import (
    LARGEST_OFFSET,
    PANEL,
    WEIGHTS_PER_TILE,
    TiledRows,
    Weights,
    clear,
    copy,
    row_bounds,
    sum_panel,
    weights_of,
)
from hw.sparse.rows import FloatArray, SparseRows, aligned_empty, check_bias
from hw.sparse.vector import LANES, Address, load_between, raw, raw_aligned, store

Pair = tuple[int, int]
#: bytes of the copies that a panel should see of a tile of channels: the first level of the cache
_TILE_BYTES = 32 * 1024
#: bytes of a strip's copies of the input: half of the second level
_STRIP_BYTES = 512 * 1024
#: an image that fills less of its whole vectors than this is too narrow
_FILLED = 0.75


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


class _Strips(NamedTuple):
    """The result in strips of rows, and the input as the kernel reads it for one of them: planes of shifted copies.

    Attributes:
        channels, height, width: of the input.
        out_height, out_width: of the result.
        strip: rows of the result in a strip; the last may have fewer.
        plane_height: rows of a plane that a whole strip needs.
        pitch: floats from one row of a plane to the next.
        plane: floats from one plane to the next; an odd number of cache lines, so that planes do not share a place in
            the cache.
    """

    channels: int
    height: int
    width: int
    out_height: int
    out_width: int
    strip: int
    plane_height: int
    pitch: int
    plane: int


@dataclass(frozen=True, eq=False)
class _Packed:
    """Weights for inputs of one size.

    Attributes:
        strips: the sizes.
        rows_from, columns_from: int64, the first row and column of the input in each of a channel's planes.
        tiles: the weights; an offset is one in the planes.
    """

    strips: _Strips
    rows_from: NDArray[np.int64]
    columns_from: NDArray[np.int64]
    tiles: TiledRows

    @property
    def source(self) -> int:
        """Floats of all planes of a strip; a vector more, because the last is cleared a little beyond its end."""
        return self.strips.channels * len(self.rows_from) * len(self.columns_from) * self.strips.plane + LANES


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
    _packed: dict[tuple[Pair, int], _Packed] = field(default_factory=dict, repr=False)

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
            threads: that share the images and their rows.

        Returns:
            float32 (images, out channels, height, width).

        Raises:
            ValueError: images of another type, number of channels, or too small.
        """
        if x.dtype != np.float32 or x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"expected images float32 (images, {self.in_channels}, height, width), got {x.dtype} {x.shape}"
            )
        size, shares = (x.shape[2], x.shape[3]), threads if len(x) < check_threads(threads) else 1
        strips, parts = (1, shares) if self.window.kernel_size == (1, 1) else (shares, 1)
        if (size, strips) not in self._packed:
            self._packed[size, strips] = self._pack(size, strips)
        packed, rows = self._packed[size, strips], self.matrix.shape[0]
        y = aligned_empty((len(x), rows, packed.strips.out_height, packed.strips.out_width))
        _convolve(
            threads, tuple(packed.strips), self.window.stride, packed.rows_from, packed.columns_from,
            tuple(packed.tiles), check_bias(bias, rows), np.ascontiguousarray(x), y, len(x), parts,
            np.empty(threads * packed.source + LANES, np.float32),
            np.empty(threads * rows * (packed.strips.strip * packed.strips.pitch + LANES), np.float32),
        )  # fmt: skip
        return y

    def _pack(self, size: Pair, fewest_strips: int) -> _Packed:
        """Lay the weights out; the number of strips is a multiple of `fewest_strips` if there are rows enough."""
        window = self.window
        out_height, out_width = window.output_size(size)
        rows_from, copies, below, pitch = _rows_of_kernel(window, out_width)
        columns_from = np.arange(window.kernel_size[1]) * window.dilation[1] - window.padding[1]
        per_channel, more = len(rows_from) * len(columns_from), int(below.max())
        wanted = -(-4 * self.in_channels * per_channel * (out_height + more) * pitch // _STRIP_BYTES)
        strip = -(-out_height // (-(-max(wanted, 1) // fewest_strips) * fewest_strips))
        lines = -(-(strip + more) * pitch // LANES) + 1  # the last vector of a row may reach beyond it
        plane = LANES * (lines + 1 - lines % 2)
        channel = np.arange(self.in_channels)[:, None, None]
        number = channel * per_channel + copies[:, None] * len(columns_from) + np.arange(len(columns_from))
        offsets = (number * plane + (below * pitch)[:, None]) // LANES
        seen = 4 * self.in_channels * per_channel * min(PANEL + more * pitch, plane)
        channels = min(self._channels_per_tile(seen), max(LARGEST_OFFSET * LANES // (per_channel * plane), 1))
        taps = window.kernel_size[0] * window.kernel_size[1]
        return _Packed(
            _Strips(self.in_channels, *size, out_height, out_width, strip, strip + more, pitch, plane),
            rows_from - window.padding[0], columns_from,
            TiledRows.pack(self.matrix, channels * taps, offsets.reshape(-1)),
        )  # fmt: skip

    def _channels_per_tile(self, seen: int) -> int:
        """Channels of a tile if a panel sees so many bytes of all of them."""
        per_row = len(self.matrix.values) / max(self.matrix.shape[0], 1)
        tiles = max(min(-(-seen // _TILE_BYTES), int(per_row / WEIGHTS_PER_TILE)), 1)
        return -(-self.in_channels // tiles)


def _rows_of_kernel(window: Window, out_width: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]:
    """How a kernel's rows find their values.

    Returns:
        The first row of the padded input in each copy, the copy of each row of the kernel and how many rows below the
        first its values begin there, int64 (copies,) and twice (kernel height,); and the floats in a copy's rows.
    """
    place, whole = np.arange(window.kernel_size[0]) * window.dilation[0], -(-out_width // LANES) * LANES
    if len(place) == 1 or out_width < _FILLED * whole:
        return place, np.arange(len(place)), 0 * place, out_width
    phases, copies = np.unique(place % window.stride[0], return_inverse=True)
    return phases, copies, place // window.stride[0], whole


@compiled
def _copy_in(
    strips: _Strips, stride: Pair, rows_from: NDArray[np.int64], columns_from: NDArray[np.int64], first: int, rows: int,
    x: Address, image: int, source: Address, plane: int,
) -> None:  # fmt: skip
    """All planes of the strip that begins at row `first` of the result, `rows` rows of each."""
    for channel in range(strips.channels):
        pixels = image + channel * strips.height * strips.width
        for top in rows_from:
            for left in columns_from:
                _copy_plane(strips, stride, first * stride[0] + top, left, rows, x, pixels, source, plane)
                plane += strips.plane


@compiled
def _copy_plane(
    strips: _Strips, stride: Pair, top: int, left: int, rows: int, x: Address, pixels: int, source: Address, plane: int,
) -> None:  # fmt: skip
    """source[plane + (row, column)] = x[pixels + (top + row * stride, left + column * stride)], zero outside."""
    width, pitch, line = strips.out_width, strips.pitch, plane
    begin = min(max((stride[1] - 1 - left) // stride[1], 0), width)
    end = min(max((strips.width - left + stride[1] - 1) // stride[1], begin), width)
    if left == 0 and top >= 0 and pitch == strips.width and stride[0] * stride[1] == 1:  # one run of rows
        run = max(min(rows, strips.height - top), 0)
        copy(source, line, x, pixels + top * pitch, run * pitch)
        line, rows, top = line + run * pitch, rows - run, top + run
    for y in range(top, top + rows * stride[0], stride[0]):
        start, seen = pixels + y * strips.width + left, end if 0 <= y < strips.height else 0
        if stride[1] == 1:
            for place in range(0, pitch, LANES):
                store(source, line + place, load_between(x, start + place, begin - place, seen - place))
        else:
            clear(source, line, line + pitch)
            for place in range(begin, seen):
                source[line + place] = x[start + place * stride[1]]
        line += pitch
    clear(source, line, plane + strips.plane)


@compiled
def _sum(
    weights: Weights, first: int, last: int, bias: Address, source: Address, origin: int, positions: int,
    target: Address, goal: int, pitch: int,
) -> None:  # fmt: skip
    """Some output channels at `positions` pixels; the last panel overlaps the one before if 16 do not divide them."""
    start = 0
    while start < positions:
        width = 64 if positions - start >= 64 else 32 if positions - start >= 32 else 16
        start = min(start, positions - width)
        sum_panel(width, weights, first, last, source, origin + start, bias, target, goal + start, pitch)
        start += width


@compiled
def _strip(
    strips: _Strips, weights: Weights, first: int, last: int, bias: Address, source: Address, origin: int, rows: int,
    target: Address, goal: int, y: Address, result: int,
) -> None:  # fmt: skip
    """The results of `rows` rows in output channels `first` to `last`; that of channel 0 would begin at `result`.

    Straight to their place, if there are no gaps between the rows and the last panel is nearly as well filled as one
    that may reach beyond them.
    """
    size, width = strips.out_height * strips.out_width, strips.out_width
    if strips.pitch == width and rows * width >= LANES and rows * width % (2 * LANES) <= LANES:
        _sum(weights, first, last, bias, source, origin, rows * width, y, result, size)
        return
    positions = (rows * strips.pitch + LANES - 1) // LANES * LANES
    _sum(weights, first, last, bias, source, origin, positions, target, goal, positions)
    for channel in range(first, last):
        for row in range(rows):
            place = goal + channel * positions + row * strips.pitch
            copy(y, result + channel * size + row * width, target, place, width)


@compiled
def _images(
    thread: int, threads: int, strips: _Strips, stride: Pair, rows_from: NDArray[np.int64],
    columns_from: NDArray[np.int64], tiles: TiledRows, bias: Address, x: Address, y: Address, images: int, parts: int,
    source: Address, target: Address,
) -> None:  # fmt: skip
    """One thread's share of the strips, and of `parts` of the output channels; it has its own of `source`, `target`."""
    weights, below = weights_of(tiles), strips.plane_height - strips.strip
    per_image = (strips.out_height + strips.strip - 1) // strips.strip
    origin = thread * (strips.channels * len(rows_from) * len(columns_from) * strips.plane + LANES)
    goal = thread * tiles.rows * (strips.strip * strips.pitch + LANES)
    tasks = images * per_image * parts
    for task in range(tasks * thread // threads, tasks * (thread + 1) // threads):
        image, top = task // parts // per_image, task // parts % per_image * strips.strip
        rows = min(strips.strip, strips.out_height - top)
        pixels = image * strips.channels * strips.height * strips.width
        _copy_in(strips, stride, rows_from, columns_from, top, rows + below, x, pixels, source, origin)
        result = (image * tiles.rows * strips.out_height + top) * strips.out_width
        first, last = row_bounds(tiles, task % parts, parts)
        _strip(strips, weights, first, last, bias, source, origin, rows, target, goal, y, result)


@parallel
def _convolve(
    threads: int, geometry: tuple[int, ...], stride: Pair, rows_from: NDArray[np.int64],
    columns_from: NDArray[np.int64], weights: tuple[Any, ...], bias: FloatArray, x: FloatArray, y: FloatArray,
    images: int, parts: int, source: FloatArray, target: FloatArray,
) -> None:  # fmt: skip
    strips, tiles = _Strips(*geometry), TiledRows(*weights)
    before = use_threads(threads)
    for index in prange(threads):
        _images(
            signed(index), threads, strips, stride, rows_from, columns_from, tiles, raw(bias), raw(x), raw(y), images,
            parts, raw_aligned(source), raw(target),
        )  # fmt: skip
    use_threads(before)
