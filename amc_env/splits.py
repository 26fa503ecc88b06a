"""The images or texts a problem works on: three disjoint splits, and what is done to one before the network sees it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Split:
    """Images, or texts as token ids, and labels.

    Attributes:
        images: (n, channels, height, width), uint8 in 0..255 or float32; of texts int64 (n, length).
        labels: int64 (n,), class indices; or int64 or float32 (n, ...), whatever an objective of the user's own needs.
        source: where the images come from, e.g. "test[0:5000]" or "train, 500 drawn with seed 0".
    """

    images: NDArray[np.uint8] | NDArray[np.float32] | NDArray[np.int64]
    labels: NDArray[Any]
    source: str

    def __post_init__(self) -> None:
        if (
            self.images.ndim != (2 if self.images.dtype == np.int64 else 4)
            or self.labels.ndim == 0
            or len(self.images) != len(self.labels)
            or len(self.images) == 0
        ):
            raise ValueError(
                f"split {self.source!r}: expected images (n, channels, height, width), or int64 token ids (n, length), "
                f"and n labels with n >= 1, got images {self.images.shape} and labels {self.labels.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def digest(self) -> str:
        """SHA-256 of types, shapes and bytes of images and labels, in hexadecimal."""
        digest = hashlib.sha256()
        for array in (self.images, self.labels):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Preprocessing:
    """Images to network input: divide by `scale`, subtract `mean`, divide by `std` (per channel).

    `rotate_180` turns the image, for weights converted from TensorFlow, whose stride-2 layers pad right and below.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 255.0
    rotate_180: bool = False

    def __call__(self, images: NDArray[Any]) -> torch.Tensor:
        """Float32 tensor (n, channels, height, width) of a batch of images."""
        return self.normalise(torch.from_numpy(np.array(images, dtype=np.float32)))

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """The same of a tensor of pixels, on its device."""
        mean = torch.tensor(self.mean, device=images.device).reshape(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).reshape(1, -1, 1, 1)
        batch = (images.to(torch.float32) / self.scale - mean) / std
        return batch.flip(-1, -2) if self.rotate_180 else batch


@dataclass(frozen=True)
class AsTheyAre:
    """Token ids to network input: nothing is done to them."""

    def __call__(self, tokens: NDArray[Any]) -> torch.Tensor:
        """Int64 tensor (n, length) of a batch of texts."""
        return torch.from_numpy(np.array(tokens, dtype=np.int64))

    def normalise(self, tokens: torch.Tensor) -> torch.Tensor:
        """The same of a tensor."""
        return tokens


def channels_last(batch: torch.Tensor) -> torch.Tensor:
    """Images with their channels last in memory, where networks run fastest; token ids as they are."""
    return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch.contiguous()


@dataclass(frozen=True)
class DataSplits:
    """Calibration images (statistics only), the search split (agents see its score), the test split (only the report).

    `digest` is a SHA-256 of images, labels and preprocessing, recorded with every result.
    """

    calibration: Split
    search: Split
    test: Split
    preprocessing: Preprocessing | AsTheyAre
    digest: str
