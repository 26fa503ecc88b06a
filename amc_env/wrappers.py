"""Wrappers of `PruningEnv`: other observations, other actions, rewards that a learner can take.

They are Gymnasium's own kind, take plain values, and survive the JSON of an environment's spec.
"""

from __future__ import annotations

import math
from typing import Any, SupportsFloat

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from amc_env.embedding import REDUCED, REST
from amc_env.env import Observation, PruningEnv
from amc_env.front import budget_fraction

Action = NDArray[np.float32]
Step = tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]
_Env = gymnasium.Env[Observation, Action]


def pruning_env(env: gymnasium.Env[Any, Any]) -> PruningEnv:
    """The environment below all wrappers.

    Raises:
        TypeError: it is another one.
    """
    found = env.unwrapped
    if not isinstance(found, PruningEnv):
        raise TypeError(f"expected a PruningEnv below the wrappers, got {type(found).__name__}")
    return found


class FinitePenalty(gymnasium.Wrapper[Observation, Action, Observation, Action], RecordConstructorArgs):
    """A finite reward where a budget is violated, in the place of -inf, which no network can learn from.

    Args:
        env: with `infeasible_reward` -inf.
        penalty: the reward, at most -1 to be worse than every feasible one of the form "error".
        per_violation: subtracted times the largest excess as a fraction of its limit, at least 0.
    """

    def __init__(self, env: _Env, penalty: float = -1.0, per_violation: float = 0.0) -> None:
        RecordConstructorArgs.__init__(self, penalty=penalty, per_violation=per_violation)
        super().__init__(env)
        if not (math.isfinite(penalty) and 0.0 <= per_violation < math.inf):
            raise ValueError(f"penalty, per_violation: expected finite numbers, got {penalty} and {per_violation}")
        self.penalty, self.per_violation = penalty, per_violation

    def step(self, action: Action) -> Step:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if float(reward) == -math.inf:
            reward = self.penalty - self.per_violation * info["violation"]
        return observation, reward, terminated, truncated, info


class RawObservation(gymnasium.ObservationWrapper[Observation, Action, Observation], RecordConstructorArgs):
    """The features in their own units: index, channels, pixels, and costs in the unit of the problem's cost."""

    def __init__(self, env: _Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        embedding = pruning_env(env).embedding
        self._scales = np.ones(env.observation_space.shape or (0,), dtype=np.float64)
        self._scales[: len(embedding.scales)] = embedding.scales
        dense = embedding.problem.dense_costs[embedding.problem.feature_cost]
        self._scales[[REDUCED, REST]] = dense
        self.observation_space = gymnasium.spaces.Box(
            np.zeros_like(self._scales, dtype=np.float32), self._scales.astype(np.float32), dtype=np.float32
        )

    def observation(self, observation: Observation) -> Observation:
        return (observation * self._scales).astype(np.float32)


class BudgetFeature(gymnasium.ObservationWrapper[Observation, Action, Observation], RecordConstructorArgs):
    """The budget as a twelfth feature, as a fraction of the dense cost; of an environment without `budgets`."""

    def __init__(self, env: _Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._fraction = np.float32(budget_fraction(pruning_env(env).problem))
        size = (env.observation_space.shape or (0,))[0] + 1
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (size,), np.float32)

    def observation(self, observation: Observation) -> Observation:
        return np.append(observation, self._fraction)


class ErrorShaping(gymnasium.Wrapper[Observation, Action, Observation, Action], RecordConstructorArgs):
    """A reward at every step: minus the reconstruction error of the decision just made, given back at the end.

    Potential-based shaping (Ng, Harada and Russell 1999) with the potential -scale * sum of the errors of the decisions
    made so far, each with all else dense, and 0 at the end: the sum over an episode, undiscounted, is that without it.

    Args:
        env: of a problem with `reconstruction_errors`.
        scale: of the potential.
    """

    def __init__(self, env: _Env, scale: float = 1.0) -> None:
        RecordConstructorArgs.__init__(self, scale=scale)
        super().__init__(env)
        problem = pruning_env(env).problem
        curves = problem.reconstruction_errors()
        self._errors = {
            decision.name: dict(zip(decision.choices, (scale * curve).tolist(), strict=True))
            for decision, curve in zip(problem.decisions, curves, strict=True)
        }
        self._potential = 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        self._potential = 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Action) -> Step:
        observation, reward, terminated, truncated, info = self.env.step(action)
        before = self._potential
        self._potential = 0.0 if terminated else before - self._errors[info["decision"]][info["kept"]]
        return observation, float(reward) + self._potential - before, terminated, truncated, info


class DiscreteWidths(gymnasium.ActionWrapper[Observation, np.int64, Action], RecordConstructorArgs):
    """Actions 0..levels-1: the allowed widths of a decision, evenly spread, from the narrowest to the dense one.

    Args:
        env: the environment.
        levels: at least 2; by default as many as the decision with the most widths has.
    """

    def __init__(self, env: _Env, levels: int | None = None) -> None:
        RecordConstructorArgs.__init__(self, levels=levels)
        super().__init__(env)
        most = max(len(decision.choices) for decision in pruning_env(env).problem.decisions)
        self.levels = max(2, most) if levels is None else levels
        if self.levels < 2:
            raise ValueError(f"levels: expected at least 2, got {levels}")
        self.action_space = gymnasium.spaces.Discrete(self.levels)

    def action(self, action: np.int64) -> Action:
        env = pruning_env(self.env)
        decision = env.problem.decisions[env.steps_made]
        place = round(int(action) * (len(decision.choices) - 1) / (self.levels - 1))
        return np.array([decision.ratio(decision.choices[place])], dtype=np.float32)
