"""Regularizers: penalties and gradients worked by hand, what they leave at zero, and what they refuse."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from amc_env.pruning.pattern import hold_pattern
from amc_env.training.regularizers import Regularizer

WEIGHT = [[0.5, -1.5, 0.0, 2.0], [0.0, 0.0, -3.0, 4.0]]


def linear(weight: list[list[float]] | None = None) -> nn.Linear:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(WEIGHT if weight is None else weight))
    return layer


def penalised(network: nn.Module, regularizer: Regularizer) -> float:
    """Its penalty; the gradients of it are in the parameters then."""
    penalty = regularizer.of(network)()
    torch.autograd.backward(penalty)
    return penalty.item()


@pytest.mark.parametrize(
    ("regularizer", "penalty", "gradient"),
    [
        # 0.1 * (0.5 + 1.5 + 2 + 3 + 4), and 0.1 * the signs
        (Regularizer("l1", 0.1), 1.1, [[0.1, -0.1, 0.0, 0.1], [0.0, 0.0, -0.1, 0.1]]),
        # 0.1 * (0.25 + 2.25 + 4 + 9 + 16), and 0.2 * w
        (Regularizer("l2", 0.1), 3.15, [[0.1, -0.3, 0.0, 0.4], [0.0, 0.0, -0.6, 0.8]]),
        # rows of 4: 0.1 * 2 * (sqrt(6.5) + 5), and 0.2 * w / norm
        (
            Regularizer("group_lasso", 0.1, "filter"),
            0.2 * (6.5**0.5 + 5.0),
            [[0.1 / 6.5**0.5, -0.3 / 6.5**0.5, 0.0, 0.4 / 6.5**0.5], [0.0, 0.0, -0.12, 0.16]],
        ),
        # blocks of 1x2 (0.5, -1.5), (0, 2), (0, 0), (-3, 4): 0.1 * sqrt(2) * (sqrt(2.5) + 2 + 0 + 5)
        (
            Regularizer("group_lasso", 0.1, "1x2"),
            0.1 * 2**0.5 * (2.5**0.5 + 7.0),
            [[0.05 * 2**0.5 / 2.5**0.5, -0.15 * 2**0.5 / 2.5**0.5, 0.0, 0.1 * 2**0.5],
             [0.0, 0.0, -0.06 * 2**0.5, 0.08 * 2**0.5]],
        ),
        # units of one weight: L1
        (Regularizer("group_lasso", 0.1, "fine_grained"), 1.1, [[0.1, -0.1, 0.0, 0.1], [0.0, 0.0, -0.1, 0.1]]),
    ],
)  # fmt: skip
def test_weights(regularizer: Regularizer, penalty: float, gradient: list[list[float]]) -> None:
    layer = linear()
    assert penalised(layer, regularizer) == pytest.approx(penalty, rel=1e-6)
    torch.testing.assert_close(layer.weight.grad, torch.tensor(gradient))
    assert layer.bias.grad is None


def test_scales() -> None:
    norm = nn.BatchNorm2d(4)
    for kind, beta, penalty, gradient in (
        ("slimming", 0.5, 0.1 * 3.1, [0.1, -0.1, 0.0, 0.1]),
        # (2 - 0.25) + (1 - 0.25) + 0 + 0.1^2 / (2 * 0.5), and 0.1 / 0.5 of the strength within beta
        ("slimming_smooth_l1", 0.5, 0.1 * 2.51, [0.1, -0.1, 0.0, 0.02]),
    ):
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([2.0, -1.0, 0.0, 0.1]))
        norm.weight.grad = None
        network = nn.Sequential(nn.Conv2d(1, 4, 3), norm)
        assert penalised(network, Regularizer(kind, 0.1, beta=beta)) == pytest.approx(penalty, rel=1e-6)  # type: ignore[arg-type]
        torch.testing.assert_close(norm.weight.grad, torch.tensor(gradient))
        assert norm.bias.grad is None
        assert network[0].weight.grad is None


def test_layers_that_are_named_and_no_others() -> None:
    network = nn.Sequential(linear(), nn.ReLU(), nn.Linear(2, 2))
    assert penalised(network, Regularizer("l1", 0.1, layers=("0",))) == pytest.approx(1.1)
    assert network[2].weight.grad is None


@pytest.mark.parametrize("kind", ["l1", "l2", "group_lasso"])
@pytest.mark.parametrize("shared", [False, True])
def test_what_is_held_stays_held(kind: Any, shared: bool) -> None:
    layer = linear([[0.5, 0.5, 0.0, 0.5], [0.0, 0.0, -3.0, 0.5]])
    before = layer.weight.detach().clone()
    hold_pattern(layer.get_parameter("weight"), shared=shared)
    penalty = Regularizer(kind, 0.1, "filter").of(layer)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        torch.autograd.backward(penalty())
        optimizer.step()
    assert torch.equal(layer.weight == 0, before == 0)
    assert not torch.equal(layer.weight, before)
    if shared:
        assert torch.unique(layer.weight.detach()[before == 0.5]).numel() == 1


def test_group_lasso_brings_whole_units_near_zero() -> None:
    layer = nn.Linear(8, 8, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-1, 1, 64).reshape(8, 8))
        layer.weight[3] *= 0.01
    penalty = Regularizer("group_lasso", 0.02, "filter").of(layer)
    for _ in range(10):
        layer.zero_grad()
        torch.autograd.backward(penalty())
        with torch.no_grad():
            layer.weight -= 0.05 * layer.weight.grad  # type: ignore[operator]
    norms = layer.weight.detach().norm(dim=1)
    assert norms[3] < 0.003
    assert norms[[0, 1, 2, 4, 5, 6, 7]].min() > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regularizer("lasso", 1.0), "expected one of l1, l2, group_lasso, slimming, slimming_smooth_l1, got "),  # type: ignore[arg-type]
        (lambda: Regularizer("l1", 0.0), "regularizer: strength: expected a number above 0, got 0.0"),
        (lambda: Regularizer("l1", 0.1, beta=-1.0), "regularizer: beta: expected a number above 0, got -1.0"),
        (lambda: Regularizer("group_lasso", 0.1, "filtre"), "got 'filtre'; did you mean filter?"),
        (
            lambda: Regularizer("group_lasso", 0.1, "4x1").of(linear()),
            "regularizer: layer '': 4x1: expected outputs that 4 divides and inputs that 1 divides, got 2 outputs and "
            "4 inputs; name the layers without it",
        ),
        (lambda: Regularizer("l1", 0.1, layers=("fc",)).of(nn.Sequential(linear())), "no layer 'fc' to train; the lay"),
        (
            lambda: Regularizer("slimming", 0.1).of(linear()),
            "slimming presses on the scales of batch norms, and the network has none; take l1, l2 or group_lasso",
        ),
    ],
)
def test_what_is_no_regularizer_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
