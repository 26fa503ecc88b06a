"""Pruning while a network is trained: masks that tighten along a schedule until each layer keeps its target.

After each update the removed weights are zero, bit for bit, to the end: their gradients are held at zero
(`amc_env.pruning.pattern`) and their momentum is cleared. Masks only shrink.

Differences from Intel Neural Compressor: targets are counts, reached exactly; of its masks between two updates
("progressive") those by score maps are here, layer by layer, and they grow into the pattern until the next update,
not after it; a weight of 0 has the score 0 under every criterion.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.hooks import RemovableHandle

from amc_env.pruning.graph import IntArray
from amc_env.pruning.pattern import hold_zeros
from amc_env.pruning.patterns import NOfM, Pattern, parse_pattern
from amc_env.pruning.saliency import OF_FILTERS, SALIENCIES, Saliency, SaliencySettings, SnipMomentum, weight_scores
from amc_env.pruning.schedules import Decay, Kind, SparsitySchedule, check_kind

SparsifyType = Literal["iterative", "progressive"]
Scope = Literal["local", "global"]
_PARTS = 4  # masks from one update to the next, of the progressive type


@dataclass(frozen=True)
class SparsifySettings:
    """How masks tighten during a training.

    Attributes:
        schedule, decay, frequency: as of `SparsitySchedule`.
        start, end: shares of the training's steps, 0 <= start < end <= 1; one-shot pruning is at `start`.
        type: "iterative": each update removes whole units of the pattern. "progressive": in four parts from one update
            to the next, the elements of the units that go are removed one by one, those of the lowest scores first.
        criterion: of `amc_env.pruning.saliency`, but for those of filters. "snip_momentum" gathers over the steps of
            the training; all others are computed anew at each update.
        images: of the training, for criteria that are computed on images, at least 1; the same at each update.
    """

    schedule: Kind = "iterative"
    decay: Decay = "exp"
    start: float = 0.0
    end: float = 0.7
    frequency: int = 50
    type: SparsifyType = "iterative"
    criterion: Saliency = "l1"
    images: int = 512

    def __post_init__(self) -> None:
        check_kind(self.schedule, self.decay)
        if self.type not in get_args(SparsifyType):
            raise ValueError(f"type: expected one of {', '.join(get_args(SparsifyType))}, got {self.type!r}")
        if not 0.0 <= self.start <= 1.0 or not 0.0 <= self.end <= 1.0:
            raise ValueError(f"start, end: expected shares of the training in [0, 1], got {self.start} and {self.end}")
        if self.schedule == "iterative" and self.end <= self.start:
            raise ValueError(f"end: expected a share above the start of {self.start}, got {self.end}")
        if self.frequency < 1 or self.images < 1:
            raise ValueError(f"frequency, images: expected at least 1, got {self.frequency} and {self.images}")
        if self.type == "progressive" and self.schedule == "one_shot":
            raise ValueError("type: progressive grows from one update to the next; take schedule: iterative")
        if self.criterion not in SALIENCIES or self.criterion in OF_FILTERS:
            known = ", ".join(name for name in SALIENCIES if name not in OF_FILTERS)
            raise ValueError(f"criterion: expected one of {known}, got {self.criterion!r}")

    def schedule_over(self, steps: int) -> SparsitySchedule:
        """The schedule of a training of so many steps.

        Raises:
            ValueError: it is too short for an update after the first, or for the parts of progressive masks.
        """
        if self.schedule == "one_shot":
            return SparsitySchedule("one_shot", start=math.floor(self.start * steps))
        schedule = SparsitySchedule(
            "iterative", self.decay, math.floor(self.start * steps), math.floor(self.end * steps), self.frequency
        )
        if schedule.last < 1:
            raise ValueError(
                f"frequency: {self.frequency} steps leave no second update between steps {schedule.start} and "
                f"{schedule.end}; take a smaller frequency, more steps, or schedule: one_shot"
            )
        return schedule


@dataclass(frozen=True)
class Sparsify:
    """What a training is to remove.

    Attributes:
        settings: how.
        targets: weights that stay at last, by layer.
        pattern: of the masks, as of `amc_env.pruning.patterns`.
        scope: "local": each layer comes to its target. "global": all layers together come to the sum of the targets,
            to within one unit, by one threshold on the mean score of units; each layer keeps at least one.
    """

    settings: SparsifySettings
    targets: Mapping[str, int]
    pattern: str = "fine_grained"
    scope: Scope = "local"


def even_targets(network: nn.Module, layers: Iterable[str], sparsity: float, pattern: str) -> dict[str, int]:
    """Targets of the same sparsity in [0, 1) for each layer, to within one unit of the pattern.

    Raises:
        ValueError: it is no sparsity, or the pattern does not suit a layer.
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity: expected a fraction in [0, 1), got {sparsity}")
    shapes = {name: tuple(network.get_parameter(f"{name}.weight").shape) for name in layers}
    parsed = parse_pattern(pattern)
    return {
        name: parsed.nearest(shape, math.floor(math.prod(shape) * (1.0 - sparsity) + 1e-9))
        for name, shape in shapes.items()
    }


class Sparsifier:
    """The masks of one training.

    Attributes:
        masks: what stays, bool of each weight's shape, by layer.
        history: (steps done, fraction removed of all weights with a target), at each change.

    Args:
        network: is pruned.
        optimizer: trains it.
        plan: what to do.
        steps: of the training.
        batches: images and labels for criteria that need them, as the network sees them.

    Raises:
        ValueError: a target is none that the layer's pattern allows, or as of `SparsifySettings.schedule_over`.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        plan: Sparsify,
        steps: int,
        batches: Callable[[], Iterable[tuple[torch.Tensor, torch.Tensor]]],
    ) -> None:
        self._network, self._optimizer, self._plan, self._batches = network, optimizer, plan, batches
        self._schedule = plan.settings.schedule_over(steps)
        self._pattern = parse_pattern(plan.pattern)
        self._weights = {name: network.get_parameter(f"{name}.weight") for name in plan.targets}
        _check_targets(plan, self._pattern, self._weights)
        self._zeros = {name: 1.0 - int(torch.count_nonzero(w)) / w.numel() for name, w in self._weights.items()}
        self.masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in self._weights.items()}
        self.history: list[tuple[int, float]] = []
        self._momentum = SnipMomentum(*SaliencySettings().snip_factors)
        self._leaving: dict[str, torch.Tensor] = {}  # progressive: flat indices, the first to go first
        self._before: dict[str, torch.Tensor] = {}  # progressive: masks at the last update
        self._holds: list[RemovableHandle] = []

    def observe(self) -> None:
        """Called in each step when the gradients are there."""
        if self._plan.settings.criterion == "snip_momentum":
            gradients = {name: weight.grad for name, weight in self._weights.items()}
            present = {name: gradient for name, gradient in gradients.items() if gradient is not None}
            self._momentum.update({name: self._weights[name].detach() for name in present}, present)

    def tighten(self, step: int) -> None:
        """Called when so many steps are done, 0 before the first: update the masks if it is time."""
        if self._plan.settings.type == "progressive":
            self._tighten_by_parts(step)
            return
        update = self._schedule.update_at(step)
        if update is not None:
            self._apply(self._masks_at(update, self._scores()), step)

    def _tighten_by_parts(self, step: int) -> None:
        since, frequency = step - self._schedule.start, self._schedule.frequency
        end = self._schedule.last * frequency
        if not 0 <= since <= end:
            return
        if since > 0:
            done = (since - 1) % frequency + 1  # steps since the last update, 1..frequency
            part = done * _PARTS // frequency
            if part > (done - 1) * _PARTS // frequency:
                self._apply(self._part(part / _PARTS), step)
        if since % frequency == 0 and since < end:
            scores = self._scores()
            coming = self._masks_at(since // frequency + 1, scores)
            self._before = self.masks
            self._leaving = {
                name: torch.from_numpy(_ascending(scores[name], (mask & ~coming[name]).cpu().numpy()))
                for name, mask in self.masks.items()
            }

    def _part(self, share: float) -> dict[str, torch.Tensor]:
        """The masks when a share of what leaves until the next update is gone."""
        masks = {}
        for name, mask in self._before.items():
            stays = torch.ones(mask.numel(), dtype=torch.bool)
            stays[self._leaving[name][: round(share * len(self._leaving[name]))]] = False
            masks[name] = mask & stays.reshape(mask.shape).to(mask.device)
        return masks

    def _scores(self) -> dict[str, NDArray[np.float64]]:
        """Of each weight that stays at least 0, -1 of those that are gone."""
        criterion = self._plan.settings.criterion
        if criterion == "snip_momentum" and self._momentum.scores:
            scores = self._momentum.scores
        else:
            training = self._network.training
            scores = weight_scores(self._network.eval(), list(self._weights), criterion, self._batches())
            self._network.train(training)
            if criterion == "snip_momentum":  # no step was taken yet
                self._momentum.scores = scores
        arrays = {}
        for name, weight in self._weights.items():
            score = torch.where(weight.detach() == 0, 0.0, scores[name].to(weight.device))
            arrays[name] = torch.where(self.masks[name], score, -1.0).cpu().numpy()
        return arrays

    def _masks_at(self, update: int, scores: Mapping[str, NDArray[np.float64]]) -> dict[str, torch.Tensor]:
        if self._plan.scope == "global":
            sizes = {name: weight.numel() for name, weight in self._weights.items()}
            total, kept = sum(sizes.values()), sum(self._plan.targets.values())
            zeros = sum(share * sizes[name] for name, share in self._zeros.items()) / total
            left = self._left(update, total, kept, zeros)
            masks = global_masks(scores, left, self._pattern)
        else:
            masks = {}
            for name, score in scores.items():
                left = self._left(update, score.size, self._plan.targets[name], self._zeros[name])
                unit = _unit_size(self._pattern, score.shape)
                masks[name] = _first(self._pattern.order(score), -(-left // unit) * unit, score.shape)
        return {name: old & torch.from_numpy(masks[name]).to(old.device) for name, old in self.masks.items()}

    def _left(self, update: int, size: int, kept: int, zeros: float) -> int:
        """Weights that stay after an update, at least `kept`, which is what stays after the last."""
        if update >= self._schedule.last:
            return kept
        target = 1.0 - kept / size
        return max(kept, math.ceil(size * (1.0 - self._schedule.sparsity(update, target, min(zeros, target))) - 1e-6))

    def _apply(self, masks: dict[str, torch.Tensor], step: int) -> None:
        self.masks = masks
        self.history.append((step, self.sparsity))
        self._hold()

    @property
    def sparsity(self) -> float:
        """Fraction removed of all weights with a target."""
        sizes = sum(mask.numel() for mask in self.masks.values())
        return 1.0 - sum(int(torch.count_nonzero(mask)) for mask in self.masks.values()) / sizes

    def _hold(self) -> None:
        """Zero what is gone, and keep it zero."""
        for handle in self._holds:
            handle.remove()
        self._holds = []
        with torch.no_grad():
            for name, weight in self._weights.items():
                gone = ~self.masks[name]
                weight.masked_fill_(gone, 0.0)
                momentum = self._optimizer.state[weight].get("momentum_buffer")
                if momentum is not None:
                    momentum.masked_fill_(gone, 0.0)
                self._holds.append(hold_zeros(weight, self.masks[name]))

    def state(self) -> dict[str, Any]:
        """All that another process needs to go on."""
        return {
            "masks": self.masks,
            "history": self.history,
            "momentum": self._momentum.scores,
            "leaving": self._leaving,
            "before": self._before,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there; network and optimizer are as they were then."""
        self.masks, self.history = state["masks"], [tuple(point) for point in state["history"]]
        self._momentum.scores = state["momentum"]
        self._leaving = {name: leaving.cpu() for name, leaving in state["leaving"].items()}
        self._before = state["before"]
        self._hold()


def global_masks(
    scores: Mapping[str, NDArray[np.float64]], kept: int, pattern: Pattern
) -> dict[str, NDArray[np.bool_]]:
    """Masks by one threshold over all layers on the mean score of the pattern's units; of each layer one unit stays.

    Args:
        scores: by layer, of its weight's shape; larger stays longer, of equals those of the first layer.
        kept: weights that stay of all layers together; the masks keep at most one unit less.
        pattern: of units.

    Raises:
        ValueError: as of the pattern.
    """
    orders = {name: pattern.order(score) for name, score in scores.items()}
    units = {name: _unit_size(pattern, score.shape) for name, score in scores.items()}
    means = [scores[name].reshape(-1)[order].reshape(-1, units[name]).mean(axis=1) for name, order in orders.items()]
    for mean in means:
        mean[0] = np.inf
    owner = np.repeat(np.arange(len(means)), [len(mean) for mean in means])
    ranked = owner[np.argsort(-np.concatenate(means), kind="stable")]
    sizes = np.array(list(units.values()))
    stays = ranked[: int(np.searchsorted(np.cumsum(sizes[ranked]), kept, side="right"))]
    counts = np.maximum(np.bincount(stays, minlength=len(means)), 1) * sizes
    return {
        name: _first(order, int(count), scores[name].shape)
        for (name, order), count in zip(orders.items(), counts, strict=True)
    }


def _check_targets(plan: Sparsify, pattern: Pattern, weights: Mapping[str, nn.Parameter]) -> None:
    if plan.scope not in get_args(Scope):
        raise ValueError(f"scope: expected one of {', '.join(get_args(Scope))}, got {plan.scope!r}")
    if plan.scope == "global" and isinstance(pattern, NOfM):
        raise ValueError(f"scope: pattern {pattern.name} says what each layer keeps; take scope local")
    if not weights:
        raise ValueError("sparsify: expected targets of at least one layer, got none")
    for name, weight in weights.items():
        shape, target = tuple(weight.shape), plan.targets[name]
        try:
            nearest = pattern.nearest(shape, target)
        except ValueError as error:
            raise ValueError(f"sparsify: layer {name!r}: {error}") from error
        if nearest != target:
            raise ValueError(
                f"sparsify: layer {name!r} of shape {shape} cannot keep {target} weights in pattern {pattern.name}; "
                f"nearest allowed: {nearest}"
            )


def _unit_size(pattern: Pattern, shape: tuple[int, ...]) -> int:
    return int(np.count_nonzero(pattern.units(shape) == 0))


def _first(order: IntArray, kept: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.zeros(len(order), dtype=bool)
    mask[order[:kept]] = True
    return mask.reshape(shape)


def _ascending(scores: NDArray[np.float64], chosen: NDArray[np.bool_]) -> IntArray:
    """Flat indices of the chosen elements, by rising score."""
    indices = np.flatnonzero(chosen)
    return indices[np.argsort(scores.reshape(-1)[indices], kind="stable")]
