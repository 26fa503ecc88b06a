"""DDPG in one file, to read and to change: nothing of this project but the environment.

    python examples/rl/ddpg.py --problem resnet56-cifar10-v0 --episodes 300 --seed 1

After Lillicrap et al., arXiv 1509.02971, with what [AMC] (arXiv 1802.03494, section 3.4) changes: each transition of an
episode gets the reward of its end, less a moving average of such rewards; there is no discount; the noise is a normal
truncated to [0, 1), halved every so often.
"""

from __future__ import annotations

import argparse
import copy
import time

import gymnasium
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--problem", default="resnet56-cifar10-v0")
parser.add_argument("--episodes", type=int, default=300)
parser.add_argument("--warmup", type=int, default=50, help="episodes of random actions")
parser.add_argument("--updates", type=int, default=0, help="after each episode; 0: one for each step")
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--actor-rate", type=float, default=1e-4)
parser.add_argument("--critic-rate", type=float, default=1e-3)
parser.add_argument("--tau", type=float, default=0.01)
parser.add_argument("--sigma", type=float, default=0.5)
parser.add_argument("--decay", type=float, default=0.98, help="of the noise, for each episode after the warm-up")
parser.add_argument("--average", type=float, default=0.95, help="of the moving average of rewards")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--save", help="a file for the actor, which examples/rl/transfer.py reads")


def mlp(inputs: int, *last: nn.Module) -> nn.Sequential:
    """Two hidden layers of 300 units, as in the paper."""
    return nn.Sequential(nn.Linear(inputs, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 1), *last)


def truncated_normal(rng: np.random.Generator, mean: float, sigma: float) -> float:
    """Drawn again until it lies in [0, 1)."""
    while True:
        drawn = rng.normal(mean, sigma)
        if 0.0 <= drawn < 1.0:
            return float(drawn)


def train(options: argparse.Namespace) -> tuple[float, nn.Module]:
    """Train, telling of each better policy; returns the best reward and the actor."""
    torch.manual_seed(options.seed)
    torch.set_num_threads(1)
    rng = np.random.default_rng(options.seed)
    env = gymnasium.make("amc_env:Pruning-v0", problem=options.problem, constraint="fit", disable_env_checker=True)
    features = env.observation_space.shape[0]
    actor, critic = mlp(features, nn.Sigmoid()), mlp(features + 1)
    slow_actor, slow_critic = copy.deepcopy(actor), copy.deepcopy(critic)
    actor_steps = torch.optim.Adam(actor.parameters(), options.actor_rate)
    critic_steps = torch.optim.Adam(critic.parameters(), options.critic_rate)

    states, actions, rewards, nexts, ends = (np.empty((0, size), np.float32) for size in (features, 1, 1, features, 1))
    average, best = None, -np.inf
    for episode in range(options.episodes):
        sigma = options.sigma * options.decay ** max(0, episode - options.warmup)
        observation, _ = env.reset(seed=options.seed + episode)
        path, terminated = [], False
        while not terminated:
            if episode < options.warmup:
                action = float(rng.random())
            else:
                with torch.no_grad():
                    action = truncated_normal(rng, float(actor(torch.from_numpy(observation))), sigma)
            following, reward, terminated, _, info = env.step(np.array([action], dtype=np.float32))
            path.append((observation, action, following, float(terminated)))
            observation = following
        reward = float(reward)
        if reward > best:
            best = reward
            print(f"episode {episode:4d}: reward {reward:.4f}, accuracy {info.get('accuracy', float('nan')):.4f}")
        average = reward if average is None else options.average * average + (1.0 - options.average) * reward
        old = (states, actions, rewards, nexts, ends)
        new = ([step[0] for step in path], [[step[1]] for step in path], [[reward - average]] * len(path),
               [step[2] for step in path], [[step[3]] for step in path])  # fmt: skip
        states, actions, rewards, nexts, ends = (
            np.concatenate([before, np.asarray(added, np.float32)]) for before, added in zip(old, new, strict=True)
        )
        if episode < options.warmup:
            continue
        for _ in range(options.updates or len(path)):
            rows = rng.integers(len(states), size=options.batch)
            s, a, r, n, e = (torch.from_numpy(part[rows]) for part in (states, actions, rewards, nexts, ends))
            with torch.no_grad():
                target = r + (1.0 - e) * slow_critic(torch.cat([n, slow_actor(n)], dim=1))
            critic_steps.zero_grad()
            F.mse_loss(critic(torch.cat([s, a], dim=1)), target).backward()
            critic_steps.step()
            actor_steps.zero_grad()
            (-critic(torch.cat([s, actor(s)], dim=1)).mean()).backward()
            actor_steps.step()
            for slow, fast in ((slow_actor, actor), (slow_critic, critic)):
                for old_weight, weight in zip(slow.parameters(), fast.parameters(), strict=True):
                    old_weight.data.lerp_(weight.data, options.tau)
    return best, actor


def main() -> None:
    """Train as the command line says."""
    options, began = parser.parse_args(), time.monotonic()
    best, actor = train(options)
    if options.save:
        torch.save(actor.state_dict(), options.save)
    seconds = time.monotonic() - began
    print(f"best reward {best:.4f} in {options.episodes} episodes and {seconds:.0f} s, seed {options.seed}")


if __name__ == "__main__":
    main()
