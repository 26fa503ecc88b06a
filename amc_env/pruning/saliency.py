"""Saliency: how much each weight or each filter of a layer matters. What scores more stays longer.

w is a weight, g its gradient of the mean loss, both on the dense network; a sum is over the weights of a filter.

| criterion | score of a weight | score of a filter | needs |
| --- | --- | --- | --- |
| l1 | abs(w) | sum | |
| l2 | w^2 | sum | |
| gradient | abs(g) | sum | images, labels |
| snip | abs(w g) | sum | images, labels |
| snip_momentum | S after all batches, S := past S + new abs(w g) of the batch | sum | images, labels |
| taylor | (w g)^2 of a batch, mean over the batches | (sum of w g)^2, mean over the batches | images, labels |
| obd | h w^2 / 2, h the diagonal second derivative of the loss | sum | images |
| random | uniform in [0, 1) | likewise | |
| bn_scale | the filter's, in equal parts | abs(gamma) of the batch norm that follows | |
| apoz | the filter's, in equal parts | share of values above 0 after the ReLU that follows | images |

References: l1, l2: Li et al., arXiv 1608.08710. snip: Lee et al., arXiv 1810.02340 (without the division by the sum of
all, which changes no order). snip_momentum: Intel Neural Compressor, whose page has past 1.0 and new 0.9 and whose code
computed past 0.9 and new 1.0. taylor: Molchanov et al., arXiv 1906.10771: of its two ways to join the weights of a set,
a filter's score is the group contribution, that of any other unit the sum of its members. obd: LeCun et al., Optimal
brain damage, 1989, with h by `curvature`. bn_scale: Liu et al., Network slimming, arXiv 1708.06519. apoz: Hu et al.,
arXiv 1607.03250; few zeros stay longer.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from amc_env.pruning.activity import zero_shares
from amc_env.pruning.gradients import LabelledBatch, check_finite, curvature, loss_gradients

Saliency = Literal["l1", "l2", "gradient", "snip", "snip_momentum", "taylor", "obd", "random", "bn_scale", "apoz"]
SALIENCIES: tuple[Saliency, ...] = get_args(Saliency)
#: of filters only: all weights of a filter score the same
OF_FILTERS: tuple[Saliency, ...] = ("bn_scale", "apoz")
#: computed on images
ON_IMAGES: tuple[Saliency, ...] = ("gradient", "snip", "snip_momentum", "taylor", "obd", "apoz")

Scores = dict[str, torch.Tensor]


@dataclass(frozen=True)
class SaliencySettings:
    """What else a criterion reads.

    Attributes:
        seed: of the signs that obd draws, and of random; at least 0.
        snip_factors: past and new of `SnipMomentum`, at least 0. (1.0, 0.9) as the page of Intel Neural Compressor
            says; its code computed (0.9, 1.0).
    """

    seed: int = 0
    snip_factors: tuple[float, float] = (1.0, 0.9)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0, got {self.seed}")
        if not all(0.0 <= factor < math.inf for factor in self.snip_factors):
            raise ValueError(
                f"snip_factors: expected two numbers of at least 0, of the score so far and of the new one, got "
                f"{self.snip_factors}"
            )


class SnipMomentum:
    """Scores that gather abs(w g) over batches, or over the steps of a training.

    Attributes:
        scores: by layer, float64 of its weight's shape; empty before the first update.

    Args:
        past: multiplies the score so far.
        new: multiplies abs(w g) of the step.
    """

    def __init__(self, past: float = 1.0, new: float = 0.9) -> None:
        self._past, self._new = past, new
        self.scores: Scores = {}

    def update(self, weights: Mapping[str, torch.Tensor], gradients: Mapping[str, torch.Tensor]) -> None:
        """One more step, with the weights and the gradients of these layers."""
        for name, weight in weights.items():
            step = self._new * (weight.double() * gradients[name].double()).abs()
            self.scores[name] = self._past * self.scores[name] + step if name in self.scores else step


def weight_scores(
    network: nn.Module,
    layers: Sequence[str],
    criterion: Saliency,
    batches: Iterable[LabelledBatch] | None = None,
    *,
    norms: Mapping[str, str] | None = None,
    settings: SaliencySettings = SaliencySettings(),
) -> Scores:
    """Scores of the weights of these layers, float64 of each weight's shape.

    Args:
        network: in evaluation mode; not changed.
        layers: names of convolutions and linear layers.
        criterion: one of `SALIENCIES`; those of `OF_FILTERS` are shared out over the weights of a filter.
        batches: images and labels, for those of `ON_IMAGES`; obd and apoz do not look at the labels.
        norms: for bn_scale, the batch norm behind each layer.
        settings: what else a criterion reads.

    Raises:
        ValueError: the criterion is unknown or misses what it needs, or weights or gradients are not finite.
    """
    given = _given(network, layers, criterion, batches, norms, settings)
    if criterion in OF_FILTERS:
        shares = _FILTERS[criterion](given)
        return {
            name: (shares[name] / weight[0].numel()).reshape(-1, *[1] * (weight.ndim - 1)).expand_as(weight).clone()
            for name, weight in given.weights.items()
        }
    return _WEIGHTS[criterion](given)


def filter_scores(
    network: nn.Module,
    layers: Sequence[str],
    criterion: Saliency,
    batches: Iterable[LabelledBatch] | None = None,
    *,
    norms: Mapping[str, str] | None = None,
    settings: SaliencySettings = SaliencySettings(),
) -> Scores:
    """Scores of the filters of these layers, float64 (outputs,). Arguments and errors as of `weight_scores`."""
    given = _given(network, layers, criterion, batches, norms, settings)
    if criterion in _FILTERS:
        return _FILTERS[criterion](given)
    return {name: scores.flatten(1).sum(dim=1) for name, scores in _WEIGHTS[criterion](given).items()}


def check_criterion(criterion: str, known: Sequence[str]) -> None:
    """Refuse an unknown criterion, and tell which may have been meant.

    Raises:
        ValueError: so.
    """
    if criterion not in known:
        near = difflib.get_close_matches(criterion, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"criterion: expected one of {', '.join(known)}, got {criterion!r}{hint}")


@dataclass(frozen=True)
class _Given:
    """What a criterion may use."""

    network: nn.Module
    weights: Scores  # float64
    batches: Iterable[LabelledBatch]
    norms: Mapping[str, str]
    settings: SaliencySettings

    @property
    def layers(self) -> list[str]:
        return list(self.weights)

    def gradients(self) -> Iterator[tuple[int, Scores]]:
        return loss_gradients(self.network, self.layers, self.batches)

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.settings.seed)


def _given(
    network: nn.Module,
    layers: Sequence[str],
    criterion: Saliency,
    batches: Iterable[LabelledBatch] | None,
    norms: Mapping[str, str] | None,
    settings: SaliencySettings,
) -> _Given:
    check_criterion(criterion, SALIENCIES)
    weights = {name: network.get_parameter(f"{name}.weight").detach().double() for name in layers}
    check_finite(weights, "weights", "load weights that were trained")
    stream = iter(batches or ())
    first = next(stream, None) if criterion in ON_IMAGES else None
    if criterion in ON_IMAGES and first is None:
        needed = "images" if criterion in ("obd", "apoz") else "images and their labels"
        raise ValueError(f"criterion {criterion!r}: needs {needed}, got none; give batches, or take l1, l2 or bn_scale")
    return _Given(network, weights, _again(first, stream), norms or {}, settings)


def _again(first: LabelledBatch | None, rest: Iterator[LabelledBatch]) -> Iterator[LabelledBatch]:
    if first is not None:
        yield first
    yield from rest


def _mean_gradients(given: _Given) -> Scores:
    """Gradients of the mean loss over all images."""
    total: Scores = {}
    images = 0
    for count, gradients in given.gradients():
        images += count
        total = {name: total.get(name, 0.0) + count * gradient for name, gradient in gradients.items()}
    return {name: gradient / images for name, gradient in total.items()}


def _snip(given: _Given) -> Scores:
    return {name: (given.weights[name] * gradient).abs() for name, gradient in _mean_gradients(given).items()}


def _snip_momentum(given: _Given) -> Scores:
    score = SnipMomentum(*given.settings.snip_factors)
    for _, gradients in given.gradients():
        score.update(given.weights, gradients)
    return score.scores


def _taylor(given: _Given, *, of_filters: bool) -> Scores:
    total: Scores = {}
    batches = 0
    for _, gradients in given.gradients():
        batches += 1
        for name, gradient in gradients.items():
            change = given.weights[name] * gradient
            change = change.flatten(1).sum(dim=1) if of_filters else change
            total[name] = total.get(name, 0.0) + change.square()
    return {name: score / batches for name, score in total.items()}


def _obd(given: _Given) -> Scores:
    diagonals = curvature(given.network, given.layers, given.batches, given.generator())
    return {name: 0.5 * diagonal * given.weights[name].square() for name, diagonal in diagonals.items()}


def _random(given: _Given, *, of_filters: bool) -> Scores:
    generator = given.generator()
    shapes = {name: weight.shape[:1] if of_filters else weight.shape for name, weight in given.weights.items()}
    return {name: torch.rand(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def _bn_scale(given: _Given) -> Scores:
    scores = {}
    for name in given.layers:
        norm = given.norms.get(name)
        gamma = None if norm is None else given.network.get_submodule(norm).weight
        if not isinstance(gamma, torch.Tensor):
            raise ValueError(
                f"layer {name!r}: bn_scale reads the scales of the batch norm that alone sees the layer's outputs, and "
                f"there is none; keep the layer, or take another criterion"
            )
        scores[name] = gamma.detach().double().abs()
    check_finite(scores, "scales of the batch norm", "load weights that were trained")
    return scores


def _apoz(given: _Given) -> Scores:
    shares = zero_shares(given.network, given.layers, (images for images, _ in given.batches))
    return {name: 1.0 - zeros for name, zeros in shares.items()}


_WEIGHTS: Mapping[str, Callable[[_Given], Scores]] = {
    "l1": lambda given: {name: weight.abs() for name, weight in given.weights.items()},
    "l2": lambda given: {name: weight.square() for name, weight in given.weights.items()},
    "gradient": lambda given: {name: gradient.abs() for name, gradient in _mean_gradients(given).items()},
    "snip": _snip,
    "snip_momentum": _snip_momentum,
    "taylor": lambda given: _taylor(given, of_filters=False),
    "obd": _obd,
    "random": lambda given: _random(given, of_filters=False),
}
#: where the score of a filter is not the sum over its weights
_FILTERS: Mapping[str, Callable[[_Given], Scores]] = {
    "taylor": lambda given: _taylor(given, of_filters=True),
    "random": lambda given: _random(given, of_filters=True),
    "bn_scale": _bn_scale,
    "apoz": _apoz,
}
