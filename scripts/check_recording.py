r"""How good are the winners of searches on a recorded problem when they are evaluated really?

    python scripts/check_recording.py resnet56-cifar10-v0 --real weights=cifar10_resnet56.pt path=cifar10.npz

A search looks for plans that the surrogate likes, and so finds where it errs: left-out plans do not tell of that. Each
agent searches on the recording; what the surrogate says of its winner stands beside what the network itself does. With
`--append FILE` the winners go into a journal for `scripts/fit_recording.py`, so that the next surrogate knows better.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import click
import torch

from agents.base import Agent
from agents.cma_es import CMAES
from agents.local_search import LocalSearch
from agents.random_search import RandomSearch
from agents.surrogate import SurrogateSearch
from amc_env.problems import make_problem, real_problem
from amc_env.recorded import Recording, shipped_recording

AGENTS: tuple[tuple[str, Agent], ...] = (
    ("random", RandomSearch()), ("cma_es", CMAES()), ("local_search", LocalSearch()), ("surrogate", SurrogateSearch()),
)  # fmt: skip


def main() -> None:
    """Search, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of a recorded problem")
    parser.add_argument("--real", nargs="+", required=True, metavar="KEY=FILE", help="as of make_problem")
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--append", type=Path, help="a journal of the real evaluations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    files = {key: Path(file) for key, _, file in (each.partition("=") for each in options.real)}
    recording = Recording.load(shipped_recording(options.name))
    real = real_problem(recording, files, {}, recording.source["evaluation"]["objective"])
    click.echo(f"{'agent':<14}{'seed':>5}{'surrogate':>11}{'real':>8}{'points':>8}")
    for name, agent in AGENTS:
        for seed in options.seeds:
            best = agent.search(
                make_problem(options.name), max_evaluations=options.evaluations, seed=seed,
                on_evaluation=lambda _: None,
            )  # fmt: skip
            if best is None or best.accuracy is None:
                raise SystemExit(f"{name}, seed {seed}: found no plan that meets the budget")
            found = real.evaluate_widths(best.widths)
            accuracy = found.accuracy or 0.0
            if options.append:
                with options.append.open("a") as file:
                    line = {"widths": best.widths, "error": found.error, "accuracy": accuracy}
                    file.write(json.dumps(line) + "\n")
            click.echo(
                f"{name:<14}{seed:>5}{best.accuracy:>11.2%}{accuracy:>8.2%}{100 * (best.accuracy - accuracy):>+8.2f}"
            )


if __name__ == "__main__":
    main()
