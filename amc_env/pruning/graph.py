"""The channel graph: which channels of which tensors must be removed together, and what every layer's shape is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from hw.layers import LayerShape

IntArray = NDArray[np.int64]

#: for each group, the indices of the units it keeps: what is left of a network
KeptUnits = Sequence[IntArray]

#: for each index along a dimension, the unit it belongs to, counted over all groups; FIXED for one that always stays
UnitLabels = IntArray
FIXED = -1


@dataclass(frozen=True)
class ChannelGroup:
    """Interchangeable units of channels that may be removed, one by one.

    Attributes:
        name: the layer that first produces the channels.
        first_unit: number of units in the groups before.
        size: number of units.
        channels_per_unit: channels of that layer in one unit (more than 1 for a grouped convolution).
        layer: index of that layer among the layers of the graph.
    """

    name: str
    first_unit: int
    size: int
    channels_per_unit: int
    layer: int


@dataclass(frozen=True)
class TensorSlice:
    """One dimension of a parameter or buffer. `consumes`: it multiplies the channels, so zeroing it masks them."""

    tensor: str
    dim: int
    units: UnitLabels
    consumes: bool


@dataclass(frozen=True)
class PaddingSlice:
    """A module that adds zero channels before and after (its attribute `channel_padding`).

    `layers` of the graph's layers run before it.
    """

    module: str
    before: UnitLabels
    after: UnitLabels
    layers: int


def is_block(name: str, module: nn.Module) -> bool:
    """Whether the module of this name is made of modules, and not the whole network."""
    return name != "" and any(True for _ in module.children())


@dataclass(frozen=True)
class BlockSlice:
    """The dimension along which a block returns channels; see `is_block`."""

    module: str
    dim: int
    units: UnitLabels


@dataclass(frozen=True)
class ChannelGraph:
    """All that surgery, costs and decisions need to know of a network; groups and layers are in forward order.

    `foldable` names the convolutions and the batch norms that alone see their outputs; `blocks` are those that return
    one tensor whose channels are followed.
    """

    layers: tuple[LayerShape, ...]
    inputs: tuple[UnitLabels, ...]
    outputs: tuple[UnitLabels, ...]
    groups: tuple[ChannelGroup, ...]
    slices: tuple[TensorSlice, ...]
    paddings: tuple[PaddingSlice, ...]
    foldable: tuple[tuple[str, str], ...]
    blocks: tuple[BlockSlice, ...]

    def first_layer(self, group: ChannelGroup) -> int:
        """Index of a convolution or linear layer before which nothing depends on how many units of the group stay."""
        first, last = group.first_unit, group.first_unit + group.size
        index = group.layer
        for padding in self.paddings:
            units = np.concatenate([padding.before, padding.after])
            if ((units >= first) & (units < last)).any():
                index = min(index, padding.layers - 1)
        return max((i for i in range(index + 1) if self.layers[i].op in ("conv", "linear")), default=0)

    def kept_of_blocks(self, kept: KeptUnits) -> dict[str, tuple[int, list[int]]]:
        """Which indices, of which dimension, stay of the blocks' outputs; blocks that stay whole are not named."""
        mask = self.keep_mask(kept)
        return {
            block.module: (block.dim, np.flatnonzero(mask[block.units]).tolist())
            for block in self.blocks
            if not mask[block.units].all()
        }

    def keep_mask(self, kept: KeptUnits) -> NDArray[np.bool_]:
        """For each unit whether it stays; indexed with unit labels (the last entry answers for FIXED)."""
        mask = np.zeros(sum(group.size for group in self.groups) + 1, dtype=bool)
        mask[FIXED] = True
        for group, units in zip(self.groups, kept, strict=True):
            mask[group.first_unit + np.asarray(units, dtype=np.int64)] = True
        return mask
