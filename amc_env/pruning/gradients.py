"""First and second derivatives of the loss by the weights of layers, on a network that is not changed.

The loss is the cross entropy of the network's logits, the network in evaluation mode, so that the images of a batch do
not see each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

#: images, and class indices as labels, int64 (n,)
LabelledBatch = tuple[torch.Tensor, torch.Tensor]
_DRAWS = 4  # of signs for each batch


def loss_gradients(
    network: nn.Module, layers: Sequence[str], batches: Iterable[LabelledBatch]
) -> Iterator[tuple[int, dict[str, torch.Tensor]]]:
    """Of each batch how many images it has, and the gradients of its mean loss, float64 of the weights' shapes.

    Args:
        network: in evaluation mode, returns logits (n, classes).
        layers: names of those by whose weights the loss is derived.
        batches: images and labels.

    Raises:
        ValueError: labels or outputs are not of that kind, or a gradient is not finite.
    """
    for images, labels in batches:
        if labels.ndim != 1 or labels.is_floating_point() or int(labels.min()) < 0:
            raise ValueError(
                f"gradients: expected class indices as labels, integers (n,) of at least 0, got {labels.dtype} "
                f"{tuple(labels.shape)}; take a criterion that needs none, such as l1, obd or apoz"
            )
        weights = _leaves(network, layers)
        loss = F.cross_entropy(_logits(network, weights, images), labels.to(images.device))
        yield len(images), _gradients(loss, weights, None)


def curvature(
    network: nn.Module, layers: Sequence[str], batches: Iterable[LabelledBatch], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """Diagonal of the Gauss-Newton matrix of the mean loss, float64 of the weights' shapes, at least 0.

    With J the derivative of an image's logits by the weights and p its probabilities, it is the diagonal of the mean of
    J'(diag(p) - pp')J: the Hessian without the second derivatives of the logits, and the Fisher information. With
    S = diag(sqrt(p)) - p sqrt(p)' it is SS' in the middle, so that for random signs v, independent between images, the
    square of the sum of J'Sv over a batch has the sum of the diagonals as its expectation. One backward pass for each
    of four draws of signs takes a batch; no labels are needed.

    The relative standard deviation of an element is at most about sqrt(2 / (draws * batches)): small batches say more.

    Args:
        network, layers, batches: as of `loss_gradients`; labels are not looked at.
        generator: on the CPU, draws the signs.

    Raises:
        ValueError: the network returns no logits, a gradient is not finite, or there are no batches.
    """
    total: dict[str, torch.Tensor] = {}
    images_seen = 0
    for images, _ in batches:
        weights = _leaves(network, layers)
        logits = _logits(network, weights, images)
        p = logits.detach().softmax(dim=1)
        for _ in range(_DRAWS):
            signs = torch.randint(2, p.shape, generator=generator).to(p.device) * 2 - 1
            signed = p.sqrt() * signs
            cotangent = signed - p * signed.sum(dim=1, keepdim=True)
            for name, gradient in _gradients(logits, weights, cotangent).items():
                total[name] = total.get(name, 0.0) + gradient.square()
        images_seen += len(images)
    return {name: diagonal / (_DRAWS * images_seen) for name, diagonal in total.items()}


def _leaves(network: nn.Module, layers: Sequence[str]) -> dict[str, torch.Tensor]:
    """Copies of the weights that gradients can be asked for, whether or not the network's own are trained."""
    return {name: network.get_parameter(f"{name}.weight").detach().clone().requires_grad_() for name in layers}


def _logits(network: nn.Module, weights: Mapping[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    with torch.enable_grad():
        outputs = functional_call(network, {f"{name}.weight": weight for name, weight in weights.items()}, (images,))
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
        got = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        raise ValueError(f"gradients: expected the network to return logits (n, classes), got {got}")
    return outputs


def _gradients(
    outputs: torch.Tensor, weights: Mapping[str, torch.Tensor], cotangent: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    found = torch.autograd.grad(outputs, list(weights.values()), cotangent, retain_graph=True, materialize_grads=True)
    gradients = {name: gradient.double() for name, gradient in zip(weights, found, strict=True)}
    check_finite(gradients, "gradients", "look for weights or images that are too large")
    return gradients


def check_finite(tensors: Mapping[str, torch.Tensor], what: str, remedy: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        ValueError: so; it names the first layer.
    """
    for name, tensor in tensors.items():
        wrong = int((~tensor.isfinite()).sum())
        if wrong:
            raise ValueError(
                f"layer {name!r}: expected finite {what}, got {wrong} of {tensor.numel()} that are NaN or infinite; "
                f"{remedy}"
            )
