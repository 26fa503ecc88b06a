"""Penalties on weights, added to the loss: what they press towards zero costs less to remove.

A penalty is differentiated with the loss, so that what is held during the training (`amc_env.pruning.pattern`) stays
held. The gradient of all of them is 0 where a weight, a unit or a scale is 0: the subgradient that keeps it there.

[LASSO] Yuan and Lin, Model selection and estimation in regression with grouped variables, 2006, equation 2.1.
[SSL] Wen et al., Learning structured sparsity in deep neural networks, arXiv 1608.03665, section 3: groups of weights,
without the factor for their size.
[SLIM] Liu et al., Learning efficient convolutional networks through network slimming, arXiv 1708.06519, section 3: L1
on the scales of batch norms, by its subgradient; smooth-L1 is named there as the alternative.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from amc_env.pruning.patterns import Pattern, parse_pattern

RegularizerKind = Literal["l1", "l2", "group_lasso", "slimming", "slimming_smooth_l1"]
Penalty = Callable[[], torch.Tensor]
_WEIGHED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SCALED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class Regularizer:
    """A penalty, and how strong it is.

    Attributes:
        kind: with w the weights of convolutions and linear layers, and gamma the scales of batch norms:
            "l1": strength * sum of |w|;
            "l2": strength * sum of w^2, whose gradient is 2 * strength * w, twice that of a weight decay;
            "group_lasso": strength * sum over the units of `pattern` of sqrt(size of the unit) * its L2 norm [LASSO];
            "slimming": strength * sum of |gamma| [SLIM];
            "slimming_smooth_l1": the same with gamma^2 / (2 beta) where |gamma| < beta, and |gamma| - beta / 2 beyond.
        strength: above 0.
        pattern: of group lasso, a name as of `amc_env.pruning.patterns`.
        layers: names of the layers, for the first three; None for all.
        beta: of smooth-L1, above 0.
    """

    kind: RegularizerKind
    strength: float
    pattern: str = "filter"
    layers: tuple[str, ...] | None = None
    beta: float = 0.1

    def __post_init__(self) -> None:
        known = get_args(RegularizerKind)
        if self.kind not in known:
            close = difflib.get_close_matches(self.kind, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"regularizer: expected one of {', '.join(known)}, got {self.kind!r}{hint}")
        for name in ("strength", "beta"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"regularizer: {name}: expected a number above 0, got {getattr(self, name)}")
        if self.kind == "group_lasso":
            parse_pattern(self.pattern)

    def of(self, network: nn.Module) -> Penalty:
        """The penalty of a network as it is whenever that is called, a scalar.

        Raises:
            ValueError: there is no such layer, no batch norm to slim, or the pattern does not suit a layer.
        """
        terms = _TERMS[self.kind](self, network)

        def penalty() -> torch.Tensor:
            return self.strength * torch.stack([term() for term in terms]).sum()

        return penalty


def _weights(regularizer: Regularizer, network: nn.Module) -> dict[str, torch.Tensor]:
    """The weights to be penalised, by layer."""
    weights = {
        name: module.weight
        for name, module in network.named_modules()
        if isinstance(module, _WEIGHED) and module.weight.requires_grad
    }
    chosen: Iterable[str] = weights if regularizer.layers is None else regularizer.layers
    for name in chosen:
        if name not in weights:
            raise ValueError(f"regularizer: no layer {name!r} to train; the layers are {', '.join(weights)}")
    return {name: weights[name] for name in chosen}


def _scales(network: nn.Module) -> list[torch.Tensor]:
    scales: list[torch.Tensor] = [
        module.weight for module in network.modules() if isinstance(module, _SCALED) and module.affine
    ]
    if not scales:
        raise ValueError(
            "regularizer: slimming presses on the scales of batch norms, and the network has none; take l1, l2 or "
            "group_lasso"
        )
    return scales


def _absolute(values: torch.Tensor) -> torch.Tensor:
    return values.abs().sum()


def _squared(values: torch.Tensor) -> torch.Tensor:
    return values.square().sum()


def _smooth(values: torch.Tensor, beta: float) -> torch.Tensor:
    return F.smooth_l1_loss(values, torch.zeros_like(values), reduction="sum", beta=beta)


def _grouped(name: str, weight: torch.Tensor, pattern: Pattern) -> Penalty:
    shape = tuple(weight.shape)
    try:
        pattern.check(shape)
    except ValueError as error:
        raise ValueError(f"regularizer: layer {name!r}: {error}; name the layers without it") from error
    units = torch.from_numpy(pattern.units(shape).reshape(-1)).to(weight.device)
    roots = torch.bincount(units).to(weight.dtype).sqrt()

    def penalty() -> torch.Tensor:
        squares = torch.zeros_like(roots).index_add(0, units, weight.square().reshape(-1))
        alive = squares > 0
        norms = torch.where(alive, squares, 1.0).sqrt() * alive  # the root has no gradient at 0
        return (roots * norms).sum()

    return penalty


def _of_weights(
    term: Callable[[torch.Tensor], torch.Tensor], regularizer: Regularizer, network: nn.Module
) -> list[Penalty]:
    return [partial(term, weight) for weight in _weights(regularizer, network).values()]


def _group_lasso(regularizer: Regularizer, network: nn.Module) -> list[Penalty]:
    pattern = parse_pattern(regularizer.pattern)
    return [_grouped(name, weight, pattern) for name, weight in _weights(regularizer, network).items()]


def _slimming(regularizer: Regularizer, network: nn.Module) -> list[Penalty]:
    return [partial(_absolute, scale) for scale in _scales(network)]


def _slimming_smooth_l1(regularizer: Regularizer, network: nn.Module) -> list[Penalty]:
    return [partial(_smooth, scale, regularizer.beta) for scale in _scales(network)]


_TERMS: Mapping[RegularizerKind, Callable[[Regularizer, nn.Module], Sequence[Penalty]]] = {
    "l1": partial(_of_weights, _absolute),
    "l2": partial(_of_weights, _squared),
    "group_lasso": _group_lasso,
    "slimming": _slimming,
    "slimming_smooth_l1": _slimming_smooth_l1,
}
