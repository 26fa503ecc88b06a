"""Fine-tuning of a network, in epochs that can be resumed exactly."""

from __future__ import annotations

import copy
import hashlib
import io
import math
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from amc_env.splits import AsTheyAre, Preprocessing, Split, channels_last
from amc_env.training.augment import augmentation_of
from amc_env.training.hints import Hints, KeptOfBlocks
from amc_env.training.recipe import FineTuneSettings
from amc_env.training.regularizers import Penalty, Regularizer
from amc_env.training.sparsify import Sparsifier, Sparsify
from amc_env.weights import weights_digest
from hw.files import write_atomically

_VERSION = 1  # of checkpoints; raise it whenever the same settings would train otherwise


class DivergedError(ValueError):
    """The loss is no finite number any more."""


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is.

    Attributes:
        step, steps: done, and of the whole training.
        loss: of the last batch.
        seconds_per_step: on average since this process began.
    """

    step: int
    steps: int
    loss: float
    seconds_per_step: float


_WeighedLabels = Sequence[tuple[float, torch.Tensor]]
OnTrainingProgress = Callable[[TrainingProgress], None]


@dataclass(frozen=True)
class TrainingLog:
    """What a training did.

    Attributes:
        steps: batches.
        losses: mean loss over the batches of each epoch, the last of which may be cut short by `steps`; without the
            regularizer's part.
        seconds: of all attempts, as far as their epochs were kept.
        sparsity: (steps done, fraction removed of all weights with a target), at each change of the masks.
    """

    steps: int
    losses: tuple[float, ...]
    seconds: float
    sparsity: tuple[tuple[int, float], ...] = ()


def fine_tune(
    network: nn.Module,
    training: Split,
    preprocessing: Preprocessing | AsTheyAre,
    settings: FineTuneSettings,
    *,
    teacher: nn.Module | None = None,
    kept_of_blocks: KeptOfBlocks | None = None,
    sparsify: Sparsify | None = None,
    regularizer: Regularizer | None = None,
    first_step: int = 0,
    checkpoint: Path | None = None,
    on_progress: OnTrainingProgress = lambda progress: None,
    device: torch.device | str = "cpu",
) -> TrainingLog:
    """Train a network in place, with batch norm in training mode, and leave it in evaluation mode.

    The same arguments give the same weights, bit for bit, on one machine with one number of threads (on a GPU as far
    as its kernels are deterministic), whether or not the training was interrupted. No global generator is touched.

    Args:
        network: returns logits (n, classes); only its parameters that require gradients change.
        training: images, and class indices as labels (n,).
        preprocessing: as the network needs it.
        settings: the recipe.
        teacher: returns the logits that are distilled, and gives the hints; needed if the recipe has either.
        kept_of_blocks: what a network with fewer channels keeps of the teacher's blocks, for hints; see
            `amc_env.training.hints.Hints`.
        sparsify: what is removed while it is trained.
        regularizer: is added to the loss.
        first_step: where to begin of the steps that the recipe says, with the learning rate of that step.
        checkpoint: a file that keeps the state after each epoch; if it is there, training goes on from it.
        on_progress: told after each step.
        device: where to train; network and teacher are put there.

    Raises:
        DivergedError: a loss is NaN or infinite.
        ValueError: labels, outputs or teacher are not as the recipe needs them, sparsify or regularizer do not suit the
            network, or the checkpoint is damaged or of another training.
    """
    check_trainable(training, settings)
    if settings.needs_teacher and teacher is None:
        raise ValueError("fine-tuning: distillation and hints need a teacher, got None")
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if teacher is not None:
        teacher.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    run = _Training(network, training, preprocessing, settings, teacher, kept_of_blocks, torch.device(device))
    run.change(sparsify, regularizer, first_step)
    identity = "" if checkpoint is None else run.identity()
    if checkpoint is not None and checkpoint.exists():
        run.restore(checkpoint, identity)
    began, from_step = time.monotonic(), run.step

    def report(loss: float) -> None:
        per_step = (time.monotonic() - began) / (run.step - from_step)
        on_progress(TrainingProgress(run.step, run.total, loss, per_step))

    while run.step < run.total:
        run.epoch(report)
        if checkpoint is not None:
            run.save(checkpoint, identity)
    network.eval()
    return TrainingLog(run.step, tuple(run.losses), run.seconds, run.sparsity)


def rehearse(
    network: nn.Module,
    training: Split,
    preprocessing: Preprocessing | AsTheyAre,
    settings: FineTuneSettings,
    regularizer: Regularizer | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Take one step with a copy of a network that another copy teaches, on two of the images, or one if a batch is so.

    One of the images has the largest label. The network stays as it is.

    Raises:
        ValueError: as `fine_tune`, hours before it.
    """
    fewest = len(training) // settings.steps_per_epoch(len(training))
    largest = int(training.labels.argmax()) if training.labels.ndim == 1 else 0
    chosen = [largest, (largest + 1) % len(training)][:fewest]
    fine_tune(
        copy.deepcopy(network),
        Split(training.images[chosen], training.labels[chosen], training.source),
        preprocessing,
        replace(settings, epochs=None, steps=1),
        teacher=copy.deepcopy(network),
        regularizer=regularizer,
        device=device,
    )


def check_trainable(training: Split, settings: FineTuneSettings) -> None:
    """Refuse images whose labels are no class indices, unless the recipe needs none.

    Raises:
        ValueError: so.
    """
    labels = training.labels
    if settings.distillation < 1.0 and (labels.ndim != 1 or labels.dtype.kind != "i" or labels.min() < 0):
        raise ValueError(
            f"fine-tuning: expected class indices as labels, integers (n,) of at least 0, got {labels.dtype} "
            f"{labels.shape} of at least {labels.min()}; take distillation: 1, which needs no labels"
        )


class _Training:
    """A network on its way: all that a checkpoint keeps, and what is needed for the next epoch."""

    def __init__(
        self,
        network: nn.Module,
        training: Split,
        preprocessing: Preprocessing | AsTheyAre,
        settings: FineTuneSettings,
        teacher: nn.Module | None,
        kept_of_blocks: KeptOfBlocks | None,
        device: torch.device,
    ) -> None:
        self._network, self._training, self._preprocessing = network, training, preprocessing
        self._settings, self._device = settings, device
        self._teacher = teacher if settings.needs_teacher else None
        self._hints = Hints(network, teacher, kept_of_blocks) if settings.hints and teacher is not None else None
        self._augment = augmentation_of(settings, training.images.shape[1:])
        self._generator = torch.Generator().manual_seed(settings.seed)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        if not trained:
            raise ValueError("fine-tuning: no parameter of the network requires gradients")
        self._optimizer = torch.optim.SGD(
            trained,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
            foreach=True,
        )
        self.total = settings.total_steps(len(training))
        self.step = 0
        self.losses: list[float] = []
        self.seconds = 0.0
        self._changes: list[object] = []
        self._kept_of_blocks = kept_of_blocks
        self._sparsifier: Sparsifier | None = None
        self._penalty: Penalty | None = None

    def change(self, sparsify: Sparsify | None, regularizer: Regularizer | None, first_step: int) -> None:
        """What else the training does; before its first step."""
        if not 0 <= first_step < self.total:
            raise ValueError(f"first_step: expected one of the {self.total} steps from 0, got {first_step}")
        self.step = first_step
        self._changes = [sparsify, regularizer, first_step]
        if sparsify is not None:
            images = partial(self._scored, sparsify.settings.images)
            self._sparsifier = Sparsifier(self._network, self._optimizer, sparsify, self.total, images)
        if regularizer is not None:
            self._penalty = regularizer.of(self._network)

    @property
    def sparsity(self) -> tuple[tuple[int, float], ...]:
        """How it rose."""
        return () if self._sparsifier is None else tuple(self._sparsifier.history)

    def epoch(self, report: Callable[[float], None]) -> None:
        """One pass over the images, or what is left of the steps."""
        began = time.monotonic()
        total_loss, first = 0.0, self.step
        images = len(self._training)
        order = torch.randperm(images, generator=self._generator)
        batches = order.tensor_split(self._settings.steps_per_epoch(images))[: self.total - self.step]
        self._network.train()
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []), self._hints or nullcontext():
            torch.manual_seed(int(torch.randint(2**31, (), generator=self._generator)))  # for dropout
            for batch in batches:
                self._tighten()
                loss = self._take_step(batch)
                total_loss += loss
                self.step += 1
                report(loss)
        if self.step == self.total:
            self._tighten()
        self.losses.append(total_loss / (self.step - first))
        self.seconds += time.monotonic() - began

    def _take_step(self, batch: torch.Tensor) -> float:
        """Train on the images of these indices; returns the loss."""
        rate = self._settings.learning_rate_at(self.step, self.total)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        images, labels = self._blend(*self._load(batch))
        self._optimizer.zero_grad()
        mixed = self._settings.precision != "float32"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=mixed):
            loss = self._loss(images, labels)
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(
                f"fine-tuning diverged: the loss is {value} at step {self.step + 1} of {self.total}; lower the "
                f"learning rate ({self._settings.learning_rate:g}) or set warmup_steps"
            )
        torch.autograd.backward(loss if self._penalty is None else loss + self._penalty())
        if self._sparsifier is not None:
            self._sparsifier.observe()
        self._optimizer.step()
        return value

    def _tighten(self) -> None:
        if self._sparsifier is not None:
            self._sparsifier.tighten(self.step)

    def _scored(self, images: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """So many of the images, or all, as they are; the same at each call."""
        order = torch.randperm(len(self._training), generator=torch.Generator().manual_seed(self._settings.seed))
        for batch in torch.split(order[:images], self._settings.batch):
            yield self._load(batch, augmented=False)

    def _load(self, batch: torch.Tensor, *, augmented: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = batch.numpy()
        images = torch.from_numpy(self._training.images[chosen]).to(self._device)
        images = self._preprocessing.normalise(self._augment(images, self._generator) if augmented else images)
        labels = torch.from_numpy(self._training.labels[chosen]).to(self._device)
        return channels_last(images), labels

    def _blend(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, _WeighedLabels]:
        mixup = self._settings.mixup
        if not mixup:
            return images, [(1.0, labels)]
        rng = np.random.default_rng(int(torch.randint(2**31, (), generator=self._generator)))
        share, partners = rng.beta(mixup, mixup), torch.from_numpy(rng.permutation(len(images))).to(self._device)
        blended = share * images + (1.0 - share) * images[partners]
        return channels_last(blended), [(share, labels), (1.0 - share, labels[partners])]

    def _loss(self, images: torch.Tensor, labels: _WeighedLabels) -> torch.Tensor:
        weight, temperature = self._settings.distillation, self._settings.temperature
        returned = self._network(images)
        outputs = _logits(returned)
        loss = outputs.new_zeros(())
        if weight < 1.0:
            largest = int(labels[0][1].max())
            if largest >= outputs.shape[1]:
                raise ValueError(
                    f"fine-tuning: expected labels in 0..{outputs.shape[1] - 1}, the network's outputs, got {largest}"
                )
            for share, wanted in labels:
                hard = F.cross_entropy(outputs, wanted, label_smoothing=self._settings.label_smoothing)
                loss = loss + (1.0 - weight) * share * hard
        if self._teacher is not None:
            with torch.no_grad():
                taught = (_logits(self._teacher(images)) / temperature).log_softmax(dim=1)
            learnt = (outputs / temperature).log_softmax(dim=1)
            soft = F.kl_div(learnt, taught, reduction="batchmean", log_target=True)
            loss = loss + weight * temperature**2 * soft
        if self._hints is not None:
            loss = loss + self._settings.hints * self._hints.distance(returned)
        return loss

    def identity(self) -> str:
        """Tells this training from others, as long as it has not begun."""
        networks = [self._network] if self._teacher is None else [self._network, self._teacher]
        parts: list[object] = [_VERSION, self._settings, self._preprocessing, self._training.digest()]
        parts += [*map(weights_digest, networks), *self._changes, self._kept_of_blocks]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def save(self, path: Path, identity: str) -> None:
        stream = io.BytesIO()
        content = {
            "identity": identity,
            "step": self.step,
            "losses": self.losses,
            "seconds": self.seconds,
            "network": self._network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "sparsifier": None if self._sparsifier is None else self._sparsifier.state(),
        }
        torch.save(content, stream)
        write_atomically(path, stream.getvalue())

    def restore(self, path: Path, identity: str) -> None:
        try:
            content = torch.load(path, map_location=self._device, weights_only=True)
        except (RuntimeError, EOFError, LookupError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(f"fine-tuning: {path} is damaged; delete it, the training then begins anew") from error
        if not isinstance(content, dict) or content.get("identity") != identity:
            raise ValueError(
                f"fine-tuning: {path} is of another training: network, images or recipe are not the same; delete it, "
                f"or give another file"
            )
        self._network.load_state_dict(content["network"])
        self._optimizer.load_state_dict(content["optimizer"])
        self._generator.set_state(content["generator"].cpu())
        if self._sparsifier is not None:
            self._sparsifier.restore(content["sparsifier"])
        self.step, self.losses, self.seconds = content["step"], content["losses"], content["seconds"]


def _logits(outputs: Any) -> torch.Tensor:
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        got = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise ValueError(f"fine-tuning: expected the network to return logits (n, classes), got {got}")
    return outputs.float()
