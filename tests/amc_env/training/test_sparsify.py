"""Masks that tighten during a training: counts reached exactly, only shrinking, zeros for good, resumed exactly."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from amc_env.datasets import SplitSizes, load_training
from amc_env.pruning.pattern import hold_pattern
from amc_env.pruning.patterns import parse_pattern
from amc_env.splits import Preprocessing, Split
from amc_env.training.finetune import TrainingLog, TrainingProgress, fine_tune
from amc_env.training.recipe import FineTuneSettings
from amc_env.training.sparsify import Sparsify, SparsifySettings, even_targets, global_masks
from amc_env.weights import weights_digest

PIXELS = Preprocessing(scale=16.0)
LAYERS = ("0", "3", "7")
RECIPE = FineTuneSettings(epochs=4, batch=32, learning_rate=0.05, weight_decay=0.01, crop_padding=1)  # 28 steps
SETTINGS = SparsifySettings(start=0.1, end=0.8, frequency=5)  # updates at 2, 7, 12, 17 and 22
Masks = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def training() -> Split:
    return load_training("digits", SplitSizes(calibration=200, search=300, test=500), images=200)


def small() -> nn.Module:
    """Untrained, with the same weights always."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False),
            nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 12),
        )  # fmt: skip


def nonzeros(network: nn.Module, layers: tuple[str, ...] = LAYERS) -> Masks:
    return {name: network.get_parameter(f"{name}.weight").detach() != 0 for name in layers}


def plan(
    sparsity: float = 0.75, pattern: str = "fine_grained", layers: tuple[str, ...] = LAYERS, **settings: Any
) -> Sparsify:
    return Sparsify(replace(SETTINGS, **settings), even_targets(small(), layers, sparsity, pattern), pattern)


def train(
    training: Split, sparsify: Sparsify, recipe: FineTuneSettings = RECIPE
) -> tuple[nn.Module, TrainingLog, list[Masks]]:
    """The network, the log, and which weights were not zero after each step."""
    network, seen = small(), list[Masks]()
    log = fine_tune(
        network, training, PIXELS, recipe, sparsify=sparsify,
        on_progress=lambda progress: seen.append(nonzeros(network)),
    )  # fmt: skip
    return network, log, [*seen, nonzeros(network)]


def assert_nested(seen: list[Masks]) -> None:
    for before, after in pairwise(seen):
        for name, mask in after.items():
            assert not (mask & ~before[name]).any()


@pytest.mark.parametrize("kind", ["iterative", "progressive"])
@pytest.mark.parametrize("pattern", ["fine_grained", "vector", "kernel", "4x1", "2:4", "n:4", "filter"])
def test_each_pattern_is_reached_exactly(training: Split, pattern: str, kind: Any) -> None:
    layers = LAYERS if pattern not in ("2:4", "n:4") else LAYERS[1:]  # the first has one input
    wanted = plan(0.5 if ":" in pattern else 0.75, pattern, layers, type=kind)
    network, log, seen = train(training, wanted)
    assert_nested(seen)
    for name, mask in nonzeros(network, layers).items():
        assert int(mask.sum()) == wanted.targets[name]
        scores = network.get_parameter(f"{name}.weight").detach().abs().numpy()
        assert np.array_equal(mask.numpy(), parse_pattern(pattern).mask(scores, wanted.targets[name]))
    if pattern == "2:4":
        groups = nonzeros(network)["3"].unfold(1, 4, 4)
        assert (groups.sum(dim=-1) == 2).all()
    steps, shares = zip(*log.sparsity, strict=True)
    parts = [update + part for update in (2, 7, 12, 17) for part in (2, 3, 4, 5)]
    assert list(steps) == ([2, 7, 12, 17, 22] if kind == "iterative" else parts)
    assert list(shares) == sorted(shares)
    total = sum(network.get_parameter(f"{name}.weight").numel() for name in layers)
    assert shares[-1] == 1.0 - sum(wanted.targets.values()) / total


def test_exp_halves_what_is_left_to_within_one_weight(training: Split) -> None:
    _, log, seen = train(training, plan(0.9375, layers=("3", "7")))
    seen = [{name: masks[name] for name in ("3", "7")} for masks in seen]
    sizes = {name: mask.numel() for name, mask in seen[0].items()}
    for update, (step, _) in enumerate(log.sparsity):
        # the masks of an update are seen after the next step
        for name, mask in seen[step].items():
            assert 0 <= int(mask.sum()) - sizes[name] / 2**update < 1


@pytest.mark.parametrize("recipe", [{}, {"nesterov": False}, {"nesterov": False, "momentum": 0.0}])
def test_what_is_gone_is_zero_bit_for_bit(training: Split, recipe: dict[str, Any]) -> None:
    wanted = plan(0.9, end=0.5)
    network, _, seen = train(training, wanted, replace(RECIPE, **recipe))
    assert all(torch.equal(seen[20][name], mask) for name, mask in seen[-1].items())  # 8 steps with all masks
    for name, mask in nonzeros(network).items():
        gone = network.get_parameter(f"{name}.weight").detach()[~mask]
        assert (gone.view(torch.int32) == 0).all()  # no negative zeros either


@pytest.mark.parametrize("recipe", [{}, {"nesterov": False}, {"nesterov": False, "momentum": 0.0}])
def test_a_locked_pattern_stays_through_training(training: Split, recipe: dict[str, Any]) -> None:
    network = small()
    with torch.no_grad():
        for name in LAYERS:
            weight = network.get_parameter(f"{name}.weight")
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.7] = 0.0
            hold_pattern(weight, shared=False)
    before, digest = nonzeros(network), weights_digest(network)
    fine_tune(network, training, PIXELS, replace(RECIPE, **recipe))
    assert weights_digest(network) != digest
    for name, mask in nonzeros(network).items():
        assert torch.equal(mask, before[name])
        assert (network.get_parameter(f"{name}.weight").detach()[~mask].view(torch.int32) == 0).all()


@pytest.mark.parametrize("scope", ["local", "global"])
def test_one_shot_before_the_first_step_is_what_torch_prunes(training: Split, scope: Any) -> None:
    targets = even_targets(small(), LAYERS, 0.8, "fine_grained")
    sparsify = Sparsify(SparsifySettings(schedule="one_shot"), targets, scope=scope)
    _, log, seen = train(training, sparsify)
    reference = small()
    modules = [(reference.get_submodule(name), "weight") for name in LAYERS]
    sizes = [reference.get_parameter(f"{name}.weight").numel() for name in LAYERS]
    if scope == "local":
        for (module, _), size, kept in zip(modules, sizes, targets.values(), strict=True):
            prune.l1_unstructured(module, "weight", amount=size - kept)  # type: ignore[no-untyped-call]
    else:
        prune.global_unstructured(modules, prune.L1Unstructured, amount=sum(sizes) - sum(targets.values()))
    for name, mask in seen[0].items():
        assert torch.equal(mask, reference.get_buffer(f"{name}.weight_mask").bool())
        assert torch.equal(mask, seen[-1][name])
    assert log.sparsity == ((0, 1.0 - sum(targets.values()) / sum(sizes)),)


def test_progressive_masks_grow_one_by_one_into_the_pattern(training: Split) -> None:
    wanted = plan(
        0.5, "filter", type="progressive", decay="linear", end=0.5, frequency=8, start=0.2
    )  # updates at 5, 13
    _, log, seen = train(training, wanted)
    assert [step for step, _ in log.sparsity] == [7, 9, 11, 13]
    for (step, share), quarter in zip(log.sparsity, (1, 2, 3, 4), strict=True):
        filters = seen[step]["3"].flatten(1)
        assert share == pytest.approx(0.5 * quarter / 4, abs=0.01)
        whole = filters.all(dim=1) | ~filters.any(dim=1)
        assert whole.all() == (quarter == 4)
        assert (whole | (filters.sum(dim=1) < 72)).sum() >= 4  # four filters are not touched
    assert int(seen[13]["3"].flatten(1).any(dim=1).sum()) == 4


@pytest.mark.parametrize(
    "changes",
    [{}, {"type": "progressive", "frequency": 9}, {"criterion": "snip_momentum"}, {"criterion": "snip", "images": 50}],
)
@pytest.mark.parametrize("stop", [9, 23])
def test_resumption_is_exact(training: Split, tmp_path: Path, changes: dict[str, Any], stop: int) -> None:
    wanted = plan(0.75, "4x1", ("3", "7"), **changes)  # epochs of 7 steps: 9 is the second step of the second
    whole, expected, _ = train(training, wanted)

    def interrupt(progress: TrainingProgress) -> None:
        if progress.step == stop:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "checkpoint.pt"
    options: dict[str, Any] = {"sparsify": wanted, "checkpoint": checkpoint}
    with pytest.raises(KeyboardInterrupt):
        fine_tune(small(), training, PIXELS, RECIPE, on_progress=interrupt, **options)
    again = small()
    log = fine_tune(again, training, PIXELS, RECIPE, **options)
    assert weights_digest(again) == weights_digest(whole)
    assert (log.losses, log.sparsity) == (expected.losses, expected.sparsity)
    with pytest.raises(ValueError, match="is of another training"):
        fine_tune(small(), training, PIXELS, RECIPE, sparsify=plan(0.5, "4x1", ("3", "7")), checkpoint=checkpoint)


@pytest.mark.parametrize("criterion", ["l1", "l2", "gradient", "snip", "snip_momentum", "taylor", "obd", "random"])
def test_each_criterion(training: Split, criterion: Any) -> None:
    wanted = plan(0.75, layers=("3", "7"), criterion=criterion, images=64)
    network, log, seen = train(training, wanted)
    assert_nested(seen)
    for name, mask in nonzeros(network, ("3", "7")).items():
        assert int(mask.sum()) == wanted.targets[name]
    assert np.isfinite(log.losses).all()


def test_a_network_with_zeros_goes_on_from_there(training: Split) -> None:
    network = small()
    weight = network.get_parameter("7.weight")
    zeros = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    with torch.no_grad():
        weight[zeros] = 0.0
    left = int((~zeros).sum())
    sparsify = Sparsify(replace(SETTINGS, start=0.0), {"7": weight.numel() // 8})
    log = fine_tune(network, training, PIXELS, RECIPE, sparsify=sparsify)
    assert log.sparsity[0][0] == 0
    assert log.sparsity[0][1] == pytest.approx(1.0 - left / weight.numel())
    assert not (nonzeros(network, ("7",))["7"] & zeros).any()


def test_one_threshold_over_two_layers() -> None:
    scores = {"a": np.array([[5.0, 1.0, 2.0, 0.5]]), "b": np.array([[3.0, 4.0, 0.1, 0.2], [0.3, 0.1, 6.0, 7.0]])}
    found = global_masks(scores, 6, parse_pattern("fine_grained"))
    assert found["a"].tolist() == [[True, False, True, False]]
    assert found["b"].tolist() == [[True, True, False, False], [False, False, True, True]]
    # units of a are one weight, those of b four (mean scores 1.825 and 3.35): 5, 3.35, 2, and 1.825 does not fit in 7
    found = global_masks({"a": scores["a"].T, "b": scores["b"]}, 7, parse_pattern("filter"))
    assert found["a"].reshape(-1).tolist() == [True, False, True, False]
    assert found["b"].all(axis=1).tolist() == [False, True]
    # of each layer one unit stays, whatever its score
    found = global_masks({"a": scores["a"] - 9.0, "b": scores["b"]}, 3, parse_pattern("fine_grained"))
    assert {name: int(mask.sum()) for name, mask in found.items()} == {"a": 1, "b": 2}


def test_mixed_precision_keeps_weights_in_float32_and_prunes_likewise(training: Split) -> None:
    recipe, wanted = replace(RECIPE, precision="bfloat16"), plan(0.75)
    network, log, _ = train(training, wanted, recipe)
    exact, float32_log, _ = train(training, wanted)
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    assert weights_digest(network) != weights_digest(exact)
    assert log.losses == pytest.approx(float32_log.losses, rel=0.05)
    assert {name: int(mask.sum()) for name, mask in nonzeros(network).items()} == wanted.targets


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SparsifySettings(start=0.5, end=0.5), "end: expected a share above the start of 0.5, got 0.5"),
        (lambda: SparsifySettings(end=1.5), "start, end: expected shares of the training in [0, 1], got 0.0 and 1.5"),
        (lambda: SparsifySettings(frequency=0), "frequency, images: expected at least 1, got 0 and 512"),
        (lambda: SparsifySettings(type="lock"), "type: expected one of iterative, progressive, got 'lock'"),  # type: ignore[arg-type]
        (lambda: SparsifySettings(schedule="one_shot", type="progressive"), "type: progressive grows from one update"),
        (lambda: SparsifySettings(criterion="bn_scale"), "criterion: expected one of l1, l2, gradient, snip, snip_mom"),
        (
            lambda: SparsifySettings(frequency=50).schedule_over(60),
            "frequency: 50 steps leave no second update between steps 0 and 42; take a smaller frequency, more steps",
        ),
        (lambda: even_targets(small(), LAYERS, 1.0, "filter"), "sparsity: expected a fraction in [0, 1), got 1.0"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("sparsify", "message"),
    [
        (Sparsify(SETTINGS, {"3": 5}, "4x1"), "layer '3' of shape (8, 8, 3, 3) cannot keep 5 weights in pattern 4x1"),
        (Sparsify(SETTINGS, {"0": 4}, "2:4"), "sparsify: layer '0': 2:4: expected inputs that 4 divides, got 1 inputs"),
        (Sparsify(SETTINGS, {}), "sparsify: expected targets of at least one layer, got none"),
        (Sparsify(SETTINGS, {"3": 288}, "2:4", "global"), "scope: pattern 2:4 says what each layer keeps; take"),
        (Sparsify(SETTINGS, {"3": 9}, scope="all"), "scope: expected one of local, global, got 'all'"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_targets_that_do_not_suit_the_network_are_refused(training: Split, sparsify: Sparsify, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        fine_tune(small(), training, PIXELS, RECIPE, sparsify=sparsify)
