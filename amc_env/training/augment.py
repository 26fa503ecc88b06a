"""Random crops and flips of a batch at once, on the pixels as they are stored."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from amc_env.training.recipe import FineTuneSettings


@dataclass(frozen=True)
class Augmentation:
    """What is done to training images.

    Attributes:
        crop_padding: pixels by which a crop of the image's own size may be shifted; black (0) beyond the edges.
        flip: whether every second image, drawn at random, is mirrored left to right.
    """

    crop_padding: int = 0
    flip: bool = False

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Of images (n, channels, height, width) of any type, drawn by a generator on the CPU."""
        n = len(images)
        if self.crop_padding:
            height, width = images.shape[2:]
            padded = F.pad(images, (self.crop_padding,) * 4)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            down, right = torch.randint(2 * self.crop_padding + 1, (2, n), generator=generator).to(images.device)
            images = windows[torch.arange(n, device=images.device), :, down, right]
        if self.flip:
            flipped = (torch.rand(n, generator=generator) < 0.5).to(images.device)
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        return images


def augmentation_of(settings: FineTuneSettings, shape: tuple[int, ...]) -> Augmentation:
    """As the recipe says for images of the shape (channels, height, width); none for texts (length,).

    Raises:
        ValueError: texts are to be shifted, mirrored or blended.
    """
    if len(shape) == 1 and (settings.crop_padding or settings.flip or settings.mixup):
        raise ValueError("fine-tuning: crop_padding, flip and mixup are of images; leave them out for texts")
    usual = shape == (3, 32, 32)
    padding = settings.crop_padding if settings.crop_padding is not None else 4 if usual else 0
    return Augmentation(padding, usual if settings.flip is None else settings.flip)
