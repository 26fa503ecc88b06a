#!/usr/bin/env python3
"""Compare agents at equal evaluations on toy problems whose best policy is known.

Prints the mean regret of each agent over seeds, with its standard error: accuracy of the best policy there is minus
accuracy of the best policy found. Seed k draws both the problem and the agent's random choices, so that all agents
meet the same problems. A learner takes minutes per row, more with more decisions.

    python scripts/compare_agents_toy.py --agents random ddpg paper --decisions 6 12 --seeds 10
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
from agents.ddpg import DDPG, PAPER
from agents.random_search import RandomSearch
from agents.uniform import Uniform
from amc_env.toy import ToyProblem

VARIANTS: Mapping[str, Agent] = {
    "uniform": Uniform(),
    "random": RandomSearch(),
    "ddpg": DDPG(),
    "paper": PAPER,
}


def regrets(agent: Agent, decisions: int, budget: str, seeds: int, evaluations: int) -> list[float]:
    """Best accuracy there is minus best accuracy found (dense accuracy 1 if nothing feasible was), for each seed."""
    values = []
    for seed in range(seeds):
        problem = ToyProblem(decisions, budget={"macs": budget}, seed=seed)
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
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=150)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.json:
        sys.stdout.write(f"{'agent':<10} {'decisions':>9} {'budget':>6}  mean regret\n")
    for decisions in arguments.decisions:
        for budget in arguments.budgets:
            for name in arguments.agents:
                start = time.perf_counter()
                values = regrets(VARIANTS[name], decisions, budget, arguments.seeds, arguments.evaluations)
                mean, error = statistics.fmean(values), statistics.stdev(values) / len(values) ** 0.5
                seconds = time.perf_counter() - start
                row = {"agent": name, "decisions": decisions, "budget": budget, "regrets": values}
                table = f"{name:<10} {decisions:>9} {budget:>6}  {mean:.4f} +- {error:.4f}  ({seconds:.0f} s)"
                sys.stdout.write(f"{json.dumps(row) if arguments.json else table}\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
