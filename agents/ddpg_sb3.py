"""[AMC]'s DDPG on stable-baselines3: two learning rates, truncated-normal exploration, updates at the episode's end."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from gymnasium.spaces import Box
from numpy.typing import NDArray
from stable_baselines3 import DDPG
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.utils import update_learning_rate

from agents.noise import decay_for, truncated_normal
from agents.replay import Episode, EpisodeReplay
from amc_env.embedding import LayerEmbedding
from amc_env.env import PruningEnv
from amc_env.problem import Evaluation

if TYPE_CHECKING:
    from agents.ddpg import DDPG as Settings


class AMCLearner(DDPG):
    """stable-baselines3's DDPG with the changes of [AMC] section 3.3.

    Args:
        env: the environment; its `infeasible_reward` must be finite.
        settings: of the agent.
        episodes: how many will be played; the noise falls over them.
        seed: of the networks, the exploration and the sampling.

    Raises:
        ValueError: the environment's `infeasible_reward` is not finite.
    """

    def __init__(self, env: PruningEnv, settings: Settings, *, episodes: int, seed: int) -> None:
        if not math.isfinite(env.infeasible_reward):
            raise ValueError(
                f"DDPG needs finite rewards, but the environment's infeasible_reward is {env.infeasible_reward}: one "
                f"infinite reward turns the networks to NaN. Use PruningEnv(problem, infeasible_reward=-1.0)."
            )
        self._env = env
        self._space = cast(Box, env.action_space)
        self._settings = settings
        self._steps = len(env.problem.decisions)
        self._warmup = settings.warmup_for(episodes)
        self._decay = settings.sigma_decay or decay_for(settings.sigma, settings.final_sigma, episodes - self._warmup)
        networks, exploration, sampling = np.random.SeedSequence(seed).spawn(3)
        self._rng = np.random.default_rng(exploration)
        self._plan: NDArray[np.float64] | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(networks.generate_state(1)[0]))
            super().__init__(
                "MlpPolicy",
                env,
                learning_rate=settings.critic_learning_rate,
                buffer_size=settings.replay_size,
                learning_starts=self._warmup * self._steps,
                batch_size=settings.batch_size,
                tau=settings.tau,
                gamma=settings.discount,
                train_freq=(1, "episode"),
                gradient_steps=settings.updates_per_decision * self._steps,
                replay_buffer_class=EpisodeReplay,
                replay_buffer_kwargs={
                    "seed": sampling,
                    "baseline_decay": settings.baseline_decay,
                    "rewrite": self._executed_episode if settings.stored_action == "executed" else None,
                },
                policy_kwargs={"net_arch": list(settings.hidden), "optimizer_kwargs": {"fused": True}},
                device="cpu",
            )
        self.set_logger(Logger(None, []))

    def sigma(self, episode: int) -> float:
        """Width of the exploration in episode 0, 1, ...: constant in the warm-up, then falling by a factor each."""
        return self._settings.sigma * self._decay ** max(0, episode - self._warmup)

    def _update_learning_rate(self, optimizers: list[torch.optim.Optimizer] | torch.optim.Optimizer) -> None:
        """Set [AMC]'s two rates where stable-baselines3 sets one; called with [actor, critic] before each update."""
        update_learning_rate(self.actor.optimizer, self._settings.actor_learning_rate)
        update_learning_rate(self.critic.optimizer, self._settings.critic_learning_rate)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """The ratio to play, (1, 1), and the same scaled to [-1, 1] for the replay."""
        step = self.num_timesteps % self._steps
        if self._episode_num < self._warmup and self._settings.warmup == "budget":
            ratio = self._random_plan(step)
        else:
            mean = float(self.predict(np.asarray(self._last_obs))[0].item())
            ratio = truncated_normal(self._rng, mean, self.sigma(self._episode_num))
        action = np.array([[ratio]], dtype=np.float32).clip(self._space.low, self._space.high)
        return action, self.policy.scale_action(action)

    def _random_plan(self, step: int) -> float:
        """The ratio at `step` of a uniformly random plan brought to the budget, drawn anew for each episode."""
        problem = self._env.problem
        if step == 0 or self._plan is None:
            self._plan = problem.fit_to_budget(self._rng.uniform(0.0, problem.ratios(problem.smallest_widths)))
        return float(self._plan[step])

    def _executed_episode(self) -> Episode:
        """The episode that just ended, as if its rounded and clamped or fitted ratios had been chosen."""
        evaluation = self._env.last_evaluation
        if evaluation is None:
            raise RuntimeError("no episode has ended yet")
        embed = LayerEmbedding(self._env.problem)
        kept = list(evaluation.widths)
        observations = np.stack([embed(step, kept[:step]) for step in range(self._steps)])
        ratios = np.array(evaluation.ratios, dtype=np.float32).reshape(-1, 1)
        return observations, self.policy.scale_action(ratios)


class ReportEpisodes(BaseCallback):
    """Passes on the evaluation that ends each episode and stops learning after the last."""

    def __init__(self, env: PruningEnv, report: Callable[[Evaluation], None], episodes: int) -> None:
        super().__init__()
        self._env, self._report, self._left = env, report, episodes

    def _on_step(self) -> bool:
        if self.locals["dones"][0] and self._env.last_evaluation is not None:
            self._report(self._env.last_evaluation)
            self._left -= 1
        return self._left > 0
