r"""Evaluate plans of every budget on a real network, as the raw material of a recorded problem.

    python scripts/record_problem.py examples/resnet56-compare.yaml --set network.weights=... --plans 400 \
        --set data.path=... --out resnet56.jsonl

A third of the plans are equal ratios, a third the allocation by reconstruction errors, a third anything, all shaken and
brought to budgets between --least and all of the dense MACs. Each is a line; the command goes on where it was stopped.
`scripts/fit_recording.py` makes a problem of them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import click
import numpy as np

from agents.allocation import allocate
from amc_env.evaluation import NetworkProblem
from amc_env.problem import PruningProblem, Widths
from search.build import build_problem, calibrate, load_data
from search.spec import load_spec

_DENSE = 0.04  # share of plans that lose next to nothing


def main() -> None:
    """Draw, evaluate, append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spec", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--plans", type=int, default=400)
    parser.add_argument("--least", type=float, default=0.2, help="smallest budget, of the dense MACs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    spec = load_spec(options.spec, [*options.overrides, "evaluation.hard_images=null", "budget={macs: 100%}"])
    problem = build_problem(spec, load_data(spec))
    if not isinstance(problem, NetworkProblem):
        raise SystemExit(f"{options.spec}: expected a network that loses channels")
    calibrate(problem, spec, lambda done, layers: None)
    problem.calibrate(error_curves=True)
    done = options.out.read_text().count("\n") if options.out.exists() else 0
    plans = draw(problem, options.plans, options.least, np.random.default_rng(options.seed))
    with options.out.open("a") as file:
        for index, widths in enumerate(plans[done:], start=done):
            began = time.monotonic()
            score = problem.score(widths)
            line = {"widths": widths, "error": score.error, "accuracy": score.accuracy, "drawn": index}
            file.write(json.dumps(line) + "\n")
            file.flush()
            click.echo(f"{index + 1}/{options.plans}: {score.accuracy}, {time.monotonic() - began:.1f} s")


def draw(problem: PruningProblem, plans: int, least: float, rng: np.random.Generator) -> list[Widths]:
    """Plans of every kind at every budget; the first is the dense network."""
    curves = problem.reconstruction_errors()
    smallest = problem.cost("macs", problem.smallest_widths) / problem.dense_costs["macs"]
    drawn = [problem.dense_widths]
    for index in range(plans - 1):
        budget = rng.uniform(max(least, smallest), 1.0) if rng.random() > _DENSE else 1.0
        view = problem.with_budget({"macs": budget * problem.dense_costs["macs"]})
        kind, shaken = index % 3, rng.uniform(0.0, 0.3)
        if kind == 0:
            ratios = np.full(len(problem.decisions), 0.5)
        elif kind == 1:
            ratios = problem.ratios(allocate(view, curves))
        else:
            ratios = rng.random(len(problem.decisions))
        ratios = np.clip(ratios + rng.normal(0.0, shaken, len(ratios)), 0.0, 0.999)
        drawn.append(view.widths(view.fit_to_budget(ratios)))
    return drawn


if __name__ == "__main__":
    main()
