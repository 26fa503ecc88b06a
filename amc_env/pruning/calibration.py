"""Second moments of every layer's inputs over the calibration images: measured once, kept on disk, resumable."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env.pruning.graph import IntArray
from amc_env.pruning.layer_calls import LayerCall, LayerWatcher
from amc_env.pruning.rows import sample_rows
from hw.files import read_npz, write_atomically, write_npz

#: called with the layers done and all layers
OnProgress = Callable[[int, int], None]
_BLOCK = 512  # columns
_BYTES_AT_ONCE = 2**30  # of the moments that one pass over the images fills


@dataclass(frozen=True)
class Moments:
    """First and second moments of a layer's inputs over sampled rows; a row is what one output position sees.

    Those of a grouped convolution have one more dimension before all others, its groups, and the columns of one.

    Attributes:
        rows: how many.
        total: float64 (columns,), sum of the rows; a column is a tap of the kernel (slowest) and a channel.
        gram: float64 (columns, columns), centred: the sum over rows of (x - mean)(x - mean)'.
    """

    rows: int
    total: torch.Tensor
    gram: torch.Tensor

    @property
    def mean(self) -> torch.Tensor:
        return self.total / self.rows


class Calibration:
    """The moments of the inputs of a network's layers.

    Each is a file in `folder`, written whole or not at all, so an interrupted calibration goes on where it was. The
    layers are measured in one pass over the images, or in several if the matrices of all would exceed a gigabyte.

    Args:
        network: in evaluation mode.
        layers: names and numbers of columns of the layers to measure (of one group of a grouped convolution).
        batches: begins a new pass over the calibration images.
        rows: sampled per layer over all images.
        images: how many images a pass has.
        folder: of the files; its name should tell weights, data and settings apart.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: dict[str, int],
        batches: Callable[[], Iterator[torch.Tensor]],
        *,
        images: int,
        rows: int,
        folder: Path,
    ) -> None:
        self._network, self._layers, self._batches = network, layers, batches
        self._images, self._rows = images, rows
        self._folder = folder

    def moments(self, layer: str) -> Moments:
        """Of one layer; all that are missing are measured first.

        Raises:
            ValueError: its file is damaged.
        """
        if not self._path(layer).exists():
            self.prepare()
        content = self._path(layer).read_bytes()
        try:
            stored = torch.load(io.BytesIO(content), weights_only=True)
        except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"calibration: {self._path(layer)} is damaged; delete it, it is then measured again"
            ) from error
        return Moments(int(stored["rows"]), stored["total"], stored["gram"])

    def prepare(self, on_progress: OnProgress = lambda done, total: None) -> None:
        """Measure the layers whose files are missing."""
        missing = [name for name in self._layers if not self._path(name).exists()]
        done = len(self._layers) - len(missing)
        on_progress(done, len(self._layers))
        for chunk in self._chunks(missing):
            watcher = _MomentWatcher(self._network, chunk, self._rows / self._images)
            for images in self._batches():
                with torch.no_grad(), watcher:
                    self._network(images)
            for name in chunk:
                _save(watcher.moments(name), self._path(name))
                done += 1
                on_progress(done, len(self._layers))

    def remember(self, name: str, compute: Callable[[], Mapping[str, NDArray[Any]]]) -> Mapping[str, NDArray[Any]]:
        """Arrays that follow from the moments: read from their file, or computed and kept there.

        Raises:
            ValueError: the file is damaged.
        """
        path = self._folder / f"{name}.npz"
        if not path.exists():
            arrays = compute()
            self._folder.mkdir(parents=True, exist_ok=True)
            write_npz(path, arrays)
        try:
            return read_npz(path)
        except ValueError as error:
            raise ValueError(f"calibration: {path} is damaged; delete it, it is then computed again") from error

    def remember_order(self, name: str, compute: Callable[[], IntArray]) -> IntArray:
        """An order that follows from the moments: read from its file, or computed and kept there.

        Raises:
            ValueError: its file is damaged.
        """
        path = self._folder / f"order-{name}.npy"
        if not path.exists():
            stream = io.BytesIO()
            np.save(stream, compute())
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, stream.getvalue())
        try:
            order: IntArray = np.load(path)
        except (ValueError, EOFError) as error:
            raise ValueError(f"calibration: {path} is damaged; delete it, it is then computed again") from error
        return order

    def _chunks(self, names: Sequence[str]) -> Iterator[list[str]]:
        chunk: list[str] = []
        size = 0
        for name in names:
            needed = 8 * self._layers[name] ** 2
            if chunk and size + needed > _BYTES_AT_ONCE:
                yield chunk
                chunk, size = [], 0
            chunk.append(name)
            size += needed
        if chunk:
            yield chunk

    def _path(self, layer: str) -> Path:
        return self._folder / f"{layer}.pt"


class _MomentWatcher(LayerWatcher):  # type: ignore[no-untyped-call]
    """Adds up the moments of some layers' inputs during forward passes."""

    def __init__(self, network: nn.Module, layers: Sequence[str], rows_per_image: float) -> None:
        super().__init__(network)
        self._rows_per_image = rows_per_image
        # one for each layer: its rows do not depend on which others are measured in the same pass
        self._generators = {name: torch.Generator().manual_seed(0) for name in layers}
        self._sums: dict[str, tuple[int, Any, Any]] = {}

    def before_layer(self, call: LayerCall) -> None:
        if call.name not in self._generators:
            return
        rows = max(1, round(self._rows_per_image * call.images))
        sample = sample_rows(call, rows, self._generators[call.name])
        patches = sample.gather_inputs(call.image)
        patches = patches.reshape(*patches.shape[:2], call.groups, -1)
        inputs = patches.permute(2, 0, 1, 3).flatten(2).double()  # (groups, rows, columns)
        groups, _, columns = inputs.shape
        count, total, squares = self._sums.get(call.name, (0, 0.0, inputs.new_zeros(groups, columns, columns)))
        for rows_of_group, own in zip(inputs, squares, strict=True):
            for first in range(0, columns, _BLOCK):  # the matrix is symmetric: what is above these blocks follows
                part = slice(first, first + _BLOCK)
                own[part, : first + _BLOCK].addmm_(rows_of_group[:, part].mT, rows_of_group[:, : first + _BLOCK])
        self._sums[call.name] = (count + inputs.shape[1], total + inputs.sum(dim=1), squares)

    def moments(self, layer: str) -> Moments:
        rows, total, squares = self._sums[layer]
        squares = squares.tril() + squares.tril(-1).mT - total.unsqueeze(2) * total.unsqueeze(1) / rows
        grouped = len(total) > 1
        return Moments(rows, (total if grouped else total[0]).cpu(), (squares if grouped else squares[0]).cpu())


def _save(moments: Moments, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    torch.save({"rows": moments.rows, "total": moments.total, "gram": moments.gram}, stream)
    write_atomically(path, stream.getvalue())
