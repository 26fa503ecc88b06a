r"""A recording as an offline data set of Minari: every evaluated plan is an episode of the environment.

    python scripts/minari_dataset.py resnet56-cifar10-v0 [--budget 50%]
    python -c "import minari; print(minari.load_dataset('amc/resnet56-cifar10/macs-50-v0'))"

It goes where Minari keeps data sets (MINARI_DATASETS_PATH, else its folder in your home). Observations and actions
are those of `amc_env:Pruning-v0` under the budget, `constraint="strict"`; the last reward is minus the top-1 error
that was measured, not what the surrogate says, and -1 for a plan that violates the budget. Scores are normalised from
one ratio for all layers (0) to the best plan recorded (1). Needs `pip install 'minari[hdf5]'`.
"""

from __future__ import annotations

import argparse
import warnings

import click
import gymnasium
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer

from amc_env.problems import make_problem
from amc_env.recorded import RecordedProblem

VIOLATED = -1.0


def main() -> None:
    """Write the data set of a recording."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of a recorded problem")
    parser.add_argument("--budget", help="of the dense MACs; by default the problem's own")
    options = parser.parse_args()
    made = write(options.name, options.budget)
    click.echo(f"{made.spec.dataset_id}: {made.total_episodes:,} episodes, {made.total_steps:,} steps")


def write(name: str, budget: str | None = None) -> minari.MinariDataset:
    """Make the data set.

    Raises:
        ValueError: the problem is not a recorded one, or such a data set is there already.
    """
    limits = None if budget is None else {"macs": budget}
    problem = make_problem(name, budget=limits)
    if not isinstance(problem, RecordedProblem):
        raise ValueError(f"{name}: expected a recorded problem")
    env = gymnasium.make(
        "amc_env:Pruning-v0", problem=name, budget=limits, infeasible_reward=VIOLATED, disable_env_checker=True
    )
    percent = round(100 * problem.budgets[0].limit / problem.dense_costs["macs"])
    recording = problem.recording
    rewards = -recording.errors["top1"]
    episodes = [
        play(env, number, ratios.astype(np.float32), reward)
        for number, (ratios, reward) in enumerate(zip(recording.ratios, rewards, strict=True))
    ]
    feasible = [episode.rewards[-1] for episode in episodes if episode.rewards[-1] != VIOLATED]
    uniform = problem.evaluate(problem.fit_to_budget([0.5] * len(problem.decisions)))
    network = name.rsplit("-", 1)[0]
    warnings.filterwarnings("ignore", module="minari.utils")  # that no author's address and no evaluation env is given
    return minari.create_dataset_from_buffers(
        f"amc/{network}/macs-{percent}-v0", episodes, env=env, data_format="hdf5",
        ref_min_score=uniform.reward, ref_max_score=max(feasible), requirements=["amc-search"],
        author="The amc-search developers",
        algorithm_name="random plans at all budgets, and searches at one",
        description=f"Pruning plans of {name}, evaluated on the real network; {len(feasible)} meet the budget.",
    )  # fmt: skip


def play(env: gymnasium.Env[np.ndarray, np.ndarray], number: int, ratios: np.ndarray, reward: float) -> EpisodeBuffer:
    """The episode of a plan: ratios (decisions,), and the reward that was measured for it."""
    observation, _ = env.reset()
    observations, rewards, ends = [observation], list[float](), list[bool]()
    for ratio in ratios:
        observation, given, terminated, _, info = env.step(np.array([ratio]))
        observations.append(observation)
        rewards.append(float(given))
        ends.append(terminated)
    if info["feasible"]:
        rewards[-1] = reward
    return EpisodeBuffer(
        id=number, observations=observations, actions=list(ratios[:, None]), rewards=rewards, terminations=ends,
        truncations=[False] * len(ends),
    )  # fmt: skip


if __name__ == "__main__":
    main()
