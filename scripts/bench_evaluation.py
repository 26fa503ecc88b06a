#!/usr/bin/env python3
r"""What an evaluation costs: against a forward pass, against the original AMC, after a change of one layer, to set up.

Both sides of each ratio are measured in this run, in turns; times are medians in seconds on `--threads` threads.
Measurements whose files are not named are left out.

    python scripts/bench_evaluation.py --cifar10 cifar10.npz --resnet56 resnet56.pt \
        --imagenet images --labels labels.csv --mobilenet-v1 v1.pt --mobilenet-v2 v2.pt
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import _amc_reference as reference
import _problems as problems
import numpy as np
import torch

from agents.allocation import allocate
from amc_env.datasets import SplitSizes
from amc_env.env import PruningEnv
from amc_env.evaluation import NetworkProblem
from amc_env.problem import Widths
from amc_env.pruning.batchnorm import fold_batchnorm
from amc_env.settings import EvaluationSettings
from amc_env.toy import ToyProblem


@dataclass(frozen=True)
class Figure:
    """One measured line: a ratio with its two sides, or a value with its unit."""

    what: str
    value: float
    unit: str
    goal: str
    sides: tuple[float, float] | None = None


def _uniform(problem: NetworkProblem) -> Widths:
    return problem.widths(problem.fit_to_budget(np.full(len(problem.decisions), 0.5)))


def _medians(first: Callable[[], object], second: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Seconds of two functions, called in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, spent in zip((first, second), times, strict=True):
            started = time.perf_counter()
            function()
            spent.append(time.perf_counter() - started)
    return statistics.median(times[0]), statistics.median(times[1])


def against_forward(options: argparse.Namespace) -> Iterator[Figure]:
    """Evaluations of ResNet-56 against one forward pass of the same thin network over the same images."""
    cases = (
        ("magnitude", False, "<= 1.15"),
        ("magnitude", True, "<= 1.35"),
        ("prefix", False, "<= 1.15"),
        ("prefix", True, "<= 1.35"),
        ("sequential", False, "<= 1.6"),
    )
    for fidelity, recalibrate, goal in cases:
        evaluation = EvaluationSettings(fidelity=fidelity, recalibrate_batchnorm=recalibrate)  # type: ignore[arg-type]
        problem = problems.resnet56(options, SplitSizes(500, options.images, 100), evaluation)
        problem.prepare()
        widths = _uniform(problem)
        thin = problem.prune(widths)
        fold_batchnorm(thin, problem.graph.foldable)
        batches = list(problem.search_batches())

        def forward(thin: torch.nn.Module = thin, batches: list[torch.Tensor] = batches) -> None:
            with torch.inference_mode():
                for images in batches:
                    thin(images)

        sides = _medians(lambda p=problem, w=widths: p.score(w), forward, options.repeats)  # type: ignore[misc]
        name = (
            f"{fidelity}{' + recalibration' if recalibrate else ''} / forward pass, ResNet-56, {options.images} images"
        )
        yield Figure(name, sides[0] / sides[1], "x", goal, sides)


def against_amc(options: argparse.Namespace) -> Iterator[Figure]:
    """The original's episode on MobileNet-V1 against ours, at its published half-MACs policy, 400 images.

    Both fit each layer on 4,000 rows; ours draws them from 100 calibration images.
    """
    for fidelity in ("prefix", "sequential"):
        evaluation = EvaluationSettings(fidelity=fidelity, recalibrate_batchnorm=False, images=100, rows=4000)  # type: ignore[arg-type]
        problem = problems.mobilenet_v1(options, SplitSizes(300, 400, 100), evaluation)
        problem.prepare()
        kept = dict(zip(_inputs_fitted_by_amc(problem), problems.AMC_MOBILENET_V1, strict=True))
        dense = copy.deepcopy(problem.network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        images = [batch.contiguous() for batch in problem.search_batches()]
        rows = reference.collect_rows(dense, list(kept), images)

        def original(
            problem: NetworkProblem = problem, kept: dict[str, int] = kept, rows: reference.Rows = rows
        ) -> None:
            masked = copy.deepcopy(problem.network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
            reference.fit_and_mask(masked, kept, rows)
            with torch.no_grad():
                for first in range(0, len(problem.data.search), 50):
                    masked(problem.data.preprocessing(problem.data.search.images[first : first + 50]).contiguous())

        ours = lambda p=problem: p.score(problems.AMC_MOBILENET_V1)  # type: ignore[misc]  # noqa: E731
        sides = _medians(original, ours, options.repeats)
        yield Figure(f"AMC's episode / {fidelity}, MobileNet-V1, 400 images", sides[0] / sides[1], "x", ">= 5", sides)


def amc_policy(options: argparse.Namespace) -> Iterator[Figure]:
    """What MobileNet-V1 keeps at the published half-MACs policy of AMC, before fine-tuning, 400 images."""
    evaluation = EvaluationSettings(fidelity="sequential", images=600, rows=60_000)
    problem = problems.mobilenet_v1(options, SplitSizes(600, 200, 200), evaluation, criterion="input_l1")
    for name, widths, goal in (
        ("dense", problem.dense_widths, ""),
        ("at AMC's policy, sequential", problems.AMC_MOBILENET_V1, ">= 45"),
    ):
        network = problem.prune(widths)
        parts = [problem.measure_network(network, split).accuracy or 0.0 for split in ("search", "test")]
        yield Figure(f"accuracy of MobileNet-V1 {name}, 600 calibration images", 50 * sum(parts), "%", goal)


def _inputs_fitted_by_amc(problem: NetworkProblem) -> list[str]:
    """The 1x1 and linear layers whose inputs the 14 decisions prune, in order."""
    layers = [layer for layer in problem.graph.layers if layer.op in ("conv", "linear") and layer.groups == 1]
    return [layer.name for layer in layers if layer.kernel_size == (1, 1)]


def one_layer_changes(options: argparse.Namespace) -> Iterator[Figure]:
    """A sensitivity sweep of ResNet-56, every decision at 9 ratios, with reuse of activations and without."""
    sizes = SplitSizes(500, options.images, 100)
    reusing, plain = (problems.resnet56(options, sizes, EvaluationSettings(fidelity="sequential")) for _ in range(2))
    for problem in (reusing, plain):
        problem.prepare()
    with_reuse = without = 0.0
    for index in range(0, len(reusing.decisions), options.every):
        for ratio in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
            widths = list(reusing.dense_widths)
            widths[index] = reusing.decisions[index].kept(ratio)
            plain.forget_activations()
            seconds = _medians(lambda w=tuple(widths): reusing.score(w), lambda w=tuple(widths): plain.score(w), 1)  # type: ignore[misc]
            with_reuse, without = with_reuse + seconds[0], without + seconds[1]
    name = f"from scratch / one-layer change, ResNet-56, {options.images} images, every {options.every}. decision"
    yield Figure(name, without / with_reuse, "x", ">= 1.6", (without, with_reuse))


def environment_steps(options: argparse.Namespace) -> Iterator[Figure]:
    """Median time of a step that does not end the episode."""
    for decisions in (6, 30):
        for constraint in ("strict", "clamp", "fit"):
            env = PruningEnv(ToyProblem(decisions), constraint=constraint, infeasible_reward=-1.0)  # type: ignore[arg-type]
            rng, times = np.random.default_rng(0), []
            for _ in range(200):
                env.reset()
                for action in rng.uniform(0.0, 0.8, (decisions - 1, 1)).astype(np.float32):
                    started = time.perf_counter()
                    env.step(action)
                    times.append((time.perf_counter() - started) * 1e6)
            yield Figure(f"env.step, {decisions} decisions, {constraint}", statistics.median(times), "us", "<= 60")


def set_up(options: argparse.Namespace) -> Iterator[Figure]:
    """Calibration, all orders and all factors from nothing, each in a process of its own, and its peak memory."""
    cases = {
        "resnet56": (options.resnet56 and options.cifar10, SplitSizes(500, 100, 100), "< 60"),
        "mobilenet_v2": (options.mobilenet_v2 and options.imagenet, SplitSizes(100, 50, 50), "< 240"),
        "resnet50": (options.imagenet, SplitSizes(100, 50, 50), "< 900"),
    }
    for name, (there, sizes, goal) in cases.items():
        if not there or (options.networks and name not in options.networks):
            continue
        with tempfile.TemporaryDirectory() as cache, multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, gibibytes = pool.apply(_set_up, (options, name, sizes, cache))
        yield Figure(f"set-up of {name}, {sizes.calibration} calibration images", seconds, "s", goal)
        yield Figure(f"peak memory of it ({name})", gibibytes, "GiB", "< 6")


def _set_up(options: argparse.Namespace, name: str, sizes: SplitSizes, cache: str) -> tuple[float, float]:
    os.environ["AMC_CACHE"] = cache
    torch.set_num_threads(options.threads)
    problem: NetworkProblem = getattr(problems, name)(options, sizes, EvaluationSettings(fidelity="prefix"))
    started = time.perf_counter()
    problem.prepare()
    allocate(problem, problem.reconstruction_errors())
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


MEASUREMENTS = {
    "steps": (environment_steps, ()),
    "forward": (against_forward, ("cifar10", "resnet56")),
    "amc": (against_amc, ("imagenet", "labels", "mobilenet_v1")),
    "amc-policy": (amc_policy, ("imagenet", "labels", "mobilenet_v1")),
    "one-layer": (one_layer_changes, ("cifar10", "resnet56")),
    "set-up": (set_up, ()),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    problems.add_data_options(parser)
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--networks", nargs="+", help="of the set-up measurement")
    parser.add_argument("--images", type=int, default=5000, help="of CIFAR-10 that an evaluation scores")
    parser.add_argument("--every", type=int, default=3, help="the sweep takes every so many decisions")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object at the end instead of a table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures = []
    for name in options.only:
        measure, needs = MEASUREMENTS[name]
        missing = [need for need in needs if getattr(options, need) is None]
        if missing:
            sys.stderr.write(
                f"{name}: left out, needs {', '.join('--' + need.replace('_', '-') for need in missing)}\n"
            )
            continue
        for figure in measure(options):
            figures.append(figure)
            if not options.json:
                sides = f"({figure.sides[0]:.2f} s / {figure.sides[1]:.2f} s)" if figure.sides else ""
                sys.stdout.write(f"{figure.what:<76} {figure.value:8.2f} {figure.unit:<4} {figure.goal:<8} {sides}\n")
                sys.stdout.flush()
    if options.json:
        sys.stdout.write(json.dumps({"figures": [figure.__dict__ for figure in figures]}) + "\n")


if __name__ == "__main__":
    main()
