"""Play the environment with random actions and look at the best episode.

python examples/rl/random_episodes.py --problem resnet56-cifar10-v0 --episodes 200
"""

from __future__ import annotations

import argparse

import gymnasium


def main() -> None:
    """Play, keep the best, print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="resnet56-cifar10-v0")
    parser.add_argument("--episodes", type=int, default=200)
    options = parser.parse_args()
    # "fit" brings every finished plan to the budget, so that no episode is lost
    env = gymnasium.make("amc_env:Pruning-v0", problem=options.problem, constraint="fit", render_mode="ansi")
    env.action_space.seed(0)
    best, shown = float("-inf"), ""
    for episode in range(options.episodes):
        env.reset(seed=episode)
        terminated = False
        while not terminated:
            _, reward, terminated, _, info = env.step(env.action_space.sample())
        if float(reward) > best:
            best = float(reward)
            shown = f"{env.render()}\naccuracy {info['accuracy']:.4f}, {info['costs']['macs']:,} MACs"
    print(shown)


if __name__ == "__main__":
    main()
