"""What a sparse layer competes with on the same processor: itself dense, in 8 bits, and in torch's sparse form."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from hw.runtimes.onnx_runtime import load_onnx, onnx_model
from hw.sparse.replacement import pads_with_zeros

#: names of what computes with the dense weights in float32; the fastest of them is "the best dense"
DENSE = ("torch", "torch, channels last", "onnxruntime")
INT8 = "onnxruntime int8"
CSR = "torch CSR"


def peers(
    network: nn.Module, x: torch.Tensor, threads: int, *, dense_only: bool = False
) -> dict[str, Callable[[], object]]:
    """Calls of a network, or of a single layer, on one input; by name, as they can be timed side by side.

    8 bits are onnxruntime's dynamic quantisation: of weights beforehand, of activations in each call. Torch's own, of
    linear layers only, is announced to go.

    Args:
        network: in evaluation mode; batch norms folded, for onnxruntime folds them too.
        x: float32 input on the CPU.
        threads: of one call. Torch's own must be set by the caller.
        dense_only: only those in `DENSE`.
    """
    calls = torch_calls(network, x)
    model = onnx_model(network, x)
    calls["onnxruntime"] = load_onnx(model, x, threads).outputs
    if dense_only:
        return calls
    calls[INT8] = load_onnx(model, x, threads, int8=True).outputs
    csr = with_csr(network)
    if any(type(module) is CsrLayer for module in csr.modules()):
        calls[CSR] = partial(_inferred, csr, x)
    return calls


def torch_calls(network: nn.Module, x: torch.Tensor) -> dict[str, Callable[[], object]]:
    """The dense calls of torch alone: of images, in both orders of memory."""
    calls: dict[str, Callable[[], object]] = {"torch": partial(_inferred, network, x)}
    if x.ndim == 4:
        last = copy.deepcopy(network).to(memory_format=torch.channels_last)
        calls["torch, channels last"] = partial(_inferred, last, x.contiguous(memory_format=torch.channels_last))
    return calls


def best_of(milliseconds: Mapping[str, float], names: tuple[str, ...]) -> str | None:
    """The fastest of those that were measured; None if none was."""
    return min((name for name in names if name in milliseconds), key=lambda name: milliseconds[name], default=None)


def with_csr(network: nn.Module) -> nn.Module:
    """A copy whose linear layers and ungrouped convolutions multiply by torch's CSR tensors.

    A convolution that pads with anything but zeros, in pixels, stays as it is.
    """
    return _with_csr(copy.deepcopy(network).eval())


def _with_csr(module: nn.Module) -> nn.Module:
    if type(module) in (nn.Linear, nn.Conv2d):
        fits = getattr(module, "groups", 1) == 1 and pads_with_zeros(module)  # type: ignore[arg-type]
        return CsrLayer(module) if fits else module  # type: ignore[arg-type]
    for name, child in module.named_children():
        setattr(module, name, _with_csr(child))
    return module


class CsrLayer(nn.Module):
    """A linear layer, or a convolution over its unfolded input, as a product with a CSR tensor of torch.

    A convolution has one group and `pads_with_zeros`.
    What torch offers for sparse weights; it has no sparse convolution.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch calls CSR tensors beta
            matrix = layer.weight.detach().reshape(len(layer.weight), -1).to_sparse_csr()
            self.weight = torch.sparse_csr_tensor(
                matrix.crow_indices().int(), matrix.col_indices().int(), matrix.values(), matrix.shape
            )
        self.bias = None if layer.bias is None else layer.bias.detach()[:, None]
        self.conv = layer if isinstance(layer, nn.Conv2d) else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 (..., in features) to (..., out features), or images to images."""
        if self.conv is None:
            return self._product(x.reshape(-1, x.shape[-1]).T).T.reshape(*x.shape[:-1], -1)
        images, size = len(x), [_outputs(self.conv, axis, x.shape[2 + axis]) for axis in (0, 1)]
        patches = nn.functional.unfold(
            x,
            self.conv.kernel_size,
            self.conv.dilation,
            self.conv.padding,  # type: ignore[arg-type]
            self.conv.stride,
        )
        y = self._product(patches.permute(1, 0, 2).reshape(patches.shape[1], -1))
        return y.reshape(-1, images, *size).transpose(0, 1)

    def _product(self, columns: torch.Tensor) -> torch.Tensor:
        y = self.weight @ columns
        return y if self.bias is None else y + self.bias


def _outputs(conv: nn.Conv2d, axis: int, pixels: int) -> int:
    reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
    return (pixels + 2 * int(conv.padding[axis]) - reach - 1) // conv.stride[axis] + 1


def _inferred(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return network(x)  # type: ignore[no-any-return]
