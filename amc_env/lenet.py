"""The two networks for MNIST that papers on single weights prune ([Deep Compression], arXiv 1510.00149, section 5.1).

[LeNet] LeCun et al., Gradient-based learning applied to document recognition, 1998. LeNet-5 has the layer sizes of
Caffe's example, as in that paper: 20 and 50 channels, 500 hidden units, one ReLU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class LeNet300100(nn.Module):
    """Two hidden layers of 300 and 100 units for 1x28x28 images."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.fc1 = nn.Linear(28 * 28, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc3(F.relu(self.fc2(hidden)))  # type: ignore[no-any-return]


class LeNet5(nn.Module):
    """Two 5x5 convolutions, each before a 2x2 maximum, and two linear layers, for 1x28x28 images."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(50 * 4 * 4, 500)
        self.fc2 = nn.Linear(500, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.max_pool2d(self.conv1(x), 2)
        out = F.max_pool2d(self.conv2(out), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(out, 1))))  # type: ignore[no-any-return]


LENETS = {"lenet-300-100": LeNet300100, "lenet-5": LeNet5}


def lenet(name: str, classes: int = 10) -> nn.Module:
    """The network of that name, of `LENETS`, random weights."""
    if name not in LENETS:
        raise ValueError(f"lenet: expected one of {', '.join(LENETS)}, got {name!r}")
    if classes < 1:
        raise ValueError(f"classes: expected at least 1, got {classes}")
    return LENETS[name](classes)
