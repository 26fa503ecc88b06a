#!/usr/bin/env python3
r"""LeNet-300-100 on MNIST: accuracy against sparsity of one-shot and iterative pruning, and of lottery tickets.

    python scripts/compare_pruning_schedules.py --data mnist --work lenet-schedules --out docs/results

About twelve minutes of one core. Stopped, the same command goes on; `--work` keeps what is done. The same
options give the same networks on one machine with one number of threads.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from _eie_page import Plot, image
from torch import nn

from amc_env import zoo
from amc_env.datasets import SplitSizes, load_splits, load_training
from amc_env.splits import DataSplits, Split
from amc_env.training.finetune import fine_tune
from amc_env.training.lottery import Lottery, LotterySettings, TicketRecord, find_tickets
from amc_env.training.recipe import FineTuneSettings
from amc_env.training.sparsify import Sparsify, SparsifySettings
from hw.files import write_atomically
from hw.torch_threads import torch_threads
from search.figures import percent
from search.lottery_report import LeftCurve, LeftPoint, left_plot, left_table

NETWORK = "lenet-300-100"
LAYERS = ("fc1", "fc2", "fc3")
TIMES = 9.0  # fewer weights, of the claim; a round's share is so that three rounds make it
RATIO = 1.0 - TIMES ** (-1 / 3)
LOSSLESS = 0.001  # an accuracy less by this fraction counts as no loss
RECIPE = FineTuneSettings(epochs=3, batch=256, learning_rate=0.1, weight_decay=1e-4, crop_padding=0, flip=False)
TUNING = replace(RECIPE, learning_rate=0.05)
SCHEDULES = {
    "one-shot": SparsifySettings(schedule="one_shot"),
    "iterative": SparsifySettings(schedule="iterative", decay="zhu_gupta", end=0.7, frequency=10),
    "rounds": SparsifySettings(schedule="one_shot"),  # of the round before
}
ARMS = {
    "ticket": "ticket",
    "its mask, new weights": "reinitialised",
    "random mask, its weights": "random_mask",
}

_CAPTION = """
Mean test accuracy of {seeds} seeds, in brackets from the worst to the best; 9,999 test images. All methods remove
weights by one threshold on magnitude over all layers, and every training has {epochs} epochs of 60,000 images. Three
begin from the trained network: *one-shot* removes all weights before the first step; *iterative* in updates over the
first 70 % of the steps (every 10 steps, Zhu and Gupta's decay); *rounds* prunes and trains again from level to level,
so that it has trained as many times as long as there are levels above. In their line of 100 %: the dense network after
the same fine-tuning, once. A *ticket* begins from the initial weights under the mask that rounds of training and
pruning left, each of which removes {ratio} of what is left; beside it the same mask on new initial weights, and a
random mask with as many weights in each layer on the ticket's.
"""


@dataclass(frozen=True)
class Figures:
    """Accuracies of each seed.

    Attributes:
        dense, tuned: of the dense network, and after its fine-tuning.
        long: of one-shot pruning to the claim's number of weights, trained as long as the rounds that lead there.
        curves: of everything else.
    """

    dense: tuple[float, ...]
    tuned: tuple[float, ...]
    long: tuple[float, ...]
    curves: tuple[LeftCurve, ...]


def build(seed: int) -> nn.Module:
    """Untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return zoo.lenet(NETWORK)


def tickets_of(seed: int, rounds: int, training: Split, data: DataSplits, folder: Path) -> list[TicketRecord]:
    """The dense network, and tickets with their controls."""
    settings = LotterySettings(RECIPE, rounds=rounds, ratio=RATIO, arms=("ticket", "reinitialised", "random_mask"))
    lottery = Lottery(build, training, data.preprocessing, lambda network: {"test": accuracy(network, data)}, settings)
    return find_tickets(lottery, seed, folder)


@dataclass(frozen=True)
class Tuning:
    """Fine-tuning of a network from which all but so many weights are removed.

    Attributes:
        name: of the files.
        start: file of the weights that it begins with.
        schedule: None if nothing is removed.
        epochs: of training.
    """

    name: str
    start: str
    schedule: SparsifySettings | None
    epochs: int = 3


def tuned(tuning: Tuning, kept: int, training: Split, data: DataSplits, folder: Path) -> float:
    """The accuracy after it; kept on disk, with the network."""
    path = folder / f"{tuning.name}-{kept}.json"
    if not path.exists():
        network = zoo.lenet(NETWORK)
        zoo.load_weights(network, folder / tuning.start)
        plan = tuning.schedule
        sparsify = None if plan is None else Sparsify(plan, targets(network, kept), scope="global")
        fine_tune(network, training, data.preprocessing, replace(TUNING, epochs=tuning.epochs), sparsify=sparsify)
        if sparsify is not None:
            left = sum(int(torch.count_nonzero(network.get_parameter(f"{layer}.weight"))) for layer in LAYERS)
            if left > kept:
                raise SystemExit(f"{path.stem}: {left} weights are left, expected {kept}")
        zoo.save_weights(network, path.with_suffix(".pt"))
        write_atomically(path, json.dumps(accuracy(network, data)))
    return float(json.loads(path.read_text()))


def targets(network: nn.Module, kept: int) -> Mapping[str, int]:
    """Weights that stay, whose sum counts."""
    sizes = {layer: network.get_parameter(f"{layer}.weight").numel() for layer in LAYERS}
    shares = {layer: max(1, kept * size // sum(sizes.values())) for layer, size in sizes.items()}
    return shares | {"fc1": kept - shares["fc2"] - shares["fc3"]}


@torch.inference_mode()
def accuracy(network: nn.Module, data: DataSplits) -> float:
    """On the test split."""
    outputs = network.eval()(data.preprocessing(data.test.images))
    return float((outputs.argmax(1).numpy() == data.test.labels).mean())


def measure(options: argparse.Namespace, said: Callable[[str], None]) -> Figures:
    """Train all networks that are not there yet, one seed after the other."""
    sizes = SplitSizes(calibration=1, search=1, test=9999)
    training, data = load_training("mnist", sizes, path=options.data), load_splits("mnist", sizes, path=options.data)
    dense, after, long = [], [], []
    found: dict[tuple[str, int], list[float]] = {}
    lefts: list[float] = []
    for seed in range(options.seeds):
        folder = options.work / f"seed{seed}"
        records = tickets_of(seed, options.rounds, training, data, folder)
        lefts = [record.left for record in records if record.arm == "ticket"]
        dense.append(records[0].scores["test"])
        begun = "round0-dense.pt"
        after.append(tuned(Tuning("dense", begun, None), records[0].weights, training, data, folder))
        previous = begun
        for record in records[1:]:
            found.setdefault((record.arm, record.round), []).append(record.scores["test"])
            if record.arm == "ticket":
                kept = sum(record.kept.values())
                for name, schedule in SCHEDULES.items():
                    tuning = Tuning(name, previous if name == "rounds" else begun, schedule)
                    found.setdefault((name, record.round), []).append(tuned(tuning, kept, training, data, folder))
                previous = f"rounds-{kept}.pt"
                if record.round == 3:
                    tuning = Tuning("one-shot-long", begun, SCHEDULES["one-shot"], 3 * (RECIPE.epochs or 0))
                    long.append(tuned(tuning, kept, training, data, folder))
        said(f"seed {seed}: done")
    curves = tuple(
        LeftCurve(name, tuple(LeftPoint(left, tuple(found[arm, r])) for r, left in enumerate(lefts, start=1)))
        for name, arm in {**{name: name for name in SCHEDULES}, **ARMS}.items()
    )
    return Figures(tuple(dense), tuple(after), tuple(long), curves)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST in torchvision's layout")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is done")
    parser.add_argument("--out", type=Path, required=True, help="folder for lenet-schedules.md and .svg")
    parser.add_argument("--seeds", type=int, default=3, help="from 0 (default: 3)")
    parser.add_argument(
        "--rounds", type=int, default=7, help="at least 3, which make 9 times fewer weights (default: 7)"
    )
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.rounds < 3 or options.seeds < 1:
        parser.error("expected at least 3 rounds and 1 seed")
    with torch_threads(options.threads):
        figures = measure(options, lambda line: print(line, flush=True))  # noqa: T201
    page = render(figures, options)
    sys.stdout.write(page)
    dense = LeftPoint(1.0, figures.dense)
    names = tuple(curve.name for curve in figures.curves)
    plot = Plot("Accuracy against the weights left", names, left_plot(figures.curves, dense))
    write_atomically(options.out / "lenet-schedules.svg", image(plot))
    write_atomically(options.out / "lenet-schedules.md", page)


def render(figures: Figures, options: argparse.Namespace) -> str:
    """The page as Markdown."""
    dense = LeftPoint(1.0, figures.dense)
    headings, lines = left_table(figures.curves, dense)
    lines[0][2:5] = [left_table(figures.curves[:1], LeftPoint(1.0, figures.tuned))[1][0][2]] * 3
    table = [headings, ["---:"] * len(headings), *lines]
    return "\n".join(
        [
            "# LeNet-300-100 on MNIST: pruning schedules and lottery tickets",
            "",
            "![Accuracy against the weights left](lenet-schedules.svg)",
            "",
            " ".join(_CAPTION.format(seeds=options.seeds, epochs=RECIPE.epochs, ratio=percent(RATIO, 1)).split()),
            "",
            *("| " + " | ".join(line) + " |" for line in table),
            "",
            *claim(figures),
            "",
            "Made by:",
            "",
            f"    python scripts/compare_pruning_schedules.py --data mnist --work lenet-schedules --out docs/results "
            f"--seeds {options.seeds} --rounds {options.rounds}",
            "",
        ]
    )  # fmt: skip


def claim(figures: Figures) -> list[str]:
    """What became of it: iterative pruning comes to 9 times fewer weights without loss, one-shot does not."""
    said = [
        f"No loss: a mean accuracy at most {100 * LOSSLESS:g} points below that of the dense network, for tickets and "
        "their controls as it was trained, else after one fine-tuning."
    ]
    for curve in figures.curves:
        reference = figures.tuned if curve.name in SCHEDULES else figures.dense
        differences = [_difference(point, reference) for point in curve.points]
        lossless = 0
        while lossless < len(differences) and differences[lossless][0] >= -LOSSLESS:
            lossless += 1
        reached = f"{1 / curve.points[lossless - 1].left:.1f} times fewer weights" if lossless else "no level"
        at = next(i for i, point in enumerate(curve.points) if math.isclose(1 / point.left, TIMES, rel_tol=0.01))
        mean, error = differences[at]
        said.append(
            f"- {curve.name}: without loss to {reached}; at {TIMES:g} times fewer {100 * mean:+.2f} points (standard "
            f"error over the seeds {100 * error:.2f})."
        )
    mean, error = _difference(LeftPoint(1 / TIMES, figures.long), figures.tuned)
    said.append(
        f"- one-shot to {TIMES:g} times fewer weights, trained as long as the three rounds: {100 * mean:+.2f} points "
        f"(standard error {100 * error:.2f})."
    )
    return [said[0], "", *said[1:]]


def _difference(point: LeftPoint, reference: Sequence[float]) -> tuple[float, float]:
    """Mean over the seeds of what is gained on the same seed's reference, and its standard error."""
    gains = np.array(point.accuracies) - np.array(reference)
    return float(gains.mean()), float(gains.std(ddof=1) / math.sqrt(len(gains))) if len(gains) > 1 else math.nan


if __name__ == "__main__":
    main()
