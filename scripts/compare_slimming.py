#!/usr/bin/env python3
r"""Network slimming beside plain fine-tuning: ResNet-20 on CIFAR-10 at equal MACs and equally many training steps.

Slimming trains the network with an L1 penalty on the scales of its batch norms, removes the channels of the smallest
scales, whatever their layer, and fine-tunes. Plain fine-tuning removes the filters of the smallest L1 norm at once and
has all steps after that. Between them stand the same scales without the penalty, which tells what the penalty does, and
the L1 norm by one threshold (normalised by layer), which tells what the threshold does. The channels of the residual
sums stay. Each training keeps its state after each epoch and each finished arm its row in `--work`, so that a run that
was stopped goes on; the page is written when all is there.

    python scripts/compare_slimming.py --cifar10 cifar10.npz --resnet20 cifar10_resnet20.pt \
        --work slimming --out docs/results
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agents.base import Agent
from agents.global_ranking import GlobalRanking
from agents.uniform import Uniform
from amc_env import zoo
from amc_env.datasets import SplitSizes, load_splits, load_training
from amc_env.evaluation import NetworkProblem
from amc_env.pruning.criteria import Criterion
from amc_env.settings import EvaluationSettings, PruningSettings
from amc_env.splits import DataSplits, Preprocessing, Split
from amc_env.training.finetune import fine_tune
from amc_env.training.recipe import FineTuneSettings
from amc_env.training.regularizers import Regularizer
from hw.files import write_atomically

_CIFAR = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
_RESIDUAL_SUMS = ("conv1", "layer2.0.conv2", "layer3.0.conv2")
_BATCH = 128
_IMAGES_PER_EPOCH = 50 * _BATCH  # a checkpoint every 50 steps


@dataclass(frozen=True)
class Arm:
    """One way to a network of the budget.

    Attributes:
        name: in the table.
        penalised: whether the first half of the steps trains the dense network with the penalty, or without it; None:
            all steps come after the removal.
        criterion, agent: what is removed, and from which layers.
    """

    name: str
    penalised: bool | None
    criterion: Criterion
    agent: Agent


ARMS = (
    Arm("slimming: L1 on the scales, scales, one threshold", True, "bn_scale", GlobalRanking()),
    Arm("the same without the penalty", False, "bn_scale", GlobalRanking()),
    Arm("plain: L1 of filters, each layer alike", None, "l1", Uniform()),
    Arm("plain: L1 of filters, one threshold", None, "l1", GlobalRanking(normalised=True)),
)


class Comparison:
    """The images and settings that all arms share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        sizes = SplitSizes(options.calibration, 200, options.test)
        self.data: DataSplits = load_splits("npz", sizes, _CIFAR, path=options.cifar10)
        self.training: Split = load_training("npz", sizes, options.images, path=options.cifar10)

    def network(self) -> nn.Module:
        """The trained one."""
        network = zoo.cifar_resnet(20)
        zoo.load_weights(network, self.options.resnet20)
        return network

    def problem(self, network: nn.Module, criterion: Criterion = "l1") -> NetworkProblem:
        """Of its channels, those of the residual sums aside."""
        return NetworkProblem(
            copy.deepcopy(network),
            self.data,
            budget={"macs": self.options.budget},
            settings=PruningSettings(round_to=1, max_ratio=0.95, criterion=criterion, keep=_RESIDUAL_SUMS),
            evaluation=EvaluationSettings(fidelity="magnitude"),
        )

    def train(self, network: nn.Module, steps: int, name: str, penalty: Regularizer | None = None) -> None:
        """In place, from where an interrupted training was."""
        recipe = FineTuneSettings(steps=steps, batch=_BATCH, learning_rate=self.options.learning_rate)
        checkpoint = self.options.work / f"{name}.pt"
        fine_tune(network, self.training, _CIFAR, recipe, regularizer=penalty, checkpoint=checkpoint)

    def measure(self, arm: Arm, index: int) -> dict[str, Any]:
        """Train, remove, fine-tune; the accuracies on the test split."""
        network, half = self.network(), self.options.steps // 2
        if arm.penalised is not None:
            penalty = Regularizer("slimming", self.options.strength) if arm.penalised else None
            self.train(network, half, f"dense-{arm.penalised}", penalty)
        problem = self.problem(network, arm.criterion)
        found = arm.agent.search(problem, max_evaluations=1, seed=0, on_evaluation=lambda evaluation: None)
        if found is None:
            raise ValueError("expected a plan at the budget")
        dense = problem.measure(problem.dense_widths, "test").accuracy
        pruned = problem.prune(found.widths)
        removed = problem.measure_network(pruned, "test").accuracy
        self.train(pruned, self.options.steps - (0 if arm.penalised is None else half), f"pruned-{index}")
        return {
            "arm": arm.name,
            "macs": found.costs["macs"] / problem.dense_costs["macs"],
            "size": found.costs["size"] / problem.dense_costs["size"],
            "dense": dense,
            "removed": removed,
            "tuned": problem.measure_network(pruned, "test").accuracy,
            "widths": found.widths,
        }


def written(rows: list[dict[str, Any]], start: float, options: argparse.Namespace) -> str:
    """The page."""
    lines = [
        "# Network slimming beside plain fine-tuning: ResNet-20 on CIFAR-10",
        "",
        f"Channels are removed until {options.budget} of the MACs are left; those of the residual sums stay. Every arm "
        f"takes {options.steps} steps on {_BATCH} images in all (SGD, learning rate {options.learning_rate:g}, cosine; "
        f"{options.images:,} training images), the first two half of them before the removal, the others all after it. "
        f"The penalty is {options.strength:g} times the sum of abs(gamma). Batch norm statistics are renewed after the "
        f"removal. Top-1 on {options.test:,} test images ({100 * start:.1f} % before all; the standard error of a "
        f"figure is at most {50 / options.test**0.5:.1f} points, less between rows, for the "
        "images are the same). One seed.",
        "",
        "    python scripts/compare_slimming.py --cifar10 cifar10.npz --resnet20 cifar10_resnet20.pt \\",
        f"        --budget {options.budget} --steps {options.steps} --strength {options.strength:g} "
        f"--learning-rate {options.learning_rate:g} \\",
        f"        --images {options.images} --calibration {options.calibration} --test {options.test} "
        "--work slimming --out docs/results",
        "",
        "| arm | MACs | size | dense, when removed | right after | at the end |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        figures = [row[name] for name in ("macs", "size", "dense", "removed", "tuned")]
        lines.append(f"| {row['arm']} | " + " | ".join(f"{100 * figure:.1f} %" for figure in figures) + " |")
    lines += [
        "",
        "Differences from the paper (Liu et al., arXiv 1708.06519): the penalty acts on a trained network for a few "
        "hundred steps and is as much stronger, not on a training from scratch for 160 epochs; only channels inside "
        "the residual blocks go; the budget is on MACs, not a share of channels.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, help=".npz with training and test images and labels")
    parser.add_argument("--resnet20", type=Path, required=True, help="weights of the CIFAR-10 ResNet-20")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder of checkpoints and rows; of one set of options"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the page")
    parser.add_argument("--budget", default="50%", help="of the MACs")
    parser.add_argument("--steps", type=int, default=400, help="of training in each arm, 128 images each")
    parser.add_argument("--strength", type=float, default=0.02, help="of the penalty")
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--images", type=int, default=_IMAGES_PER_EPOCH, help="of training; one epoch is a checkpoint")
    parser.add_argument("--calibration", type=int, default=500, help="images of batch norm statistics")
    parser.add_argument("--test", type=int, default=2000, help="test images")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.work.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(options)
    rows = []
    for index, arm in enumerate(ARMS):
        kept = options.work / f"row-{index}.json"
        if not kept.exists():
            write_atomically(kept, json.dumps(comparison.measure(arm, index)))
        rows.append(json.loads(kept.read_text()))
        print(rows[-1], flush=True)  # noqa: T201
    problem = comparison.problem(comparison.network())
    start = problem.measure(problem.dense_widths, "test").accuracy or 0.0
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "network-slimming.md", written(rows, start, options))


if __name__ == "__main__":
    main()
