"""Networks of a few channels, one for each way in which a layer reads pruned channels, and random images."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models  # type: ignore[import-untyped]

from amc_env import zoo
from amc_env.pruning.graph import ChannelGraph, IntArray
from amc_env.splits import DataSplits, Preprocessing, Split


def images(count: int, *, channels: int = 3, size: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, scales, shifts and statistics that make every channel count; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict(keep_vars=True).items():
            if tensor.ndim > 1:
                tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=generator)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.3, generator=generator)
            elif tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def random_units(graph: ChannelGraph, orders: list[IntArray], seed: int) -> list[IntArray]:
    """Of each group a prefix of its order, ascending."""
    rng = np.random.default_rng(seed)
    return [np.sort(order[: rng.integers(1, len(order) + 1)]) for order in orders]


def random_splits(*, channels: int = 3, size: int = 8, calibration: int = 60, search: int = 100) -> DataSplits:
    """Splits of noise with random labels in 0..9; of 32 test images."""
    rng = np.random.default_rng(0)

    def split(count: int, source: str) -> Split:
        pixels = rng.normal(size=(count, channels, size, size)).astype(np.float32)
        return Split(pixels, rng.integers(0, 10, count), source)

    parts = split(calibration, "calibration"), split(search, "search"), split(32, "test")
    return DataSplits(*parts, preprocessing=Preprocessing(scale=1.0), digest="noise")


class Branches(nn.Module):
    """Two layers whose outputs are concatenated, and one that reads both."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.left = nn.Conv2d(channels, 6, 3, padding=1)
        self.right = nn.Conv2d(channels, 5, 1)
        self.reader = nn.Conv2d(11, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], dim=1)
        return cast(torch.Tensor, self.reader(both)).mean((2, 3))


class Residual(nn.Module):
    """A stem, a block that adds to it, and two layers that read the sum; `norms` between, or biases instead.

    Args:
        norms: batch norms after the convolutions; these have no bias then.
        downsample: the shortcut is a convolution of its own, computed after the main branch.
        inplace: sums and activations overwrite their input.
    """

    def __init__(self, *, norms: bool = True, downsample: bool = False, inplace: bool = False, width: int = 6) -> None:
        super().__init__()

        def norm() -> nn.Module:
            return nn.BatchNorm2d(width) if norms else nn.Identity()

        self.inplace = inplace
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=not norms)
        self.norm = norm()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=not norms)
        self.norm1 = norm()
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=not norms)
        self.norm2 = norm()
        shortcut = nn.Sequential(nn.Conv2d(width, width, 1, bias=not norms), norm())
        self.downsample = shortcut if downsample else nn.Identity()
        self.reader = nn.Conv2d(width, 6, 1)
        self.other = nn.Conv2d(width, 4, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=self.inplace)
        out = F.relu(self.norm1(self.first(x)), inplace=self.inplace)
        out = self.norm2(self.second(out))
        if self.inplace:
            out += self.downsample(x)
        else:
            out = out + self.downsample(x)
        out = F.relu(out, inplace=self.inplace)
        return torch.cat([self.reader(out).mean((2, 3)), self.other(out).mean((2, 3))], dim=1)


class Twice(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.shared(F.relu(self.shared(F.relu(self.stem(x))))))
        return cast(torch.Tensor, self.last(x.mean((2, 3))))


class PaddedFirst(nn.Module):
    """A shortcut that adds zero channels, computed before the layer whose outputs it joins."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.shortcut = zoo.OptionAShortcut((2, 2))
        self.first = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.second = nn.Conv2d(6, 8, 3, padding=1)
        self.last = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        shortcut = self.shortcut(x)
        x = F.relu(self.second(F.relu(self.first(x))) + shortcut)
        return cast(torch.Tensor, self.last(x.mean((2, 3))))


def chain(*layers: nn.Module) -> nn.Module:
    """A 1x1 stem of 6 channels, these layers, and the mean over the pixels if there are any left."""
    return nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), *layers)


#: name -> network that maps (n, 3, 8, 8); each has a consumer of another kind
CONSUMERS: dict[str, Callable[[], nn.Module]] = {
    "3x3": lambda: chain(nn.Conv2d(6, 4, 3, padding=1)),
    "strided and dilated": lambda: chain(nn.Conv2d(6, 4, 3, stride=2, padding=2, dilation=2)),
    "rectangular": lambda: chain(nn.Conv2d(6, 4, (1, 3), padding=(0, 1))),
    "1x1 without a place for an intercept": lambda: chain(nn.Conv2d(6, 4, 1, bias=False)),
    "3x3 without a place for an intercept": lambda: chain(nn.Conv2d(6, 4, 3, bias=False), nn.ReLU()),
    "batch norm": lambda: chain(nn.Conv2d(6, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)),
    "bias and batch norm": lambda: chain(nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4)),
    "batch norm that has nothing to learn": lambda: chain(
        nn.Conv2d(6, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)
    ),
    "linear after flatten": lambda: chain(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(24, 4)),
    "linear after pooling": lambda: chain(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)),
    "linear without bias": lambda: chain(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4, bias=False)),
    "after a depthwise stage": lambda: chain(
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 4, 1)
    ),
    "after a grouped stage": lambda: chain(
        nn.Conv2d(6, 12, 3, padding=1, groups=3), nn.ReLU(), nn.Conv2d(12, 4, 3, stride=2)
    ),
    "concatenation": Branches,
    "residual": Residual,
    "residual without norms": lambda: Residual(norms=False),
    "two layers": lambda: chain(nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                                nn.Conv2d(8, 4, 3)),
}  # fmt: skip

#: name -> network that maps (n, 3, 32, 32) to 10 logits
SMALL_KNOWN: dict[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": lambda: models.mobilenet_v2(width_mult=0.25, num_classes=10),
    "densenet": lambda: models.DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=16, num_classes=10),
    "cifar_resnet8": lambda: zoo.cifar_resnet(8),
}
