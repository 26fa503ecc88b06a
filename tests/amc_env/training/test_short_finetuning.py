"""A few steps of training in each evaluation: the same network in whatever order, and the dense one untouched."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc_env import zoo
from amc_env.datasets import SplitSizes, load_splits
from amc_env.evaluation import NetworkProblem
from amc_env.problem import Widths
from amc_env.settings import EvaluationSettings, Fidelity, PruningSettings, ShortFineTuning
from amc_env.splits import DataSplits, Split
from amc_env.weights import weights_digest

SHORT = ShortFineTuning(steps=3, batch=32)


@pytest.fixture(scope="module")
def data() -> DataSplits:
    return load_splits("digits", SplitSizes(calibration=100, search=200, test=200))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.digits_weights(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def network(weights: Path) -> nn.Module:
    network = zoo.digits_network()
    zoo.load_weights(network, weights)
    return network


def problem_of(
    network: nn.Module,
    data: DataSplits,
    short: ShortFineTuning = SHORT,
    *,
    fidelity: Fidelity = "sequential",
    objective: str = "cross_entropy",
) -> NetworkProblem:
    evaluation = EvaluationSettings(fidelity=fidelity, images=50, rows=500, objective=objective, finetune=short)
    settings = PruningSettings(round_to=2, criterion="l1")
    return NetworkProblem(network, data, budget={"macs": "90%"}, settings=settings, evaluation=evaluation)


def narrower(problem: NetworkProblem) -> list[Widths]:
    """Plans of which each differs from the one before in its last layers only."""
    half = problem.widths(np.full(len(problem.decisions), 0.4))
    return [half, *((*half[:last], *problem.smallest_widths[last:]) for last in range(len(half) - 1, 0, -1))]


@pytest.mark.parametrize("fidelity", ["magnitude", "prefix", "sequential"])
def test_an_evaluation_does_not_depend_on_those_before(
    network: nn.Module, data: DataSplits, fidelity: Fidelity
) -> None:
    one = problem_of(network, data, fidelity=fidelity)
    for widths in narrower(one):
        alone = problem_of(network, data, fidelity=fidelity)
        assert one.evaluate_widths(widths).error == alone.evaluate_widths(widths).error


def test_the_final_network_is_trained_too_and_the_dense_one_is_not(network: nn.Module, data: DataSplits) -> None:
    digest = weights_digest(network)
    trained, plain = problem_of(network, data), problem_of(network, data, ShortFineTuning())
    widths = narrower(trained)[0]
    first, second, untrained = trained.prune(widths), trained.prune(widths), plain.prune(widths)
    assert weights_digest(first) == weights_digest(second) != weights_digest(untrained)
    assert not first.training
    assert weights_digest(network) == digest
    assert trained.score(trained.dense_widths) == plain.score(plain.dense_widths)
    with torch.no_grad():
        torch.testing.assert_close(
            trained.prune(trained.dense_widths)(torch.ones(2, 1, 8, 8)), network(torch.ones(2, 1, 8, 8))
        )


@pytest.mark.parametrize("objective", ["cross_entropy", "agreement"])
def test_some_steps_repair_what_is_not_fitted(network: nn.Module, data: DataSplits, objective: str) -> None:
    errors = []
    for steps in (0, 20):
        problem = problem_of(network, data, ShortFineTuning(steps, batch=50), fidelity="magnitude", objective=objective)
        errors.append(problem.evaluate_widths(narrower(problem)[0]).error or 0.0)
    assert errors[1] < 0.8 * errors[0]


def test_labels_are_needed_only_by_objectives_that_read_them(network: nn.Module, data: DataSplits) -> None:
    boxes = Split(data.calibration.images, np.zeros((len(data.calibration), 4), dtype=np.float32), "boxes")
    others = DataSplits(boxes, data.search, data.test, data.preprocessing, "digest")
    problem = problem_of(network, others, objective="agreement")
    assert problem.evaluate_widths(narrower(problem)[0]).error is not None
    with pytest.raises(ValueError, match=re.escape("fine-tuning: expected class indices as labels, integers (n,)")):
        problem_of(network, others, objective="top1")


def test_faulty_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="finetune: steps: expected at least 0, got -1"):
        ShortFineTuning(steps=-1)
    with pytest.raises(
        ValueError, match=r"finetune: expected a learning rate above 0 and a batch of at least 2, got 0"
    ):
        ShortFineTuning(learning_rate=0)
