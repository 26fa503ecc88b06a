#!/usr/bin/env python3
"""Compare agents at equal evaluations on toy problems whose best policy is known.

Prints the mean regret of each agent over seeds, with its standard error: accuracy of the best policy there is minus
accuracy of the best policy found. Seed k draws both the problem and the agent's random choices, so that all agents
meet the same problems. A learner takes minutes per row, more with more decisions. With interaction between layers the
error curves, from which "reconstruction", "local" and "refine" begin, are no longer exact (see `amc_env.toy`).

    python scripts/compare_agents_toy.py --agents random ddpg paper --decisions 6 12 --seeds 10
    python scripts/compare_agents_toy.py --agents reconstruction local refine --interaction 2 --decisions 6
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping

import torch

from agents.base import Agent
from agents.ddpg import DDPG, PAPER, REFINE
from agents.local_search import LocalSearch
from agents.random_search import RandomSearch
from agents.reconstruction import Reconstruction
from agents.sac import SAC
from agents.td3 import TD3
from agents.uniform import Uniform
from amc_env.toy import ToyProblem

VARIANTS: Mapping[str, Agent] = {
    "uniform": Uniform(),
    "random": RandomSearch(),
    "reconstruction": Reconstruction(),
    "local": LocalSearch(),
    "ddpg": DDPG(),
    "paper": PAPER,
    "td3": TD3(),
    "sac": SAC(),
    "refine": REFINE,
}


def regrets(agent: Agent, problems: list[ToyProblem], evaluations: int) -> list[float]:
    """Best accuracy there is minus best accuracy found (dense accuracy 1 if nothing feasible was), for each seed."""
    values = []
    for seed, problem in enumerate(problems):
        best = agent.search(problem, max_evaluations=evaluations, seed=seed, on_evaluation=lambda _: None)
        found = best.error if best is not None and best.error is not None else 1.0
        values.append(found - problem.score(problem.best_widths()).error)
    return values


def main() -> None:
    """Measure and print as a table or as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--decisions", nargs="+", type=int, default=[6, 12, 30])
    parser.add_argument("--budgets", nargs="+", default=["50%", "30%"])
    parser.add_argument("--interaction", type=float, default=0.0, help="between neighbouring layers, at least 0")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=150)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.json:
        sys.stdout.write(f"{'agent':<14} {'decisions':>9} {'budget':>6}  mean regret\n")
    for decisions in arguments.decisions:
        for budget in arguments.budgets:
            for name in arguments.agents:
                start = time.perf_counter()
                problems = [
                    ToyProblem(decisions, budget={"macs": budget}, interaction=arguments.interaction, seed=seed)
                    for seed in range(arguments.seeds)
                ]
                values = regrets(VARIANTS[name], problems, arguments.evaluations)
                mean, error = statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5
                seconds = time.perf_counter() - start
                row = {"agent": name, "decisions": decisions, "budget": budget, "regrets": values}
                table = f"{name:<14} {decisions:>9} {budget:>6}  {mean:.4f} +- {error:.4f}  ({seconds:.0f} s)"
                sys.stdout.write(f"{json.dumps(row) if arguments.json else table}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
