"""What the error of a network is: one number per image, whose mean over a split is the network's error.

| name | error of an image | unit |
| --- | --- | --- |
| top1, top5, ... | 1 where the label is not among the k largest logits, else 0 | fraction |
| cross_entropy | -log softmax(logits)[label] | nats |
| agreement | KL(softmax of the dense network's logits || softmax of the logits); needs no labels | nats |
| jensen_shannon | the mean of both distributions' KL to their mean [JS], at most log 2; needs no labels | nats |
| module:function | what the user's function(outputs, labels, dense_outputs) returns, a tensor (n,) | its own |

[JS] Lin, Divergence measures based on the Shannon entropy, IEEE Transactions on Information Theory 37, 1991.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from amc_env.problem import Score
from amc_env.user_code import import_function

#: (outputs, labels, dense_outputs) of a batch -> errors (n,). Outputs are whatever the network returns, labels a
#: tensor (n, ...) on the device of the images.
ErrorFunction = Callable[[Any, torch.Tensor, Any], Any]
Batch = tuple[torch.Tensor, torch.Tensor | NDArray[Any]]

_KNOWN = ("top1", "top5", "cross_entropy", "agreement", "jensen_shannon")


@dataclass(frozen=True)
class Objective:
    """An error per image, lower is better.

    Attributes:
        name: as in the spec.
        function: gives the errors of a batch.
        needs_dense: the dense network's outputs are needed.
        classifies: labels must be class indices and outputs logits (n, classes).
        unit: of the error, for tables; "" if it has none or only its author knows.
        worst: the largest error of an image that there can be.
    """

    name: str
    function: ErrorFunction
    needs_dense: bool = False
    classifies: bool = False
    unit: str = ""
    worst: float = math.inf

    def errors(self, outputs: Any, labels: torch.Tensor, dense_outputs: Any) -> torch.Tensor:
        """The error of each image of a batch, float64 (n,), finite.

        Raises:
            ValueError: outputs or labels are not those that the objective needs, or the errors not finite (n,).
        """
        if self.classifies:
            _check_classes(self.name, outputs, labels)
        errors = self.function(outputs, labels, dense_outputs)
        if not isinstance(errors, torch.Tensor) or errors.shape != labels.shape[:1] or errors.is_complex():
            got = tuple(errors.shape) if isinstance(errors, torch.Tensor) else type(errors).__name__
            raise ValueError(
                f"objective {self.name!r}: expected a real tensor with one error for each of the {len(labels)} images, "
                f"({len(labels)},), got {got}"
            )
        errors = errors.double()
        if not errors.isfinite().all():
            raise ValueError(
                f"objective {self.name!r}: expected finite errors, got {errors[~errors.isfinite()][0].item()} for "
                f"{int((~errors.isfinite()).sum())} of {len(errors)} images"
            )
        return errors


def find_objective(name: str, folder: Path | None = None) -> Objective:
    """The objective of that name, or made of the user's function.

    Args:
        name: see the module's docstring.
        folder: where the user's module is looked for first; the current directory by default.

    Raises:
        ValueError: there is no such objective, module or function.
    """
    if ":" in name:
        return Objective(name, import_function("objective", name, folder), needs_dense=True)
    if name == "cross_entropy":
        return Objective(name, _cross_entropy, classifies=True, unit="nats")
    if name == "agreement":
        return Objective(name, _agreement, needs_dense=True, unit="nats")
    if name == "jensen_shannon":
        return Objective(name, _jensen_shannon, needs_dense=True, unit="nats", worst=math.log(2.0))
    top = re.fullmatch(r"top([1-9]\d*)", name)
    if top is None:
        close = difflib.get_close_matches(name, _KNOWN, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"objective: unknown {name!r}{hint} (known: {', '.join(_KNOWN)}, topK with any K, or module:function of "
            f"your own)"
        )
    return Objective(name, _TopK(int(top[1])), classifies=True, worst=1.0)


@dataclass(frozen=True)
class KnownImages:
    """Images of a split whose errors are taken as known: the network need not run on them.

    Attributes:
        images: their number.
        error_sum: of their errors.
        correct: how many of them are classified rightly; None where the network does not classify.
    """

    images: int = 0
    error_sum: float = 0.0
    correct: int | None = 0


def evaluate_objective(
    network: Callable[[torch.Tensor], Any],
    batches: Iterable[Batch],
    objective: Objective,
    dense_outputs: Iterable[Any] | None,
    *,
    total: int,
    give_up_at: float | None = None,
    known: KnownImages = KnownImages(),
) -> Score:
    """The objective's mean error over the images, and top-1 if the network classifies.

    With `give_up_at`, say the least error so far, it stops after the first batch at which the errors that were seen
    alone make the mean over all images that large: no error is negative, so the rest cannot make it smaller. The
    score is then that of the images seen.

    Args:
        network: a module in evaluation mode, or any function of a batch of images.
        batches: images and labels (n, ...).
        objective: gives the errors.
        dense_outputs: the dense network's outputs on the same batches, as of `network_outputs`; None if the objective
            does not need them.
        total: images in all batches, and known ones.
        give_up_at: an error that the network must stay below to be of interest.
        known: images that count although they are in no batch.

    Raises:
        ValueError: outputs, labels or errors are not as the objective needs them, a batch or its dense outputs is
            missing, or an error is negative although `give_up_at` is given.
    """
    if objective.needs_dense and dense_outputs is None:
        raise ValueError(f"objective {objective.name!r}: needs the dense network's outputs, got None")
    dense = dense_outputs if objective.needs_dense and dense_outputs is not None else itertools.repeat(None)
    tally = _Tally(known)
    with torch.inference_mode():
        for (images, given), dense_output in zip(batches, dense, strict=objective.needs_dense):
            labels = torch.as_tensor(given, device=images.device)
            outputs = network(images)
            errors = objective.errors(outputs, labels, dense_output)
            tally.add(errors, outputs, labels)
            if give_up_at is not None:
                _check_not_negative(objective, errors)
                if tally.error_sum / total >= give_up_at:
                    break
        else:
            if tally.seen != total:
                raise ValueError(f"total: the batches hold {tally.seen} images, expected {total}")
    return tally.score(total)


class _Tally:
    """Sums over the images seen."""

    def __init__(self, known: KnownImages) -> None:
        self.error_sum, self.seen = known.error_sum, known.images
        self._correct, self._classifies = known.correct or 0, known.correct is not None
        self._hits: list[torch.Tensor] = []

    def add(self, errors: torch.Tensor, outputs: Any, labels: torch.Tensor) -> None:
        self.error_sum += float(errors.sum())
        self.seen += len(labels)
        self._classifies = self._classifies and is_classification(outputs, labels)
        if self._classifies:
            self._hits.append(outputs.argmax(dim=1) == labels)
            self._correct += int(self._hits[-1].sum())

    def score(self, total: int) -> Score:
        error, fraction = self.error_sum / self.seen, self.seen / total
        if not self._classifies:
            return Score(error, None, fraction)
        ran = sum(map(len, self._hits))
        correct = np.packbits(torch.cat(self._hits).cpu().numpy()).tobytes() if ran == total else None
        return Score(error, self._correct / self.seen, fraction, correct)


def network_outputs(network: nn.Module, batches: Iterable[Batch]) -> list[Any]:
    """What the network returns for each batch."""
    with torch.inference_mode():
        return [network(images) for images, _ in batches]


def _check_not_negative(objective: Objective, errors: torch.Tensor) -> None:
    if (errors < 0).any():
        raise ValueError(
            f"objective {objective.name!r}: expected errors of at least 0, without which no evaluation can be stopped "
            f"early, got {errors.min().item():g}; set stop_early: false"
        )


def _check_classes(name: str, outputs: Any, labels: torch.Tensor) -> None:
    """Refuse what is not logits (n, classes) and labels (n,) in 0..classes-1."""
    _check_logits(name, outputs)
    if labels.ndim != 1 or labels.is_floating_point():
        raise ValueError(
            f"objective {name!r}: expected class indices as labels, integers (n,), got {labels.dtype} "
            f"{tuple(labels.shape)}; take agreement or jensen_shannon, or module:function of your own"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < outputs.shape[1]:
        raise ValueError(
            f"objective {name!r}: expected labels in 0..{outputs.shape[1] - 1}, the network's outputs, got "
            f"{int(labels.min())}..{int(labels.max())}"
        )


def _check_logits(name: str, outputs: Any) -> None:
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        got = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise ValueError(
            f"objective {name!r}: expected the network to return logits (n, classes), got {got}; take module:function "
            f"of your own"
        )


def is_classification(outputs: Any, labels: torch.Tensor) -> bool:
    """Whether top-1 means something: logits of two classes or more, and labels that are among them."""
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
        return False
    if labels.ndim != 1 or labels.is_floating_point():
        return False
    return bool(((labels >= 0) & (labels < outputs.shape[1])).all())


@dataclass(frozen=True)
class _TopK:
    k: int

    def __call__(self, outputs: torch.Tensor, labels: torch.Tensor, dense_outputs: Any) -> torch.Tensor:
        if self.k == 1:
            return outputs.argmax(dim=1) != labels
        if self.k > outputs.shape[1]:
            raise ValueError(f"objective 'top{self.k}': the network has {outputs.shape[1]} outputs only")
        return ~(outputs.topk(self.k, dim=1).indices == labels[:, None]).any(dim=1)


def _cross_entropy(outputs: torch.Tensor, labels: torch.Tensor, dense_outputs: Any) -> torch.Tensor:
    return F.cross_entropy(outputs.float(), labels.long(), reduction="none")


def _agreement(outputs: torch.Tensor, labels: torch.Tensor, dense_outputs: torch.Tensor) -> torch.Tensor:
    _check_logits("agreement", outputs)
    dense, pruned = dense_outputs.float().log_softmax(dim=1), outputs.float().log_softmax(dim=1)
    # rounding may leave a divergence of zero a little below it
    return F.kl_div(pruned, dense, reduction="none", log_target=True).sum(dim=1).clamp_min(0.0)


def _jensen_shannon(outputs: torch.Tensor, labels: torch.Tensor, dense_outputs: torch.Tensor) -> torch.Tensor:
    _check_logits("jensen_shannon", outputs)
    both = torch.stack([outputs, dense_outputs]).float().log_softmax(dim=2)
    middle = both.logsumexp(dim=0) - math.log(2.0)
    divergences = F.kl_div(middle.expand_as(both), both, reduction="none", log_target=True).sum(dim=2)
    return divergences.mean(dim=0).double().clamp(0.0, math.log(2.0))  # rounding may leave it a little outside
