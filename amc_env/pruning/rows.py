"""Rows of a layer's least-squares problem: its inputs (im2col) and outputs at sampled output positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from amc_env.pruning.layer_calls import LayerCall


@dataclass(frozen=True)
class RowSample:
    """Sampled output positions of one layer and where each finds its inputs.

    Attributes:
        outputs: int64 (rows,): positions in the output, counted over images and pixels (images slowest).
        inputs: int64 (rows, taps): positions in the input that each kernel tap sees.
        inside: bool (rows, taps): False where the tap lies in the zero padding.
    """

    outputs: torch.Tensor
    inputs: torch.Tensor
    inside: torch.Tensor

    def gather_inputs(self, image: torch.Tensor) -> torch.Tensor:
        """The layer's inputs at the sampled positions, (rows, taps, channels)."""
        flat = _positions_first(image)
        rows, taps = self.inputs.shape
        patches = flat.index_select(0, self.inputs.reshape(-1)).reshape(rows, taps, flat.shape[1])
        return patches if bool(self.inside.all()) else patches * self.inside.unsqueeze(2)

    def gather_outputs(self, features: torch.Tensor) -> torch.Tensor:
        """A tensor of the layer's output size at the sampled positions, (rows, channels)."""
        return _positions_first(features).index_select(0, self.outputs)


def sample_rows(call: LayerCall, rows: int, generator: torch.Generator) -> RowSample:
    """Draw at most `rows` output positions of a layer without repetition."""
    images, device = call.image.shape[0], call.image.device
    if call.linear:
        outputs = _draw(images, rows, generator).to(device)
        return RowSample(outputs, outputs.unsqueeze(1), torch.ones_like(outputs, dtype=torch.bool).unsqueeze(1))
    height_in, width_in = call.image.shape[2:]
    kernel = call.weight.shape[2:]
    height, width = (
        (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
        for size, padding, dilation, taps, stride in zip(
            (height_in, width_in), call.padding, call.dilation, kernel, call.stride, strict=True
        )
    )
    outputs = _draw(images * height * width, rows, generator)
    image, down, right = outputs // (height * width), outputs // width % height, outputs % width
    tap_down = torch.arange(kernel[0]).repeat_interleave(kernel[1]) * call.dilation[0] - call.padding[0]
    tap_right = torch.arange(kernel[1]).repeat(kernel[0]) * call.dilation[1] - call.padding[1]
    down = down.unsqueeze(1) * call.stride[0] + tap_down
    right = right.unsqueeze(1) * call.stride[1] + tap_right
    inside = (down >= 0) & (down < height_in) & (right >= 0) & (right < width_in)
    inputs = (image.unsqueeze(1) * height_in + down.clamp(0, height_in - 1)) * width_in + right.clamp(0, width_in - 1)
    return RowSample(outputs.to(device), inputs.to(device), inside.to(device))


def _draw(total: int, rows: int, generator: torch.Generator) -> torch.Tensor:
    if total <= rows:
        return torch.arange(total)
    return torch.randperm(total, generator=generator)[:rows].sort().values


def _positions_first(features: torch.Tensor) -> torch.Tensor:
    """(n, channels, height, width) or (n, channels) as (positions, channels); free if the layout is channels-last."""
    if features.ndim == 4:
        features = features.permute(0, 2, 3, 1)
    return features.reshape(-1, features.shape[-1])
