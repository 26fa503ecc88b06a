"""Augmentation: every image is a window of its padded self, mirrored or not."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from amc_env.training.augment import Augmentation, augmentation_of
from amc_env.training.recipe import FineTuneSettings


def pixels(n: int = 400) -> torch.Tensor:
    """Random images: no two windows of one are alike."""
    return torch.randint(1, 256, (n, 3, 5, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (0, True), (2, False), (2, True)])
def test_every_crop_and_flip_occurs_and_nothing_else(padding: int, flip: bool) -> None:
    images = pixels()
    augmented = Augmentation(padding, flip)(images, torch.Generator().manual_seed(1))
    assert augmented.dtype == torch.uint8
    assert augmented.shape == images.shape
    found = set()
    for image, result in zip(F.pad(images, (padding,) * 4), augmented, strict=True):
        windows = {
            (down, right, mirrored): image[:, down : down + 5, right : right + 6].flip(-1)
            if mirrored
            else image[:, down : down + 5, right : right + 6]
            for down in range(2 * padding + 1)
            for right in range(2 * padding + 1)
            for mirrored in ((False, True) if flip else (False,))
        }
        (place,) = (place for place, window in windows.items() if torch.equal(window, result))
        found.add(place)
    # each of at most 50 places is missed by 400 draws with a probability of 0.98^400 = 3e-4; the seed is fixed
    assert len(found) == (2 * padding + 1) ** 2 * (2 if flip else 1)


def test_the_generator_alone_decides() -> None:
    images, augmentation = pixels(), Augmentation(2, flip=True)
    first, second, other = (augmentation(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_small_colour_images_are_augmented_unless_told() -> None:
    assert augmentation_of(FineTuneSettings(steps=1), (3, 32, 32)) == Augmentation(4, flip=True)
    assert augmentation_of(FineTuneSettings(steps=1), (1, 32, 32)) == Augmentation()
    assert augmentation_of(FineTuneSettings(steps=1), (3, 224, 224)) == Augmentation()
    told = FineTuneSettings(steps=1, crop_padding=1, flip=False)
    assert augmentation_of(told, (3, 32, 32)) == augmentation_of(told, (1, 8, 8)) == Augmentation(1)
