"""DDPG as [AMC] uses it (arXiv 1802.03494, section 3.3): an actor that chooses one ratio per decision."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agents.base import Agent, BestSoFar, OnEvaluation
from amc_env.env import PruningEnv
from amc_env.problem import Evaluation, PruningProblem


class DDPG(Agent):
    """DDPG."""

    kind: Literal["ddpg"] = "ddpg"
    constraint: Literal["clamp", "fit", "strict"] = "clamp"
    infeasible_reward: float = -1.0
    warmup: Literal["noise", "budget"] = "noise"
    warmup_episodes: int | None = Field(default=None, ge=0)
    hidden: tuple[int, ...] = (300, 300)
    actor_learning_rate: float = Field(default=1e-4, gt=0)
    critic_learning_rate: float = Field(default=1e-3, gt=0)
    tau: float = Field(default=0.01, gt=0, le=1)
    discount: float = Field(default=1.0, ge=0, le=1)
    batch_size: int = Field(default=64, ge=1)
    replay_size: int = Field(default=2000, ge=1)
    updates_per_decision: int = Field(default=1, ge=1)
    sigma: float = Field(default=0.5, gt=0)
    sigma_decay: float | None = Field(default=None, gt=0, le=1)
    final_sigma: float = Field(default=0.05, gt=0)
    baseline_decay: float = Field(default=0.95, ge=0, le=1)
    stored_action: Literal["executed", "raw"] = "executed"

    def warmup_for(self, episodes: int) -> int:
        """Warm-up episodes of a search of so many."""
        return min(100, episodes // 3) if self.warmup_episodes is None else self.warmup_episodes

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        from agents.ddpg_sb3 import AMCLearner, ReportEpisodes

        env = PruningEnv(problem, constraint=self.constraint, infeasible_reward=self.infeasible_reward)
        best = BestSoFar(on_evaluation)
        learner = AMCLearner(env, self, episodes=max_evaluations, seed=seed)
        steps = max_evaluations * len(problem.decisions)
        learner.learn(steps, callback=ReportEpisodes(env, best, max_evaluations))
        return best.evaluation
