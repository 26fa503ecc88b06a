"""Reuse of activations changes no number: scores with it are those from scratch, bit by bit."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amc_env import zoo
from amc_env.evaluation import NetworkProblem
from amc_env.problem import Widths
from amc_env.pruning.reuse import ActivationReuse
from amc_env.settings import EvaluationSettings, PruningSettings
from tests.amc_env.pruning.small_networks import (
    SMALL_KNOWN,
    PaddedFirst,
    Residual,
    Twice,
    random_splits,
    randomised,
)

FIDELITIES: dict[str, dict[str, Any]] = {
    "magnitude": {"recalibrate_batchnorm": False},
    "magnitude, recalibrated": {},
    "prefix": {"fidelity": "prefix", "recalibrate_batchnorm": False},
    "prefix, recalibrated": {"fidelity": "prefix"},
    "sequential": {"fidelity": "sequential", "images": 40, "rows": 200},
}
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "digits": zoo.digits_network,
    "residual": lambda: Residual(width=8, inplace=True),
    "residual, downsampled": lambda: Residual(width=8, downsample=True, inplace=True),
    "residual without norms": lambda: Residual(width=8, norms=False),
    "called twice": Twice,
    "padded first": PaddedFirst,
    **SMALL_KNOWN,
}
CASES = [(name, fidelity) for name in NETWORKS for fidelity in FIDELITIES
         if name not in SMALL_KNOWN or "recalibrated" in fidelity or fidelity == "sequential"]  # fmt: skip


@pytest.fixture(autouse=True)
def _several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amc_env.image_problem._SCORED_BATCH", (1, 20))
    monkeypatch.setattr("amc_env.image_problem._CALIBRATION_BATCH", (1, 30))


def make_problem(name: str, settings: dict[str, Any]) -> NetworkProblem:
    channels, size = (1 if name == "digits" else 3), (32 if name in SMALL_KNOWN else 8)
    options = {"objective": "cross_entropy"} | settings
    return NetworkProblem(
        randomised(NETWORKS[name]()),
        random_splits(channels=channels, size=size, calibration=60, search=40),
        budget={},
        reward="error_macs",
        settings=PruningSettings(round_to=2),
        evaluation=EvaluationSettings(**options),
    )


def neighbours(problem: NetworkProblem, count: int, seed: int) -> list[Widths]:
    """Plans of which each differs from one before (or from the dense network) in few decisions."""
    rng = np.random.default_rng(seed)
    plans = [problem.dense_widths]
    while len(plans) < count:
        widths = list(plans[-1] if rng.random() < 0.7 else plans[rng.integers(len(plans))])
        for index in rng.choice(len(widths), size=rng.integers(0, 3)):
            widths[index] = int(rng.choice(problem.decisions[index].choices))
        plans.append(tuple(widths))
    return plans


def from_scratch(problem: NetworkProblem, widths: Widths) -> Any:
    problem.forget_activations()
    return problem.score(widths)


@pytest.mark.parametrize(("name", "fidelity"), CASES)
def test_scores_are_those_from_scratch(name: str, fidelity: str) -> None:
    problem, reference = make_problem(name, FIDELITIES[fidelity]), make_problem(name, FIDELITIES[fidelity])
    expected: dict[Widths, Any] = {}
    for widths in neighbours(problem, 7 if name in SMALL_KNOWN else 15, seed=len(name) + len(fidelity)):
        if widths not in expected:
            expected[widths] = from_scratch(reference, widths)
        assert problem.score(widths) == expected[widths], widths


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_the_dense_plan_among_others(fidelity: str) -> None:
    """It is not repaired, so what it computes is nothing to build on."""
    problem, reference = make_problem("digits", FIDELITIES[fidelity]), make_problem("digits", FIDELITIES[fidelity])
    dense = problem.dense_widths
    last = [(*dense[:-1], width) for width in problem.decisions[-1].choices[:4]]
    for widths in (last[0], dense, last[1], last[2], dense, last[3]):
        assert problem.score(widths) == from_scratch(reference, widths), widths


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_after_plans_that_were_stopped_early(fidelity: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was not computed of a stopped plan must not be missing later."""
    settings = FIDELITIES[fidelity]
    problem, reference = make_problem("digits", settings | {"stop_early": True}), make_problem("digits", settings)
    for index, width in enumerate(problem.decisions[-1].choices[:4]):
        widths = (*problem.smallest_widths[:-1], width)
        hopeless_error = 0.0 if index == 1 else math.inf  # the second is stopped after the first batch
        monkeypatch.setattr(problem, "hopeless_error", lambda _, limit=hopeless_error: limit)
        score = problem.score(widths)
        if index == 1:
            assert score.fraction == 0.5
        else:
            assert score == from_scratch(reference, widths)


@pytest.mark.parametrize("most_bytes", [0, 30_000])
def test_a_limit_of_memory_changes_no_score(most_bytes: int) -> None:
    problem = make_problem("digits", FIDELITIES["sequential"])
    reference = make_problem("digits", FIDELITIES["sequential"])
    problem._activations.most_bytes = most_bytes
    for widths in neighbours(problem, 12, seed=5):
        assert problem.score(widths) == from_scratch(reference, widths)
    if most_bytes == 0:
        assert problem._activations._kept is None


def small_network() -> nn.Sequential:
    layers = [nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1)]
    return nn.Sequential(*layers).eval()


def run(reuse: ActivationReuse, network: nn.Module, widths: Widths, images: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        part = reuse.begin(widths)
        output: torch.Tensor = part.forward(network, "score")(images)
        part.end()
    return output


def test_what_is_before_the_first_change_is_not_computed() -> None:
    network, images = small_network(), torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    reuse = ActivationReuse(["0", "2", "4"], [0, 1, 2])
    expected = network(images).detach()
    run(reuse, network, (2, 2, 2), images)
    assert reuse.begin((2, 2, 1)).first_layer is None  # nothing was kept: nothing was shared yet
    reuse = ActivationReuse(["0", "2", "4"], [0, 1, 2])
    run(reuse, network, (2, 2, 2), images)
    run(reuse, network, (2, 2, 1), images)
    nn.init.constant_(network.get_parameter("0.weight"), torch.nan)  # would show in whatever is computed from it
    nn.init.constant_(network.get_parameter("2.weight"), torch.nan)
    assert torch.equal(run(reuse, network, (2, 2, 3), images), expected)
    assert reuse.begin((2, 2, 4)).first_layer == "4"
    assert reuse.begin((1, 2, 4)).first_layer is None


def test_only_one_prefix_is_kept() -> None:
    network, images = small_network(), torch.ones(3, 2, 4, 4)
    reuse = ActivationReuse(["0", "2", "4"], [0, 1, 2])
    run(reuse, network, (2, 2, 2), images)
    run(reuse, network, (2, 2, 1), images)
    kept = reuse._kept
    assert kept is not None
    assert kept.nbytes == 3 * 2 * 4 * 4 * 4  # the input of the last layer alone
    gone = weakref.ref(kept)
    run(reuse, network, (2, 1, 1), images)
    del kept
    gc.collect()
    assert gone() is None


def test_an_order_of_decisions_that_is_not_that_of_the_layers() -> None:
    network, images = small_network(), torch.ones(3, 2, 4, 4)
    reuse = ActivationReuse(["0", "2", "4"], [2, 0, 1])  # the third decision comes first in the network
    for widths in ((1, 1, 1), (2, 1, 1), (3, 1, 1)):
        run(reuse, network, widths, images)
    assert reuse.begin((4, 1, 1)).first_layer == "2"
    assert reuse.begin((4, 1, 2)).first_layer is None


class Overwritten(nn.Module):
    """After the cut, tensors from before it are overwritten, one of them through a view of the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 2, 1)
        self.second = nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        half = x[:, :, ::2]
        y = self.second(x)
        x.add_(1.0)
        half.mul_(3.0)
        F.relu(y, inplace=True)
        total: torch.Tensor = y.sum() + (x * x).sum() + half.sum()
        return total


def test_tensors_that_are_overwritten_after_the_cut_come_back_as_they_were() -> None:
    network, images = Overwritten().eval(), torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(images)
    reuse = ActivationReuse(["first", "second"], [0, 1])
    for width in range(5):
        assert torch.equal(run(reuse, network, (2, width), images), expected), width


def test_an_evaluation_that_fails_leaves_nothing_behind() -> None:
    problem = make_problem("digits", FIDELITIES["magnitude"])
    dense = problem.dense_widths
    first, second, third = ((*dense[:-1], width) for width in problem.decisions[-1].choices[:3])
    expected = problem.score(first), problem.score(second), problem.score(third)
    problem.forget_activations()
    assert problem.score(first) == expected[0]
    objective, problem.objective = problem.objective, None  # type: ignore[assignment]
    with pytest.raises(AttributeError):
        problem.score(second)
    problem.objective = objective
    assert (problem.score(second), problem.score(third)) == expected[1:]
