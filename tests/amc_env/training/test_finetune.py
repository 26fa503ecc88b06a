"""Fine-tuning: the loop it is, exact resumption, what it repairs and what it refuses."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from amc_env import zoo
from amc_env.datasets import SplitSizes, load_splits, load_training
from amc_env.evaluation import NetworkProblem
from amc_env.settings import EvaluationSettings, PruningSettings
from amc_env.splits import DataSplits, Preprocessing, Split
from amc_env.training.finetune import DivergedError, TrainingProgress, fine_tune
from amc_env.training.recipe import FineTuneSettings
from amc_env.weights import weights_digest

SIZES = SplitSizes(calibration=200, search=300, test=500)
PIXELS = Preprocessing(scale=16.0)
RECIPE = FineTuneSettings(epochs=3, batch=32, learning_rate=0.02, crop_padding=1)


@pytest.fixture(scope="module")
def training() -> Split:
    return load_training("digits", SIZES, images=200)


@pytest.fixture(scope="module")
def data() -> DataSplits:
    return load_splits("digits", SIZES)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    network = zoo.digits_network()
    zoo.load_weights(network, zoo.digits_weights(tmp_path_factory.mktemp("cache")))
    return network.eval()


def small(*, dropout: float = 0.0) -> nn.Module:
    """Untrained, with the same weights always."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2, bias=False),
            nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(128, 10),
        )  # fmt: skip


def interrupt_at(step: int) -> Callable[[TrainingProgress], None]:
    def stop(progress: TrainingProgress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return stop


def test_it_is_the_loop_that_everybody_writes(training: Split) -> None:
    settings = FineTuneSettings(
        steps=4, batch=200, learning_rate=0.1, weight_decay=0.01, schedule="step", label_smoothing=0.1, crop_padding=0
    )
    network, reference = small(), small()
    log = fine_tune(network, training, PIXELS, settings)
    images, labels = PIXELS(training.images), torch.from_numpy(training.labels)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    losses = []
    for rate in (0.1, 0.1, 0.01, 0.001):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = F.cross_entropy(reference(images), labels, label_smoothing=0.1)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert log.steps == 4
    assert log.losses == pytest.approx(losses, rel=1e-4)
    assert not network.training
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_distillation_needs_no_labels(training: Split, dense: nn.Module) -> None:
    unlabelled = Split(training.images, np.zeros((len(training), 2), dtype=np.float32), "boxes")
    network, settings = small(), replace(RECIPE, distillation=1.0, temperature=2.0, epochs=10, learning_rate=0.05)
    images = PIXELS(training.images)
    taught = (dense(images) / 2.0).softmax(dim=1).detach()

    def divergence() -> float:
        with torch.no_grad():
            return float(4.0 * F.kl_div((network.eval()(images) / 2.0).log_softmax(1), taught, reduction="batchmean"))

    before = divergence()
    log = fine_tune(network, unlabelled, PIXELS, settings, teacher=dense)
    assert divergence() < before / 3
    assert log.losses[-1] < log.losses[0] / 2


def test_labels_and_teacher_are_weighed(training: Split, dense: nn.Module) -> None:
    settings = FineTuneSettings(steps=1, batch=200, distillation=0.25, temperature=2.0, crop_padding=0)
    log = fine_tune(small(), training, PIXELS, settings, teacher=dense)
    with torch.no_grad():
        outputs, taught = small()(PIXELS(training.images)), dense(PIXELS(training.images))
        soft = F.kl_div((outputs / 2).log_softmax(1), (taught / 2).softmax(1), reduction="batchmean")
        hard = F.cross_entropy(outputs, torch.from_numpy(training.labels))
    assert log.losses == pytest.approx([float(0.75 * hard + 0.25 * 4 * soft)], rel=1e-4)


def blocks(width: int) -> nn.Sequential:
    """Of four blocks, in one of which others lie: of the width depends what the first gives, the last gives logits."""
    with torch.random.fork_rng():
        torch.manual_seed(width)
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(1, width, 3)),
            nn.Sequential(
                nn.Sequential(nn.ReLU(), nn.Conv2d(width, 4, 3)), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 3, 3))
            ),
            nn.Sequential(nn.Flatten(), nn.Linear(12, 10)),
        )


def test_hints_are_what_blocks_of_the_same_shape_are_apart_by(training: Split) -> None:
    pruned, teacher = blocks(5), blocks(8)
    settings = FineTuneSettings(steps=1, batch=200, hints=7.0, crop_padding=0)
    log = fine_tune(pruned, training, PIXELS, settings, teacher=teacher)
    with torch.no_grad():
        images, expected = PIXELS(training.images), 0.0
        learnt, taught = blocks(5)[0](images), teacher[0](images)
        for block in ("1.0", "1.1"):
            learnt, taught = blocks(5).get_submodule(block)(learnt), teacher.get_submodule(block)(taught)
            expected += 7.0 / 2 * float((learnt - taught).square().sum() / taught.square().sum())
        expected += float(F.cross_entropy(blocks(5)(images), torch.from_numpy(training.labels)))
    assert log.losses == pytest.approx([expected], rel=1e-4)
    assert not [module for network in (pruned, teacher) for module in network.modules() if module._forward_hooks]
    assert weights_digest(teacher) == weights_digest(blocks(8))


def test_hints_are_of_the_channels_that_are_left(training: Split) -> None:
    pruned, teacher = blocks(5), blocks(8)
    settings = FineTuneSettings(steps=1, batch=200, hints=7.0, crop_padding=0)
    left = {"0": (1, [0, 2, 3, 5, 7])}
    some = fine_tune(pruned, training, PIXELS, settings, teacher=teacher, kept_of_blocks=left)
    with torch.no_grad():
        images = PIXELS(training.images)
        taught = teacher[0](images)[:, left["0"][1]]
        first = float((blocks(5)[0](images) - taught).square().sum() / taught.square().sum())
    others = fine_tune(blocks(5), training, PIXELS, settings, teacher=teacher)
    hard = fine_tune(blocks(5), training, PIXELS, replace(settings, hints=0.0))
    expected = hard.losses[0] + (7.0 * first + 2 * (others.losses[0] - hard.losses[0])) / 3
    assert some.losses == pytest.approx([expected], rel=1e-4)


def test_hints_bring_blocks_nearer_to_the_teacher(training: Split) -> None:
    settings = FineTuneSettings(epochs=4, batch=32, learning_rate=0.002, distillation=1.0)
    apart = []
    for hints in (0.0, 5.0):
        pruned, teacher = blocks(5), blocks(8)
        fine_tune(pruned, training, PIXELS, replace(settings, hints=hints), teacher=teacher)
        with torch.no_grad():
            images = PIXELS(training.images)
            apart.append(float((pruned[:2](images) - teacher[:2](images)).square().sum()))
    assert apart[1] < apart[0] / 2


class Recorded(nn.Module):
    """A linear classifier that keeps its inputs."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(pixels, classes)
        self.inputs: list[torch.Tensor] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.inputs.append(images.flatten(1))
        outputs: torch.Tensor = self.layer(self.inputs[-1])
        return outputs


@torch.no_grad()
def test_mixup_blends_images_and_labels_alike() -> None:
    images = 255 * np.eye(8, 16, dtype=np.uint8).reshape(8, 1, 4, 4)  # of class i, pixel i alone is white
    network, teacher = Recorded(16, 8), Recorded(16, 8)
    settings = FineTuneSettings(epochs=6, batch=8, mixup=1.0, distillation=0.5, temperature=2.0, learning_rate=1e-9)
    with torch.enable_grad():
        log = fine_tune(network, Split(images, np.arange(8), "one"), Preprocessing(), settings, teacher=teacher)
    shares = set()
    for seen, asked, loss in zip(network.inputs, teacher.inputs, log.losses, strict=True):
        assert torch.equal(seen, asked)
        assert seen.sum(dim=1) == pytest.approx(1.0)
        values = {round(value, 5) for value in seen.flatten().tolist()} - {0.0, 1.0}
        assert len(values) == 2  # one share for all of a batch, and what it leaves
        shares.add(max(values))
        hard = -(seen[:, :8] * network.layer(seen).log_softmax(1)).sum(1).mean()
        taught, learnt = (classifier.layer(seen) / 2 for classifier in (teacher, network))
        soft = F.kl_div(learnt.log_softmax(1), taught.softmax(1), reduction="batchmean")
        assert loss == pytest.approx(float(0.5 * hard + 0.5 * 4 * soft), rel=1e-4)
    assert len(shares) == 6


def test_the_same_arguments_give_the_same_weights_and_no_global_generator_moves(training: Split) -> None:
    state = torch.get_rng_state()
    digests = []
    for seed in (0, 0, 1):
        network = small(dropout=0.3)
        fine_tune(network, training, PIXELS, replace(RECIPE, seed=seed))
        digests.append(weights_digest(network))
        torch.rand(3)  # what others draw means nothing
        torch.set_rng_state(state)
    assert digests[0] == digests[1] != digests[2]
    network = small(dropout=0.3)
    fine_tune(network, training, PIXELS, RECIPE)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("length", [{"epochs": 4}, {"epochs": None, "steps": 24}])
@pytest.mark.parametrize("stop", [1, 7, 10, 22, 24])
def test_resumption_is_exact(
    training: Split, dense: nn.Module, tmp_path: Path, length: dict[str, Any], stop: int
) -> None:
    settings = replace(RECIPE, distillation=0.5, **length)  # epochs of 7 steps
    whole, parts = small(dropout=0.3), small(dropout=0.3)
    expected = fine_tune(whole, training, PIXELS, settings, teacher=dense)
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        fine_tune(
            parts, training, PIXELS, settings, teacher=dense, checkpoint=checkpoint, on_progress=interrupt_at(stop)
        )
    assert checkpoint.exists() is (stop > 7)
    again, seen = small(dropout=0.3), list[TrainingProgress]()
    log = fine_tune(again, training, PIXELS, settings, teacher=dense, checkpoint=checkpoint, on_progress=seen.append)
    assert seen[0].step == (stop - 1) // 7 * 7 + 1
    assert weights_digest(again) == weights_digest(whole)
    assert log.losses == expected.losses
    assert log.steps == expected.steps == seen[-1].step == seen[-1].steps


def test_a_finished_training_is_not_repeated(training: Split, tmp_path: Path) -> None:
    first, second = small(), small()
    fine_tune(first, training, PIXELS, RECIPE, checkpoint=tmp_path / "c.pt")
    fine_tune(second, training, PIXELS, RECIPE, checkpoint=tmp_path / "c.pt", on_progress=interrupt_at(1))
    assert weights_digest(first) == weights_digest(second)
    assert not second.training


def test_a_checkpoint_of_another_training_is_refused(training: Split, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    fine_tune(small(), training, PIXELS, RECIPE, checkpoint=path)
    message = re.escape(f"fine-tuning: {path} is of another training: network, images or recipe are not the same; del")
    fewer = Split(training.images[:100], training.labels[:100], "fewer")
    for network, images, settings in (
        (small(), training, replace(RECIPE, seed=1)),
        (small(), fewer, RECIPE),
        (small().requires_grad_(requires_grad=True).to(torch.float64).to(torch.float32), training, RECIPE),
    ):
        if images is training and settings is RECIPE:
            next(network.parameters()).data.add_(1.0)
        with pytest.raises(ValueError, match=message):
            fine_tune(network, images, PIXELS, settings, checkpoint=path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=re.escape(f"fine-tuning: {path} is damaged; delete it, the training then")):
        fine_tune(small(), training, PIXELS, RECIPE, checkpoint=path)


def test_a_diverging_training_stops(training: Split) -> None:
    message = r"fine-tuning diverged: the loss is (nan|inf) at step \d+ of 21; lower the learning rate \(1e\+30\) or"
    with pytest.raises(DivergedError, match=message):
        fine_tune(small(), training, PIXELS, replace(RECIPE, learning_rate=1e30))


def test_what_cannot_be_trained_is_refused(training: Split) -> None:
    images = training.images
    for labels, got in (
        (np.zeros((200, 4), dtype=np.float32), "float32 (200, 4) of at least 0.0"),
        (training.labels - 1, "int64 (200,) of at least -1"),
    ):
        with pytest.raises(
            ValueError,
            match=re.escape(
                f"expected class indices as labels, integers (n,) of at least 0, got {got}; take distillation: 1"
            ),
        ):
            fine_tune(small(), Split(images, labels, "bad"), PIXELS, RECIPE)
    with pytest.raises(ValueError, match=re.escape("expected labels in 0..9, the network's outputs, got ")):
        fine_tune(small(), Split(images, training.labels + 10, "bad"), PIXELS, RECIPE)
    for settings in (replace(RECIPE, distillation=0.5), replace(RECIPE, hints=20.0)):
        with pytest.raises(ValueError, match="fine-tuning: distillation and hints need a teacher, got None"):
            fine_tune(small(), training, PIXELS, settings)
    with pytest.raises(
        ValueError, match="fine-tuning: hints need a block, a module made of modules, that returns channels"
    ):
        fine_tune(small(), training, PIXELS, replace(RECIPE, hints=20.0), teacher=small())
    with pytest.raises(ValueError, match="fine-tuning: no parameter of the network requires gradients"):
        fine_tune(small().requires_grad_(requires_grad=False), training, PIXELS, RECIPE)
    features = nn.Conv2d(1, 10, 3)
    with pytest.raises(
        ValueError, match=re.escape("expected the network to return logits (n, classes), got (29, 10, ")
    ):
        fine_tune(features, training, PIXELS, RECIPE)


def test_training_repairs_a_network_pruned_hard(dense: nn.Module, data: DataSplits) -> None:
    problem = NetworkProblem(
        copy.deepcopy(dense),
        data,
        budget={"macs": "30%"},
        settings=PruningSettings(round_to=2, criterion="l1"),
        evaluation=EvaluationSettings(fidelity="magnitude"),
    )
    widths = problem.widths(problem.fit_to_budget(np.full(len(problem.decisions), 0.5)))
    network = problem.prune(widths)
    before = problem.measure_network(network, "test").accuracy or 0.0
    fine_tune(network, load_training("digits", SIZES), PIXELS, replace(RECIPE, epochs=4, learning_rate=0.05))
    after = problem.measure_network(network, "test").accuracy or 0.0
    assert before < 0.85
    assert after > before + 0.1
    assert sum(parameter.numel() * 4 for parameter in network.parameters()) == problem.costs(widths)["size"]
