"""An algorithm of stable-baselines3 as it is, without this project's own adapter: PPO or SAC in a few lines.

python examples/rl/stable_baselines.py --algorithm PPO --problem toy20-v0 --episodes 500
"""

from __future__ import annotations

import argparse

import gymnasium
import stable_baselines3
from stable_baselines3.common.monitor import Monitor

from amc_env.wrappers import ErrorShaping


def main() -> None:
    """Train, then let the policy play once without noise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", default="PPO", choices=["PPO", "A2C", "SAC", "TD3", "DDPG"])
    parser.add_argument("--problem", default="toy20-v0")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    env = gymnasium.make("amc_env:Pruning-v0", problem=options.problem, constraint="clamp")
    decisions = len(env.unwrapped.problem.decisions)
    watched = Monitor(ErrorShaping(env))  # a reward at every step; the return of an episode is that without it
    model = getattr(stable_baselines3, options.algorithm)("MlpPolicy", watched, gamma=1.0, seed=options.seed)
    model.learn(options.episodes * decisions)
    returns = watched.get_episode_rewards()
    print(f"mean return of the first {min(50, len(returns))} episodes {sum(returns[:50]) / len(returns[:50]):.4f}, "
          f"of the last {sum(returns[-50:]) / len(returns[-50:]):.4f}, best {max(returns):.4f}")  # fmt: skip
    observation, _ = env.reset(seed=0)
    terminated = False
    while not terminated:
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, terminated, _, info = env.step(action)
    print(f"the policy without noise: reward {float(reward):.4f}, feasible {info['feasible']}")


if __name__ == "__main__":
    main()
