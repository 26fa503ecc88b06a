#!/usr/bin/env python3
"""Train LeNet-300-100 or LeNet-5 on MNIST, in a minute or two on two cores, and write the weights as a state_dict.

    python scripts/train_lenet.py --network lenet-300-100 --data mnist --out lenet-300-100.pt

The same options give the same weights on one machine. `--data` is a folder in torchvision's layout; `--download`
fetches what is not there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from amc_env import zoo
from amc_env.datasets import SplitSizes, load_splits, load_training
from amc_env.lenet import LENETS
from amc_env.objectives import evaluate_objective, find_objective
from amc_env.training.finetune import TrainingProgress, fine_tune
from amc_env.training.recipe import FineTuneSettings


def main() -> None:
    """Train, measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=sorted(LENETS), default="lenet-300-100")
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST")
    parser.add_argument("--download", action="store_true", help="fetch MNIST into that folder")
    parser.add_argument("--out", type=Path, required=True, help="file of the weights")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    place = {"path": options.data, "download": options.download}
    sizes = SplitSizes(calibration=1, search=1, test=9999)
    training = load_training("mnist", sizes, **place)
    splits = load_splits("mnist", sizes, **place)
    torch.manual_seed(options.seed)
    network = zoo.lenet(options.network)
    recipe = FineTuneSettings(
        epochs=options.epochs, learning_rate=0.05, weight_decay=5e-4, crop_padding=2, flip=False, seed=options.seed
    )

    def report(progress: TrainingProgress) -> None:
        if progress.step % 500 == 0 or progress.step == progress.steps:
            print(f"step {progress.step} of {progress.steps}: loss {progress.loss:.4f}", flush=True)  # noqa: T201

    fine_tune(network, training, splits.preprocessing, recipe, on_progress=report)
    images, labels = splits.preprocessing(splits.test.images), splits.test.labels
    score = evaluate_objective(network, [(images, labels)], find_objective("top1"), None, total=len(labels))
    print(f"{options.network}: {score.accuracy:.2%} of {len(labels)} test images")  # noqa: T201
    zoo.save_weights(network, options.out)


if __name__ == "__main__":
    main()
