"""Many episodes at once in one process: what `gymnasium.make_vec` makes unless it is asked for "sync" or "async"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from amc_env.embedding import PREVIOUS_RATIO, REDUCED
from amc_env.env import PruningEnv
from amc_env.problem import PruningProblem
from hw.cost import IntArray

Observations = NDArray[np.float32]
Flags = NDArray[np.bool_]
Rewards = NDArray[np.float64]


class PruningVectorEnv(VectorEnv[Observations, NDArray[np.float32], NDArray[Any]]):
    """`num_envs` environments on one problem, stepped as one: an episode has as many steps for all of them.

    Plays as Gymnasium's `SyncVectorEnv` of `PruningEnv`s does, seeds and infos included; the step behind the last of an
    episode resets (`AutoresetMode.NEXT_STEP`). The problem is shared: what one has evaluated is known to all.

    Args:
        num_envs: how many.
        problem, budget, real: as of `PruningEnv`.
        options: others of `PruningEnv`.
    """

    metadata = {**PruningEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        problem: PruningProblem | str | None = None,
        *,
        budget: Mapping[str, float | str] | None = None,
        real: Mapping[str, str | Path] | None = None,
        **options: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs: expected at least 1, got {num_envs}")
        first = PruningEnv(problem, budget=budget, real=real, **options)
        self.problem, self.num_envs, self.render_mode = first.problem, num_envs, first.render_mode
        self.envs = [first, *(PruningEnv(self.problem, **options) for _ in range(num_envs - 1))]
        self.single_observation_space, self.single_action_space = first.observation_space, first.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._choices = [np.array(decision.choices) for decision in self.problem.decisions]
        self._all: Flags = np.ones(num_envs, dtype=np.bool_)
        self._none: Flags = np.zeros(num_envs, dtype=np.bool_)
        #: the next decision; None before the first reset
        self._step: int | None = None
        #: int64 (num_envs, decisions): what is kept, all units of the decisions to come
        self._widths: IntArray = np.empty(0, dtype=np.int64)
        self._limits: list[NDArray[np.float64]] = []

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Begin all episodes anew; seed is that of the first, the next has the next, or one for each."""
        if options and "reset_mask" in options:
            raise ValueError("options: reset_mask is not for these environments, whose episodes end together")
        if seed is None or isinstance(seed, int):
            seeds: Sequence[int | None] = [None if seed is None else seed + index for index in range(self.num_envs)]
        else:
            seeds = seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed: expected one for each of {self.num_envs} environments, got {len(seeds)}")
        for env, own in zip(self.envs, seeds, strict=True):
            env.reset(seed=own, options=options)
        problems = [env.embedding.problem for env in self.envs]
        budgets = range(len(self.problem.budgets))
        self._limits = [np.array([problem.budgets[index].limit for problem in problems]) for index in budgets]
        self._static = np.stack([env.embedding.static for env in self.envs], axis=1)
        self._widths = np.tile(np.array(self.problem.dense_widths), (self.num_envs, 1))
        self._step = 0
        return self._static[0].copy(), {}

    def step(self, actions: NDArray[np.float32]) -> tuple[Observations, Rewards, Flags, Flags, dict[str, Any]]:
        """One decision of each episode, float32 (num_envs, 1)."""
        step, rewards = self._step, np.zeros(self.num_envs)
        if step is None:
            raise RuntimeError("step: call reset() first")
        if step == len(self.problem.decisions):
            observations, infos = self.reset()
            return observations, rewards, self._none.copy(), self._none.copy(), infos
        ratios = np.asarray(actions, dtype=np.float64)
        if ratios.shape != (self.num_envs, 1):
            raise ValueError(f"actions: expected shape {(self.num_envs, 1)}, got {ratios.shape}")
        if (wrong := ratios[~((ratios >= 0.0) & (ratios < 1.0))]).size:
            raise ValueError(f"action: expected a ratio removed in [0, 1), got {wrong[0]}")
        self._step = step + 1
        decision = self.problem.decisions[step]
        chosen = np.searchsorted(decision.midpoints, decision.size * (1.0 - ratios[:, 0]), side="right")
        if step + 1 == len(self.problem.decisions):
            return self._finish(actions)
        if self.envs[0].constraint == "clamp":
            chosen = self._clamp(step, chosen)
        kept = self._choices[step][chosen]
        self._widths[:, step] = kept
        observations = self._static[step + 1].copy()
        name = self.problem.feature_cost
        reduced = 1.0 - self.problem.costs_of_plans(name, self._widths) / self.problem.dense_costs[name]
        observations[:, REDUCED] = reduced.clip(0.0, 1.0)
        observations[:, PREVIOUS_RATIO] = 1.0 - kept / decision.size
        infos = {
            "decision": np.full(self.num_envs, decision.name, dtype=object), "_decision": self._all.copy(),
            "kept": kept, "_kept": self._all.copy(),
        }  # fmt: skip
        return observations, rewards, self._none.copy(), self._none.copy(), infos

    def render(self) -> tuple[Any, ...] | None:
        """What each environment renders."""
        if self.render_mode is None:
            return None
        if self._step is not None and self._step < len(self.problem.decisions):
            self._tell(self._step)
        return tuple(env.render() for env in self.envs)

    def _clamp(self, step: int, chosen: IntArray) -> IntArray:
        """For each, the index of the largest width up to that chosen which leaves the budgets within reach."""
        widths = self._widths.copy()
        widths[:, step + 1 :] = self.problem.smallest_widths[step + 1 :]

        def feasible(indices: IntArray) -> Flags:
            widths[:, step] = self._choices[step][indices]
            within = self._all
            for budget, limits in zip(self.problem.budgets, self._limits, strict=True):
                within = within & (self.problem.costs_of_plans(budget.cost, widths) <= limits)
            return within

        low, high = np.where(feasible(chosen), chosen, 0), chosen
        while (high - low).max() > 1:
            middle = (low + high) // 2
            within = feasible(middle)
            low, high = np.where(within, middle, low), np.where(within, high, middle)
        return low

    def _finish(self, actions: NDArray[np.float32]) -> tuple[Observations, Rewards, Flags, Flags, dict[str, Any]]:
        """The last step, by the environments themselves: each evaluates its plan."""
        self._tell(len(self.problem.decisions) - 1)
        infos: list[dict[str, Any]] = []
        observations, rewards = np.empty_like(self._static[0]), np.empty(self.num_envs)
        for index, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            observations[index], rewards[index], _, _, info = env.step(action)
            infos.append(info)
        return observations, rewards, self._all.copy(), self._none.copy(), _merged(infos)

    def _tell(self, steps: int) -> None:
        """Tell the environments what was decided in so many steps."""
        for env, widths in zip(self.envs, self._widths, strict=True):
            env.decided(widths[:steps].tolist())


def _merged(infos: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What Gymnasium's vector environments make of infos: an array for each key, and which environments have it."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for info in infos for key in info):
        has: Flags = np.array([key in info for info in infos])
        values = [info[key] for info in infos if key in info]
        if isinstance(values[0], Mapping):
            merged[key] = _merged(values)
        else:
            plain = isinstance(values[0], (int, float))
            merged[key] = np.zeros(len(infos), type(values[0])) if plain else np.full(len(infos), None, dtype=object)
            merged[key][has] = values
        merged[f"_{key}"] = has
    return merged
