"""The baseline table of the named problems: what known algorithms find in so many evaluations, over seeds.

    python scripts/compare_baselines.py --trials docs/results/baselines.jsonl --out docs/results/baselines.md

Each trial is a line of --trials; the command goes on where it was stopped, and runs only the seeds, problems and
algorithms that are asked for. An evaluation is an episode. A score is how far a trial came from the reward of one
ratio for all layers (0) to the best known (1: the optimum where it is known, else the best that any trial found).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import gymnasium
import stable_baselines3
import torch
from stable_baselines3.common.monitor import Monitor

from agents.base import Agent
from agents.cma_es import CMAES
from agents.ddpg import DDPG
from agents.local_search import LocalSearch
from agents.random_search import RandomSearch
from agents.reconstruction import Reconstruction
from agents.sac import SAC
from agents.surrogate import SurrogateSearch
from agents.td3 import TD3
from agents.uniform import Uniform
from amc_env.problem import PruningProblem
from amc_env.problems import PROBLEMS, make_problem
from amc_env.toy import ToyProblem
from search.statistics import Sample, estimate_mean

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples" / "rl"))
import ddpg as single_file  # type: ignore[import-not-found]

Trial = Callable[[str, int, int], float]  # problem, evaluations, seed -> best reward


def by_agent(agent: Agent) -> Trial:
    """An agent of this project."""

    def trial(name: str, evaluations: int, seed: int) -> float:
        best = agent.search(make_problem(name), max_evaluations=evaluations, seed=seed, on_evaluation=lambda _: None)
        return -1.0 if best is None else best.reward

    return trial


def by_ppo(name: str, evaluations: int, seed: int) -> float:
    """PPO of stable-baselines3 as it is."""
    env = Monitor(gymnasium.make("amc_env:Pruning-v0", problem=name, constraint="fit", disable_env_checker=True))
    decisions = len(env.unwrapped.problem.decisions)  # type: ignore[attr-defined]
    steps = decisions * 10
    model = stable_baselines3.PPO("MlpPolicy", env, n_steps=steps, batch_size=steps, gamma=1.0, seed=seed)
    model.learn(evaluations * decisions)
    return max(env.get_episode_rewards()[:evaluations])


def by_single_file(name: str, evaluations: int, seed: int) -> float:
    """examples/rl/ddpg.py."""
    asked = ["--problem", name, "--episodes", str(evaluations), "--warmup", str(evaluations // 4), "--seed", str(seed)]
    best: float = single_file.train(single_file.parser.parse_args(asked))[0]
    return best


ALGORITHMS: Mapping[str, Trial] = {
    "uniform": by_agent(Uniform()),
    "random": by_agent(RandomSearch()),
    "reconstruction": by_agent(Reconstruction()),
    "ppo": by_ppo,
    "ddpg, one file": by_single_file,
    "ddpg": by_agent(DDPG()),
    "td3": by_agent(TD3()),
    "sac": by_agent(SAC()),
    "cma_es": by_agent(CMAES()),
    "local_search": by_agent(LocalSearch()),
    "surrogate": by_agent(SurrogateSearch()),
}
SEEDLESS = ("uniform", "reconstruction")


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--evaluations", type=int, default=150)
    parser.add_argument("--trials", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    done = read(options.trials, options.evaluations)
    with options.trials.open("a") as file:
        for seed in range(options.seeds):
            for problem in options.problems:
                for algorithm in options.algorithms:
                    if (problem, algorithm, seed) in done or (seed and algorithm in SEEDLESS):
                        continue
                    began = time.monotonic()
                    reward = ALGORITHMS[algorithm](problem, options.evaluations, seed)
                    done[problem, algorithm, seed] = reward
                    line: dict[str, Any] = {"problem": problem, "algorithm": algorithm, "seed": seed, "reward": reward}
                    line |= {"evaluations": options.evaluations, "seconds": time.monotonic() - began}
                    file.write(json.dumps(line) + "\n")
                    file.flush()
                    click.echo(f"{problem} {algorithm} {seed}: {reward:.4f}, {line['seconds']:.0f} s")
    page = table(done, options)
    click.echo(page)
    if options.out:
        options.out.write_text(page)


def read(path: Path, evaluations: int) -> dict[tuple[str, str, int], float]:
    """What is done already, at this number of evaluations."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {
        (line["problem"], line["algorithm"], line["seed"]): line["reward"]
        for line in lines
        if line["evaluations"] == evaluations
    }


def best_known(name: str, problem: PruningProblem, done: Mapping[tuple[str, str, int], float]) -> float:
    """The reward of the optimum; where it is not known the best that was found."""
    if isinstance(problem, ToyProblem):
        return problem.evaluate_widths(problem.best_widths()).reward
    return max(reward for (other, _, _), reward in done.items() if other == name)


def table(done: Mapping[tuple[str, str, int], float], options: argparse.Namespace) -> str:
    """The page: interquartile means with intervals, a row for each algorithm."""
    columns: dict[str, dict[str, str]] = {}
    about = []
    for name in options.problems:
        problem = make_problem(name)
        uniform, best = done[name, "uniform", 0], best_known(name, problem, done)
        known = "the optimum" if isinstance(problem, ToyProblem) else "best found"
        about.append(f"| `{name}` | {len(problem.decisions)} | {uniform:.4f} | {best:.4f} ({known}) |")
        columns[name] = {}
        for algorithm in options.algorithms:
            rewards = [r for (p, a, _), r in sorted(done.items()) if (p, a) == (name, algorithm)]
            scores = tuple((reward - uniform) / (best - uniform) for reward in rewards)
            estimate = estimate_mean(Sample(scores, constant=algorithm in SEEDLESS))
            low, high = estimate.interval or (None, None)
            spread = "" if low is None else f"<br><small>{low:.2f} to {high:.2f}</small>"
            columns[name][algorithm] = f"{estimate.value:.2f}{spread}"
    names = list(columns)
    rows = [
        f"| {algorithm} | " + " | ".join(columns[name][algorithm] for name in names) + " |"
        for algorithm in options.algorithms
    ]
    chosen = "" if names == list(PROBLEMS) else f"--problems {' '.join(names)} "
    command = (
        f"python scripts/compare_baselines.py {chosen}--seeds {options.seeds} --evaluations {options.evaluations} "
        "--trials docs/results/baselines.jsonl \\\n        --out docs/results/baselines.md"
    )
    return "\n".join([
        "# Baselines", "",
        f"What algorithms find in {options.evaluations} evaluations (episodes) at each problem's own budget: how far "
        f"they come from one ratio for all layers (0) to the best known (1). Interquartile mean over {options.seeds} "
        "seeds with its 95 % bootstrap interval; uniform and reconstruction need no seed. `reconstruction`, `cma_es`, "
        "`local_search` and `surrogate` know the layers' error curves and begin with the plan that these make best, "
        "which is the optimum of the toy problems without interaction; the others learn from rewards alone. The model "
        "of `surrogate` is a Gaussian process, as recorded problems are, which is to its advantage there.", "",
        f"    {command}", "",
        "| | " + " | ".join(name.removesuffix("-v0").replace("-", " ") for name in names) + " |",
        "| --- |" + " --- |" * len(names), *rows, "",
        "| problem | decisions | reward of one ratio | best reward known |", "| --- | --- | --- | --- |", *about, "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
