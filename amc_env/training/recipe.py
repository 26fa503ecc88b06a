"""How a network is fine-tuned, as values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Schedule = Literal["cosine", "step", "constant"]
Precision = Literal["float32", "bfloat16"]
_STEP_AT, _STEP_FACTOR = (0.5, 0.75), 0.1
_RANGES: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "epochs": (lambda value: value >= 1, "at least 1"),
    "steps": (lambda value: value >= 1, "at least 1"),
    "batch": (lambda value: value >= 2, "at least 2"),
    "learning_rate": (lambda value: 0.0 < value < math.inf, "a number above 0"),
    "momentum": (lambda value: 0.0 <= value < 1.0, "a number in [0, 1)"),
    "weight_decay": (lambda value: 0.0 <= value < math.inf, "a number of at least 0"),
    "warmup_steps": (lambda value: value >= 0, "at least 0"),
    "label_smoothing": (lambda value: 0.0 <= value < 1.0, "a number in [0, 1)"),
    "distillation": (lambda value: 0.0 <= value <= 1.0, "a weight in [0, 1]"),
    "hints": (lambda value: 0.0 <= value < math.inf, "a number of at least 0"),
    "mixup": (lambda value: 0.0 <= value < math.inf, "a number of at least 0"),
    "temperature": (lambda value: 0.0 < value < math.inf, "a number above 0"),
    "crop_padding": (lambda value: value >= 0, "at least 0"),
    "seed": (lambda value: value >= 0, "at least 0"),
}


@dataclass(frozen=True)
class FineTuneSettings:
    """SGD with momentum for so many epochs, or so many steps.

    The loss of a batch is (1 - distillation) * cross entropy with the labels + distillation * T^2 * KL(softmax of the
    teacher's logits / T || softmax of the logits / T), T the temperature (Hinton et al., arXiv 1503.02531, section 2),
    + hints * the distance of the blocks' outputs from the teacher's (see `amc_env.training.hints`).

    Attributes:
        epochs: passes over the training images; or
        steps: batches, in as many passes as they need. One of the two is given.
        batch: images of a step, at least 2; the batches of an epoch are of one size, but for one image.
        learning_rate: the largest, at the end of the warm-up; a tenth of the 0.1 with which networks are usually
            trained from scratch.
        momentum: in [0, 1).
        nesterov: whether the momentum is Nesterov's; only with momentum.
        weight_decay: of all parameters, at least 0.
        schedule: how the learning rate falls after the warm-up: by half a cosine to 0, by steps to a tenth at 50 % and
            to a hundredth at 75 %, or not at all.
        warmup_steps: in which the learning rate rises linearly.
        label_smoothing: in [0, 1).
        distillation: weight of the teacher in the loss, in [0, 1]; at 1 no labels are needed.
        temperature: of the distillation, above 0.
        hints: weight of the distance from the teacher's blocks, at least 0; with 20 to 60 it is about as large as the
            distillation of a network that was fitted.
        mixup: above 0, each image of a batch is blended with another one of it, by a share that is drawn for the batch
            from Beta(mixup, mixup); the cross entropies with both labels are weighed alike (Zhang et al., arXiv
            1710.09412, section 2), and the teacher is asked about the blended images (Beyer et al., arXiv 2106.05237,
            section 3). Not of texts.
        crop_padding: pixels by which a random crop may be shifted, with black beyond the edges; None: 4 for colour
            images of 32x32 pixels, else 0.
        flip: whether every second image, drawn at random, is mirrored left to right; None: for colour images of 32x32
            pixels alone.
        precision: in which layers compute; the weights are float32. "bfloat16" is mixed precision by torch's autocast,
            for GPUs that have it (the loss needs no scaling); on most processors it is slower.
        seed: of the order of the images, of the augmentation, and of what the network itself draws (dropout).
    """

    epochs: int | None = None
    steps: int | None = None
    batch: int = 128
    learning_rate: float = 0.01
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 1e-4
    schedule: Schedule = "cosine"
    warmup_steps: int = 0
    label_smoothing: float = 0.0
    distillation: float = 0.0
    temperature: float = 4.0
    hints: float = 0.0
    mixup: float = 0.0
    crop_padding: int | None = None
    flip: bool | None = None
    precision: Precision = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            given = "neither" if self.epochs is None else "both"
            raise ValueError(f"epochs, steps: expected one of them, such as epochs: 10, got {given}")
        for name, choices in (("schedule", get_args(Schedule)), ("precision", get_args(Precision))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov: needs a momentum above 0; set nesterov: false, or a momentum")
        for name, (holds, expected) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not holds(value):
                raise ValueError(f"{name}: expected {expected}, got {value}")

    @property
    def needs_teacher(self) -> bool:
        """Whether a trained network is needed that shows what is right."""
        return self.distillation > 0.0 or self.hints > 0.0

    def steps_per_epoch(self, images: int) -> int:
        """Batches of one pass over so many images."""
        return -(-images // self.batch)

    def total_steps(self, images: int) -> int:
        """Batches of the whole training on so many images."""
        return self.steps if self.steps is not None else (self.epochs or 0) * self.steps_per_epoch(images)

    def learning_rate_at(self, step: int, total: int) -> float:
        """Of step 0..total-1."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / (total - self.warmup_steps)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))
        if self.schedule == "step":
            factor: float = _STEP_FACTOR ** sum(done >= border for border in _STEP_AT)
            return self.learning_rate * factor
        return self.learning_rate
