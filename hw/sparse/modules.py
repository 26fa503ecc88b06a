"""Sparse layers in place of torch's: inference on the CPU, float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from hw.sparse.batch import BatchMatrix
from hw.sparse.columns import ColumnMatrix
from hw.sparse.conv import ConvMatrix, Pair, Window
from hw.sparse.lanes import LaneMatrix
from hw.sparse.rows import SparseRows

#: batches from which `SparseLinear` uses panels if it was not told which kernel to use
_BATCH_FOR_PANELS = 16
AUTO = "auto"


class _SparseLayer(nn.Module):
    """Weights by rows as buffers, so that a state dict holds them; a kernel's own layout is made on the first call.

    A state dict of any number of non-zeros can be loaded.
    """

    values: torch.Tensor
    indices: torch.Tensor
    indptr: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, shape: Pair, *, bias: bool, threads: int) -> None:
        super().__init__()
        self.shape, self.threads = shape, threads
        empty = SparseRows.from_dense(np.zeros(shape, np.float32))
        for name in ("values", "indices", "indptr"):
            self.register_buffer(name, torch.from_numpy(getattr(empty, name)))
        self.register_buffer("bias", torch.zeros(shape[0]) if bias else None)
        self._prepared: dict[str, Any] = {}

    @property
    def matrix(self) -> SparseRows:
        """The weights (rows, columns); a convolution's columns are (in channel, kernel row, kernel column)."""
        return SparseRows(self.shape, self.values.numpy(), self.indices.numpy(), self.indptr.numpy())

    def set_weights(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Take the non-zeros of a dense weight (rows, ...) and a bias (rows,)."""
        dense = weight.detach().reshape(self.shape).to("cpu", torch.float32).numpy()
        matrix = SparseRows.from_dense(dense)
        self.values, self.indices, self.indptr = (
            torch.from_numpy(array) for array in (matrix.values, matrix.indices, matrix.indptr)
        )
        self.bias = None if bias is None else bias.detach().to("cpu", torch.float32).clone()
        self._prepared.clear()

    def extra_repr(self) -> str:
        rows, columns = self.shape
        return f"{rows}x{columns}, density={len(self.values) / max(rows * columns, 1):.3f}, threads={self.threads}"

    def _prepare(self, kernel: str, pack: Callable[[SparseRows], Any]) -> Any:
        """The weights as the kernel wants them, and the bias."""
        if kernel not in self._prepared:
            bias = None if self.bias is None else np.array(self.bias.numpy())
            self._prepared[kernel] = (pack(self.matrix), bias)
        return self._prepared[kernel]

    def _check(self, x: torch.Tensor) -> None:
        name = type(self).__name__
        if self.training:
            raise RuntimeError(
                f"{name}: expected evaluation mode, got training mode; it cannot be trained, call eval()"
            )
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(f"{name}: expected an input without gradient; it has none, use torch.inference_mode()")
        if x.device.type != "cpu" or x.dtype != torch.float32:
            raise RuntimeError(f"{name}: expected float32 on the CPU, got {x.dtype} on {x.device}")

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> _SparseLayer:
        self._prepared.clear()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        stored = {name: state_dict.get(prefix + name) for name in ("values", "indices", "indptr")}
        if all(isinstance(tensor, torch.Tensor) for tensor in stored.values()):
            try:
                SparseRows(self.shape, *(tensor.numpy() for tensor in stored.values()))  # type: ignore[union-attr]
            except ValueError as error:
                error_msgs.append(f"{prefix.rstrip('.')}: {error}")
                return
            for name, tensor in stored.items():
                setattr(self, name, torch.empty_like(tensor))  # type: ignore[arg-type]
        self._prepared.clear()
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class SparseLinear(_SparseLayer):
    """A linear layer that multiplies its non-zero weights only.

    Args:
        in_features, out_features: as in `torch.nn.Linear`.
        bias: whether there is one.
        kernel: a name in `LINEAR_KERNELS`, or "auto": panels for batches of 16 and more, lanes below.
        threads: of one call.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, kernel: str = AUTO, threads: int = 1
    ) -> None:
        super().__init__((out_features, in_features), bias=bias, threads=threads)
        if kernel != AUTO and kernel not in LINEAR_KERNELS:
            raise ValueError(f"kernel: expected one of {', '.join((AUTO, *LINEAR_KERNELS))}, got {kernel!r}")
        self.kernel = kernel

    @classmethod
    def from_linear(cls, layer: nn.Linear, *, kernel: str = AUTO, threads: int = 1) -> SparseLinear:
        """The same function as a dense layer, in evaluation mode."""
        bias = layer.bias is not None
        sparse = cls(layer.in_features, layer.out_features, bias=bias, kernel=kernel, threads=threads)
        sparse.set_weights(layer.weight, layer.bias)
        return sparse.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 (..., in features) to (..., out features)."""
        self._check(x)
        rows, columns = self.shape
        if x.shape[-1:] != (columns,):
            raise ValueError(
                f"SparseLinear: expected {columns} features at the last axis, got the shape {tuple(x.shape)}"
            )
        batch = x.detach().numpy().reshape(-1, columns)
        kernel = self.kernel
        if kernel == AUTO:
            kernel = "panels" if len(batch) >= _BATCH_FOR_PANELS else "lanes"
        matrix, bias = self._prepare(kernel, LINEAR_KERNELS[kernel])
        if isinstance(matrix, BatchMatrix):
            y = matrix.matmul(batch, bias, threads=self.threads)
        elif len(batch) == 1:
            y = matrix.matvec(batch[0], bias, threads=self.threads)
        else:
            y = np.empty((len(batch), rows), np.float32)
            for place, sample in enumerate(batch):
                y[place] = matrix.matvec(sample, bias, threads=self.threads)
        return torch.from_numpy(y.reshape(*x.shape[:-1], rows))


class SparseConv2d(_SparseLayer):
    """A convolution that multiplies its non-zero weights only; padded with zeros.

    Args:
        in_channels, out_channels: as in `torch.nn.Conv2d`.
        window: size of the kernel, stride, padding and dilation.
        groups: in which inputs and outputs are divided.
        bias: whether there is one.
        threads: of one call.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        window: Window,
        *,
        groups: int = 1,
        bias: bool = True,
        threads: int = 1,
    ) -> None:
        taps = window.kernel_size[0] * window.kernel_size[1]
        super().__init__((out_channels, in_channels // groups * taps), bias=bias, threads=threads)
        self.in_channels, self.window, self.groups = in_channels, window, groups

    @classmethod
    def from_conv(cls, layer: nn.Conv2d, *, threads: int = 1) -> SparseConv2d:
        """The same function as a dense layer, in evaluation mode.

        Raises:
            ValueError: padding other than zeros, or by a name.
        """
        if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            raise ValueError(f"expected padding with zeros, in pixels, got {layer.padding_mode!r}, {layer.padding!r}")
        window = Window(*(_pair(size) for size in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)))
        sparse = cls(
            layer.in_channels, layer.out_channels, window,
            groups=layer.groups, bias=layer.bias is not None, threads=threads,
        )  # fmt: skip
        sparse.set_weights(layer.weight, layer.bias)
        return sparse.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 (images, in channels, height, width), or one image without its first axis."""
        self._check(x)
        matrix, bias = self._prepare("conv", self._pack)
        images = x.detach().numpy()
        y = torch.from_numpy(matrix.apply(images if x.ndim == 4 else images[None], bias, threads=self.threads))
        return y if x.ndim == 4 else y[0]

    def _pack(self, matrix: SparseRows) -> ConvMatrix:
        return ConvMatrix.pack(matrix, self.in_channels, self.window, groups=self.groups)


def _pair(size: Any) -> Pair:
    return int(size[0]), int(size[1])


#: what lays weights out for each kernel of `SparseLinear`
LINEAR_KERNELS: Mapping[str, Callable[[SparseRows], LaneMatrix | ColumnMatrix | BatchMatrix]] = {
    "lanes": LaneMatrix.pack,
    "columns": ColumnMatrix.pack,
    "panels": BatchMatrix.pack,
}
