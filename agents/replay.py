"""Replay of whole episodes: every step has the final reward, less a moving-average baseline ([AMC] section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

Array = NDArray[Any]

#: the steps of the episode that just ended: observations (steps, features) and actions (steps, 1) in [-1, 1]
Episode = tuple[Array, Array]


class EpisodeReplay(ReplayBuffer):
    """A ring of transitions that are written when their episode ends.

    Each transition of an episode carries its final reward R; a sample returns R - b, where b is the exponential
    moving average of the final rewards so far: b = decay * b + (1 - decay) * R, starting at the first R. Sampling
    uses its own generator.

    Args:
        buffer_size: transitions kept.
        observation_space: of the environment.
        action_space: of the environment.
        seed: of the sampling.
        baseline_decay: of the moving average, in [0, 1].
        rewrite: returns the episode as it was executed; None stores it as it was chosen.
        **options: of stable-baselines3's ReplayBuffer.

    Raises:
        ValueError: an episode ends with a reward that is not finite.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Box,
        action_space: spaces.Box,
        *,
        seed: np.random.SeedSequence,
        baseline_decay: float,
        rewrite: Callable[[], Episode] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(buffer_size, observation_space, action_space, **options)
        self._rng = np.random.default_rng(seed)
        self._decay = baseline_decay
        self._rewrite = rewrite
        self._pending: list[tuple[Array, Array]] = []
        #: moving average of the final rewards; None before the first episode has ended
        self.baseline: float | None = None

    def add(
        self, obs: Array, next_obs: Array, action: Array, reward: Array, done: Array, infos: list[dict[str, Any]]
    ) -> None:
        """Hold the step; at the end of the episode write all its transitions."""
        self._pending.append((obs[0].copy(), action[0].copy()))
        if not done[0]:
            return
        final = float(reward[0])
        if not math.isfinite(final):
            raise ValueError(
                f"the episode ended with a reward of {final}: a learner needs finite rewards, one infinite reward "
                f"turns its networks to NaN. Give the environment a finite infeasible_reward, for example -1.0."
            )
        self.baseline = final if self.baseline is None else self._decay * self.baseline + (1.0 - self._decay) * final
        if self._rewrite is None:
            observations, actions = (np.stack(column) for column in zip(*self._pending, strict=True))
        else:
            observations, actions = self._rewrite()
        self._pending = []
        following = np.concatenate([observations[1:], next_obs])
        last = len(observations) - 1
        for step, row in enumerate(zip(observations, following, actions, strict=True)):
            state, next_state, act = (value[np.newaxis] for value in row)
            super().add(state, next_state, act, np.array([final]), np.array([step == last]), infos)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """A batch drawn uniformly with replacement, the current baseline subtracted from its rewards."""
        rows = self._rng.integers(0, self.size(), size=batch_size)
        rewards = self.rewards[rows] - (self.baseline or 0.0)
        columns = (self.observations[rows, 0], self.actions[rows, 0], self.next_observations[rows, 0], self.dones[rows])
        return ReplayBufferSamples(*(torch.as_tensor(column, dtype=torch.float32) for column in (*columns, rewards)))
