"""What a layer of a network is, as far as its cost on a device is concerned: the shape, not the weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

LayerOp = Literal["conv", "linear", "norm", "scale"]


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Geometry of one call of one layer, for a batch of one image.

    `conv` and `linear` multiply; `norm` (a scale and a shift per channel) and `scale` (one parameter per
    channel) hold weights but no multiply-accumulates, because an inference runtime folds them into the
    convolution before them. A linear layer that is applied at every position of a feature map is a linear
    layer with that `input_size`.

    Attributes:
        name: qualified name of the module (or parameter) in the network.
        in_channels, out_channels: channels of the input and the output.
        kernel_size, stride, padding, dilation: (height, width), in pixels.
        groups: convolution groups; each sees `in_channels / groups` inputs.
        input_size, output_size: (height, width) of the feature maps, in pixels.
        bias: whether one bias per output channel is stored.
        owns_weights: False for a second call of the same weights, which cost MACs again but no storage.
        followed_by: operations between this layer and the next, in the order in which they run, e.g. ("batch_norm",
            "relu"): activation, residual sum, pooling. Their time counts with the layer's.
    """

    name: str
    op: LayerOp
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    input_size: tuple[int, int] = (1, 1)
    output_size: tuple[int, int] = (1, 1)
    bias: bool = False
    owns_weights: bool = True
    followed_by: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.in_channels < 1 or self.out_channels < 1 or self.groups < 1:
            raise ValueError(
                f"layer {self.name!r}: channels and groups must be at least 1, got "
                f"{self.in_channels} in, {self.out_channels} out, {self.groups} groups"
            )
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"layer {self.name!r}: {self.groups} groups do not divide "
                f"{self.in_channels} input and {self.out_channels} output channels"
            )

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image: H_out * W_out * C_out * (C_in / groups) * k_h * k_w; 1 MAC = 2 FLOPs."""
        if self.op in ("norm", "scale"):
            return 0
        positions = self.output_size[0] * self.output_size[1]
        return positions * self.out_channels * (self.in_channels // self.groups) * self._kernel_area

    @property
    def weights(self) -> int:
        """Number of learnable parameters that this call owns: weights and biases (running statistics are none)."""
        if not self.owns_weights:
            return 0
        if self.op == "norm":
            return 2 * self.out_channels
        if self.op == "scale":
            return self.out_channels
        dense = self.out_channels * (self.in_channels // self.groups) * self._kernel_area
        return dense + (self.out_channels if self.bias else 0)

    def pruned(self, kept_in: int, kept_out: int) -> LayerShape:
        """The same layer with `kept_in` input and `kept_out` output channels.

        A grouped convolution loses whole groups: it keeps `groups * kept_in / in_channels` of them, and what
        each group sees stays as it was.
        """
        if not 1 <= kept_in <= self.in_channels or not 1 <= kept_out <= self.out_channels:
            raise ValueError(
                f"layer {self.name!r}: expected 1..{self.in_channels} kept inputs and 1..{self.out_channels} "
                f"kept outputs, got {kept_in} and {kept_out}"
            )
        groups = self.groups
        if groups > 1:
            groups = kept_in * self.groups // self.in_channels
            same = kept_out * self.groups // self.out_channels
            whole = (
                groups * self.in_channels == kept_in * self.groups
                and same * self.out_channels == kept_out * self.groups
            )
            if not whole or groups != same:
                raise ValueError(
                    f"layer {self.name!r}: a convolution of {self.groups} groups keeps whole groups, "
                    f"got {kept_in} of {self.in_channels} inputs and {kept_out} of {self.out_channels} outputs"
                )
        return replace(self, in_channels=kept_in, out_channels=kept_out, groups=groups)

    @property
    def _kernel_area(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]
