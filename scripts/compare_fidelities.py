#!/usr/bin/env python3
r"""What each fidelity says of the final accuracy: ResNet-56 on CIFAR-10 at half the MACs, random plans at the budget.

Every plan is scored by each fidelity (top-1 and agreement with the dense network on the search split), and its final
network on the test split: fitted sequentially on all calibration images, and then fine-tuned for a few steps on the
training images of the file. Printed are Spearman's rank correlations with both finals. For uniform ratios and for the
reconstruction allocation the top-1 accuracy over both splits is printed, of the network that each fidelity makes with
all calibration images. What was measured is kept in `--out`, one JSON line per plan, and not measured again.

    python scripts/compare_fidelities.py --cifar10 cifar10.npz --resnet56 resnet56.pt --out fidelities.jsonl
    python scripts/compare_fidelities.py --cifar10 cifar10.npz --resnet56 resnet56.pt --out accuracies.jsonl \
        --plans 0 --calibration 2000 --search 2000 --test 8000
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import _problems as problems
import numpy as np
import torch
from torch.nn import functional as F

from agents.allocation import allocate
from amc_env.datasets import SplitSizes
from amc_env.evaluation import NetworkProblem
from amc_env.image_problem import SplitName
from amc_env.problem import Widths
from amc_env.settings import EvaluationSettings
from search.rank_correlation import spearman

_SPLITS: tuple[SplitName, ...] = ("search", "test")
_FEW_IMAGES = "sequential, 50 images"
_FIDELITIES = {
    "magnitude": EvaluationSettings(fidelity="magnitude", recalibrate_batchnorm=False),
    "magnitude + recalibration": EvaluationSettings(fidelity="magnitude", recalibrate_batchnorm=True),
    "prefix": EvaluationSettings(fidelity="prefix", recalibrate_batchnorm=False),
    "prefix + recalibration": EvaluationSettings(fidelity="prefix", recalibrate_batchnorm=True),
    _FEW_IMAGES: EvaluationSettings(fidelity="sequential", images=50, rows=2000),
    "sequential, 250 images": EvaluationSettings(fidelity="sequential", images=250),
}


def fine_tune(problem: NetworkProblem, network: torch.nn.Module, images: Any, labels: Any, steps: int) -> None:
    """SGD with momentum 0.9 and cosine decay from 0.01, batches of 128, in place; ends in evaluation mode."""
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = np.random.default_rng(0)
    network.train()
    for _ in range(steps):
        chosen = generator.choice(len(labels), 128, replace=False)
        batch = problem.data.preprocessing(images[chosen]).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad()
        F.cross_entropy(network(batch), torch.from_numpy(labels[chosen])).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    network.eval()


def measure(
    scorers: dict[str, NetworkProblem], final: NetworkProblem, training: tuple[Any, Any], steps: int, widths: Widths
) -> dict[str, float]:
    """All that is known of one plan: errors by fidelity and objective, and accuracies of its final networks."""
    row = {}
    for name, problem in scorers.items():
        score = problem.score(widths)
        if score.accuracy is None:
            raise ValueError("expected a classifier")
        row |= {f"{name} | agreement": score.error, f"{name} | top1": 1.0 - score.accuracy}
    network = final.prune(widths)
    row["final"] = _accuracy(final, network)
    if steps:
        fine_tune(final, network, *training, steps)
        row["fine-tuned"] = _accuracy(final, network)
    return row


def accuracies(scorers: dict[str, NetworkProblem], widths: Widths) -> dict[str, float]:
    """Top-1 accuracy over both splits of the final network of each fidelity."""
    return {
        name: np.average(
            [_accuracy(problem, network, split) for split in _SPLITS],
            weights=[len(getattr(problem.data, split)) for split in _SPLITS],
        )
        for name, problem in scorers.items()
        if name != _FEW_IMAGES  # which is the same with all images
        for network in [problem.prune(widths)]
    }


def _accuracy(problem: NetworkProblem, network: torch.nn.Module, split: SplitName = "test") -> float:
    accuracy = problem.measure_network(network, split).accuracy
    if accuracy is None:
        raise ValueError("expected a classifier")
    return accuracy


def _plans(problem: NetworkProblem, count: int) -> list[tuple[str, Widths]]:
    most = problem.ratios(problem.smallest_widths)
    rng = np.random.default_rng(0)
    plans = [
        ("uniform", problem.widths(problem.fit_to_budget(np.full(len(problem.decisions), 0.5)))),
        ("reconstruction allocation", allocate(problem, problem.reconstruction_errors())),
    ]
    for index in range(count):
        plans.append((f"random {index}", problem.widths(problem.fit_to_budget(rng.uniform(0.0, most)))))
    return plans


def _build(options: argparse.Namespace) -> tuple[dict[str, NetworkProblem], NetworkProblem]:
    sizes = SplitSizes(options.calibration, options.search, options.test)
    scorers = {
        name: problems.resnet56(options, sizes, replace(evaluation, objective="agreement"))
        for name, evaluation in _FIDELITIES.items()
    }
    final = problems.resnet56(options, sizes, _FIDELITIES["sequential, 250 images"])
    return scorers, final


def _print(rows: dict[str, dict[str, float]], as_json: bool) -> None:
    random = [row for name, row in rows.items() if name.startswith("random")]
    finals = [name for name in ("final", "fine-tuned") if random and name in random[0]]
    correlations = {
        name: {final: spearman([-row[name] for row in random], [row[final] for row in random]) for final in finals}
        for name in (random[0] if len(random) > 1 else ())
        if name not in finals
    }
    named = {name: row for name, row in rows.items() if not name.startswith("random")}
    if as_json:
        sys.stdout.write(json.dumps({"plans": len(random), "correlations": correlations, "named": named}) + "\n")
        return
    sys.stdout.write("top-1 accuracy of the final network over both splits\n")
    for name, row in named.items():
        sys.stdout.write(f"{name}\n" + "".join(f"{key:<42}{100 * value:13.2f} %\n" for key, value in row.items()))
    if correlations:
        sys.stdout.write(
            f"\nrank correlation over {len(random)} random plans with the test accuracy of the network that is\n"
        )
        sys.stdout.write(f"{'fidelity | objective':<42}" + "".join(f"{final:>14}" for final in finals) + "\n")
    for name, values in correlations.items():
        sys.stdout.write(f"{name:<42}" + "".join(f"{values[final]:14.3f}" for final in finals) + "\n")


def main() -> None:
    """Measure what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    problems.add_data_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; what stands there is not measured again")
    parser.add_argument("--plans", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="plan to measure; another process may do those before")
    parser.add_argument("--calibration", type=int, default=1000)
    parser.add_argument("--search", type=int, default=1000)
    parser.add_argument("--test", type=int, default=2000)
    parser.add_argument("--fine-tuning-steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    if options.cifar10 is None or options.resnet56 is None:
        parser.error("--cifar10 and --resnet56 are needed")
    torch.set_num_threads(options.threads)
    rows: dict[str, dict[str, float]] = {}
    how = {name: getattr(options, name) for name in ("calibration", "search", "test", "fine_tuning_steps")}
    for entry in map(json.loads, options.out.read_text().splitlines() if options.out.exists() else ()):
        if entry.get("how") != how:
            parser.error(f"{options.out}: measured with {entry.get('how')}, not with {how}; give another --out")
        rows[entry["plan"]] = entry["row"]
    scorers, final = _build(options)
    with np.load(options.cifar10) as arrays:
        images, labels = arrays["train_images"], arrays["train_labels"].astype(np.int64)
    training = images.transpose(0, 3, 1, 2) if images.shape[-1] == 3 else images, labels
    for name, widths in _plans(final, options.plans)[options.first :]:
        if name not in rows:
            rows[name] = (
                measure(scorers, final, training, options.fine_tuning_steps, widths)
                if name.startswith("random")
                else accuracies(scorers, widths)
            )
            with options.out.open("a") as out:
                out.write(json.dumps({"plan": name, "widths": widths, "row": rows[name], "how": how}) + "\n")
    _print(rows, options.json)


if __name__ == "__main__":
    main()
