"""A policy network that was trained on one network, applied to another without any search there.

    python examples/rl/ddpg.py --problem resnet56-cifar10-v0 --episodes 400 --save actor.pt
    python examples/rl/transfer.py actor.pt --problems resnet56-cifar10-v0 digits-v0 toy20-v0

The eleven features are scaled to [0, 1] within each network, which lets a policy speak of layers that it has not
seen. It acts once, without noise, and its plan is brought to the budget; beside it stand one ratio for all layers, and
random plans.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import gymnasium
import numpy as np
import torch
from ddpg import mlp
from torch import nn


def play(env: gymnasium.Env, act: Callable[[np.ndarray], float]) -> float:
    """The reward of an episode."""
    observation, _ = env.reset(seed=0)
    while True:
        observation, reward, terminated, _, _ = env.step(np.array([act(observation)], dtype=np.float32))
        if terminated:
            return float(reward)


def main() -> None:
    """Compare on each problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("actor")
    parser.add_argument("--problems", nargs="+", default=["resnet56-cifar10-v0", "digits-v0", "toy20-v0"])
    parser.add_argument("--random", type=int, default=50, help="random plans")
    options = parser.parse_args()
    actor = mlp(11, nn.Sigmoid())
    actor.load_state_dict(torch.load(options.actor, weights_only=True))
    rng = np.random.default_rng(0)
    print(f"{'problem':<24}{'policy':>10}{'one ratio':>12}{'random, median':>17}{'best':>10}  better than")
    for name in options.problems:
        env = gymnasium.make("amc_env:Pruning-v0", problem=name, constraint="fit", disable_env_checker=True)
        with torch.no_grad():
            policy = play(env, lambda observation: min(float(actor(torch.from_numpy(observation))), 0.999))
        uniform = play(env, lambda observation: 0.5)
        drawn = np.array([play(env, lambda observation: float(rng.random())) for _ in range(options.random)])
        print(f"{name:<24}{policy:>10.4f}{uniform:>12.4f}{np.median(drawn):>17.4f}{drawn.max():>10.4f}"
              f"  {np.mean(drawn < policy):.0%} of the random")  # fmt: skip


if __name__ == "__main__":
    main()
