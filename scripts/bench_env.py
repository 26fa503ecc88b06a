"""How fast the environment steps: one process, and vector environments; whole episodes with resets, random actions.

    python scripts/bench_env.py [--json]

Each figure is the best of three runs. The environment checks nothing twice: what a step costs is the embedding of the
next decision; what an episode costs beside it is one evaluation, which is remembered for plans that come again.
"One process" is what `gymnasium.make_vec` makes unless asked for another; of digits-v0 every evaluation is real.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import click
import gymnasium
import numpy as np
import torch

import amc_env  # noqa: F401 - registers the environment

PROBLEMS = ("toy5-v0", "toy20-v0", "toy50-v0", "toy20-interaction-v0", "toy20-staircase-v0", "resnet56-cifar10-v0")
CONSTRAINTS = ("strict", "clamp", "fit")
MODES = {"one process": "vector_entry_point"}
RUNS = 3


def main() -> None:
    """Measure, and print a table or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    figures: dict[str, Any] = {"single": {}, "vector": {}}
    for name in PROBLEMS:
        figures["single"][name] = {
            constraint: best(single, name, constraint, options.steps) for constraint in CONSTRAINTS
        }
    torch.set_num_threads(1)  # also of the processes that async starts: one evaluation for each CPU
    few, many = sorted({1, options.workers}), (1, 16, 64, 256)
    for name, modes, steps in (
        ("toy20-v0", {"one process": many, "sync": few, "async": few}, options.steps),
        ("resnet56-cifar10-v0", {"one process": many, "sync": few, "async": few}, options.steps),
        ("digits-v0", {"one process": few, "async": few}, options.steps // 50),
    ):
        figures["vector"][name] = {
            f"{mode} {count}": best(vector, name, MODES.get(mode, mode), count, steps)
            for mode, counts in modes.items()
            for count in counts
        }
    if options.json:
        click.echo(json.dumps(figures))
        return
    click.echo(f"{'steps/s, one process':<24}" + "".join(f"{constraint:>10}" for constraint in CONSTRAINTS))
    for name, rates in figures["single"].items():
        click.echo(f"{name:<24}" + "".join(f"{rates[constraint]:>10,.0f}" for constraint in CONSTRAINTS))
    for name, rates in figures["vector"].items():
        click.echo(f"\n{name}, vector environments, clamp")
        for kind, rate in rates.items():
            click.echo(f"  {kind:<22}{rate:>10,.0f}")


def best(measure: Any, *arguments: Any) -> float:
    """The largest of several rates."""
    return max(float(measure(*arguments)) for _ in range(RUNS))


def single(name: str, constraint: str, steps: int) -> float:
    """Steps per second of one environment."""
    env = gymnasium.make("amc_env:Pruning-v0", problem=name, constraint=constraint, disable_env_checker=True).unwrapped
    actions = np.random.default_rng(0).random((steps, 1)).astype(np.float32)
    env.reset(seed=0)
    began = time.perf_counter()
    for action in actions:
        if env.step(action)[2]:
            env.reset()
    return steps / (time.perf_counter() - began)


def vector(name: str, mode: str, count: int, steps: int) -> float:
    """Steps per second of all of so many environments together."""
    envs = gymnasium.make_vec(
        "amc_env:Pruning-v0", num_envs=count, vectorization_mode=mode, problem=name, constraint="clamp"
    )
    try:
        actions = np.random.default_rng(0).random((steps // count, count, 1)).astype(np.float32)
        envs.reset(seed=0)
        began = time.perf_counter()
        for action in actions:
            envs.step(action)
        return len(actions) * count / (time.perf_counter() - began)
    finally:
        envs.close()


if __name__ == "__main__":
    main()
