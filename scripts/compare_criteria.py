#!/usr/bin/env python3
r"""Criteria on single weights: ResNet-20 on CIFAR-10 at 50, 70 and 90 % sparsity, each layer alike or one threshold.

Of all weights of convolutions and of the last layer so many go at once: of each layer the same share ("local"), or all
below one threshold over the scores of all layers ("global"). Top-1 accuracy on test images is measured right after that
and after the same short fine-tuning with the zeros held. What was measured is kept in `--rows`, one JSON line each, and
not measured again; the page and its two drawings are written when all is there.

    python scripts/compare_criteria.py --cifar10 cifar10.npz --resnet20 cifar10_resnet20.pt \
        --rows criteria.jsonl --out docs/results
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import _eie_page as page
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from amc_env import zoo
from amc_env.datasets import SplitSizes, load_splits, load_training
from amc_env.objectives import evaluate_objective, find_objective
from amc_env.pruning.calibration import Calibration
from amc_env.pruning.consumers import find_layers
from amc_env.pruning.gradients import LabelledBatch
from amc_env.pruning.pattern import hold_pattern
from amc_env.pruning.patterns import FINE_GRAINED
from amc_env.pruning.saliency import weight_scores
from amc_env.pruning.trace import trace_channels
from amc_env.pruning.weight_levels import LevelSettings, WeightLevels
from amc_env.splits import Preprocessing, Split
from amc_env.training.finetune import fine_tune
from amc_env.training.recipe import FineTuneSettings
from amc_env.training.sparsify import global_masks
from hw.files import write_atomically

_CIFAR = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
#: l2 orders single weights as l1 does, bn_scale and apoz are of filters
_CRITERIA = ("l1", "gradient", "snip", "snip_momentum", "taylor", "obd", "obs", "random")
_SCOPES = ("local", "global")
_SPARSITIES = (0.5, 0.7, 0.9)
_BATCH = 50  # images of a batch of scores

Scores = Mapping[str, NDArray[np.float64]]
Masks = dict[str, NDArray[np.bool_]]


def masks_of(scores: Scores, sparsity: float, scope: str) -> Masks:
    """Which weights stay of each layer."""
    if scope == "local":
        return {name: FINE_GRAINED.mask(own, round(own.size * (1.0 - sparsity))) for name, own in scores.items()}
    kept = round(sum(own.size for own in scores.values()) * (1.0 - sparsity))
    return global_masks(scores, kept, FINE_GRAINED)


def scores_of(network: nn.Module, criterion: str, split: Split) -> Scores:
    """Of the weights of convolutions and linear layers, float64 of their shapes."""
    layers = find_layers(trace_channels(network, next(batches_of(split, 2))[0]))
    if criterion != "obs":
        batches = batches_of(split, _BATCH)
        found = weight_scores(network, list(layers), criterion, batches)  # type: ignore[arg-type]
        return {name: score.numpy() for name, score in found.items()}
    scores = {}
    with tempfile.TemporaryDirectory() as folder:
        calibration = Calibration(
            network,
            {layer.name: layer.columns for layer in layers.values()},
            lambda: (images for images, _ in batches_of(split, 250)),
            images=len(split),
            rows=30_000,
            folder=Path(folder),
        )
        for layer in layers.values():
            settings = LevelSettings("obs", fitted=False, codebook=None)
            levels = WeightLevels(network, layer, (1,), settings, calibration)
            own = np.empty(levels.dense.size)
            own[levels.order] = levels.removal_scores()
            scores[layer.name] = own.reshape(network.get_parameter(f"{layer.name}.weight").shape)
    return scores


def pruned(network: nn.Module, masks: Masks) -> nn.Module:
    """A copy with zeros that training keeps."""
    sparse: nn.Module = copy.deepcopy(network)
    for name, mask in masks.items():
        weight = sparse.get_parameter(f"{name}.weight")
        with torch.no_grad():
            weight.mul_(torch.from_numpy(mask))
        hold_pattern(weight, shared=False)
    return sparse


def batches_of(split: Split, size: int) -> Iterator[LabelledBatch]:
    """Images as the network sees them, and their labels."""
    for first in range(0, len(split), size):
        part = slice(first, first + size)
        images = _CIFAR(split.images[part]).contiguous(memory_format=torch.channels_last)
        yield images, torch.from_numpy(split.labels[part])


def accuracy_of(network: nn.Module, split: Split) -> float:
    """Top-1 on these images."""
    score = evaluate_objective(network, batches_of(split, 250), find_objective("top1"), None, total=len(split))
    if score.accuracy is None:
        raise ValueError("expected a classifier")
    return score.accuracy


def measure(network: nn.Module, scores: Scores, row: dict[str, Any], images: dict[str, Split], steps: int) -> None:
    """Fill in the accuracies of a row, and the sparsities of the layers that lost least and most."""
    masks = masks_of(scores, row["sparsity"], row["scope"])
    removed = [1.0 - float(mask.mean()) for mask in masks.values()]
    sparse = pruned(network, masks)
    row |= {"least": min(removed), "most": max(removed), "before": accuracy_of(sparse, images["test"])}
    fine_tune(sparse, images["training"], _CIFAR, FineTuneSettings(steps=steps, batch=64, learning_rate=0.01))
    row["after"] = accuracy_of(sparse, images["test"])


def written(rows: list[dict[str, Any]], dense: float, options: argparse.Namespace) -> str:
    """The page."""
    images = f"{options.test:,} test images"
    lines = [
        "# Criteria on single weights: ResNet-20 on CIFAR-10",
        "",
        f"Top-1 accuracy on {images} ({100 * dense:.1f} % dense; the standard error of a single figure is at most "
        f"{50 / options.test**0.5:.1f} points, less between rows, for the images are the same), right after the "
        f"removal and after {options.steps} steps of fine-tuning on 64 images each (SGD, learning rate 0.01, cosine, "
        f"zeros held). Scores on {options.calibration:,} training images, on which the loss of the trained network is "
        "near its least. One seed. The share is of all weights of the "
        "convolutions and the last layer; local: of each layer alike; global: by one threshold, and what the layers "
        "then lose. l2 orders single weights as l1 does; the weights that obs leaves are not fitted here, and its "
        "scores are relative to the variance of the layer's outputs.",
        "",
        "    python scripts/compare_criteria.py --cifar10 cifar10.npz --resnet20 cifar10_resnet20.pt \\",
        f"        --calibration {options.calibration} --test {options.test} --steps {options.steps} "
        "--rows criteria.jsonl --out docs/results",
        "",
    ]
    for sparsity in _SPARSITIES:
        lines += [
            f"## {sparsity:.0%} removed",
            "",
            "| criterion | local, before | local, after | global, before | global, after | layers lose, global |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for criterion in _CRITERIA:
            local, one = (next(row for row in rows if key(row) == (criterion, sparsity, scope)) for scope in _SCOPES)
            figures = [local["before"], local["after"], one["before"], one["after"]]
            cells = " | ".join(f"{100 * figure:.1f}" for figure in figures)
            lines.append(f"| {criterion} | {cells} | {100 * one['least']:.1f} to {100 * one['most']:.1f} % |")
        lines.append("")
    for scope in _SCOPES:
        lines.append(f"![after fine-tuning, {scope}](resnet20-criteria-{scope}.svg)")
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], scope: str) -> str:
    """Accuracy after fine-tuning, a group of bars for each sparsity."""
    series = [
        (criterion, [100 * row["after"] for row in rows if row["criterion"] == criterion and row["scope"] == scope])
        for criterion in _CRITERIA
    ]
    title = f"ResNet-20 on CIFAR-10 after the same fine-tuning, scope {scope}"
    names = [f"{sparsity:.0%}" for sparsity in _SPARSITIES]
    return page.image(page.bars_plot(title, "top-1 accuracy, %", names, series, x_name="weights removed"))


def key(row: Mapping[str, Any]) -> tuple[str, float, str]:
    """What tells a row from the others."""
    return row["criterion"], row["sparsity"], row["scope"]


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, help=".npz with training and test images and labels")
    parser.add_argument("--resnet20", type=Path, required=True, help="weights of the CIFAR-10 ResNet-20")
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines; what stands there is not measured again")
    parser.add_argument("--out", type=Path, required=True, help="folder of the page")
    parser.add_argument("--calibration", type=int, default=1000, help="images of the scores")
    parser.add_argument("--test", type=int, default=2000, help="test images")
    parser.add_argument("--steps", type=int, default=30, help="of fine-tuning, 64 images each")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sizes = SplitSizes(options.calibration, 1, options.test)
    splits = load_splits("npz", sizes, _CIFAR, path=options.cifar10)
    images = {"training": load_training("npz", sizes, path=options.cifar10), "test": splits.test}
    network = zoo.cifar_resnet(20)
    zoo.load_weights(network, options.resnet20)
    network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    lines = options.rows.read_text().splitlines() if options.rows.exists() else []
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    how = {name: getattr(options, name) for name in ("calibration", "test", "steps")}
    if other := next((row for row in rows if row.get("how") != how), None):
        parser.error(f"{options.rows}: measured with {other.get('how')}, not with {how}; give another --rows")
    for criterion in _CRITERIA:
        wanted = [(criterion, sparsity, scope) for sparsity in _SPARSITIES for scope in _SCOPES]
        missing = [each for each in wanted if each not in map(key, rows)]
        if not missing:
            continue
        scores = scores_of(network, criterion, splits.calibration)
        for _, sparsity, scope in missing:
            row: dict[str, Any] = {"criterion": criterion, "sparsity": sparsity, "scope": scope, "how": how}
            measure(network, scores, row, images, options.steps)
            rows.append(row)
            with options.rows.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(row, flush=True)  # noqa: T201
    rows.sort(key=lambda row: row["sparsity"])
    page_text = written(rows, accuracy_of(network, images["test"]), options)
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "resnet20-criteria.md", page_text)
    for scope in _SCOPES:
        write_atomically(options.out / f"resnet20-criteria-{scope}.svg", plot(rows, scope))


if __name__ == "__main__":
    main()
