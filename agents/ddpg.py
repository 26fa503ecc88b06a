"""DDPG as [AMC] uses it (arXiv 1802.03494, section 3.3): an actor that chooses one ratio per decision."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from agents.base import Agent, BestSoFar, OnEvaluation
from amc_env.env import PruningEnv
from amc_env.problem import Evaluation, PruningProblem


class DDPG(Agent):
    """Deep deterministic policy gradient on stable-baselines3; one episode of the environment is one evaluation.

    The actor sees the embedding of a decision and gives its ratio; truncated-normal noise explores around it. When
    an episode has ended, each of its steps is given the final reward, and critic and actor are updated once per
    decision. The result depends on the problem, the settings, `max_evaluations` and `seed` alone; networks,
    exploration and replay have generators of their own.

    Differences from the paper (`PAPER` is the agent without the first four):
        - `constraint="fit"`: a finished plan is scaled to the budget, from above or from below. The paper's
          Algorithm 1, "clamp", only prunes more: it leaves unused what a plan is below the budget.
          On toy problems neither is better throughout.
        - `stored_action="executed"`: the replay holds the ratios after rounding and constraint, with the states that
          these pass through, so that the critic sees what was scored. The released code stores the actor's ratio.
        - `warmup_episodes` is a third of the evaluations, at most the paper's 100.
        - Sigma falls by the factor per episode that makes it `final_sigma` in the last one, however many there are.
          The released code multiplies by 0.95.
        - The warm-up explores with constant sigma around the untrained actor, as the paper says; the released code
          draws uniform ratios.
        - The baseline is a moving average over episodes; the released code updates it with each minibatch.
        - The actor ends in tanh scaled to [0, 1), which is a sigmoid of twice the argument.
        - Nothing is learned after the last episode.

    Attributes:
        constraint: how the environment keeps the budget; see `PruningEnv`.
        infeasible_reward: reward of an episode over budget ("strict" only); finite, no better than any feasible one.
        warmup: "noise" explores around the untrained actor; "budget" plays random plans brought to the budget.
        warmup_episodes: episodes before learning starts; None: a third of the evaluations, at most 100.
        hidden: units of the hidden layers of actor and critic.
        actor_learning_rate, critic_learning_rate: of Adam.
        tau: fraction by which the target networks follow at each update.
        discount: gamma. With the final reward at every step and 1, the critic estimates the reward times the
            decisions left; with 0, the reward itself.
        batch_size: transitions per update.
        replay_size: transitions kept.
        updates_per_decision: updates at the end of an episode = this * number of decisions.
        sigma: width of the truncated normal in the warm-up, as a ratio.
        sigma_decay: factor per episode after the warm-up; None: such that sigma ends at `final_sigma`.
        final_sigma: sigma in the last episode, if `sigma_decay` is None.
        baseline_decay: of the moving average of rewards that is subtracted.
        stored_action: what the critic learns of: the "executed" ratios or the "raw" ones that the actor chose.
    """

    kind: Literal["ddpg"] = "ddpg"
    constraint: Literal["fit", "clamp", "strict"] = "fit"
    infeasible_reward: float = -1.0
    warmup: Literal["noise", "budget"] = "noise"
    warmup_episodes: int | None = Field(default=None, ge=0)
    hidden: tuple[int, ...] = Field(default=(300, 300), min_length=1)
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

    def warmup_for(self, evaluations: int) -> int:
        """Warm-up episodes of a search of so many evaluations."""
        return min(100, evaluations // 3) if self.warmup_episodes is None else self.warmup_episodes

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        self.check(problem, max_evaluations)
        from agents.ddpg_sb3 import AMCLearner, ReportEpisodes

        env = PruningEnv(problem, constraint=self.constraint, infeasible_reward=self.infeasible_reward)
        best = BestSoFar(on_evaluation)
        learner = AMCLearner(env, self, episodes=max_evaluations, seed=seed)
        steps = max_evaluations * len(problem.decisions)
        learner.learn(steps, callback=ReportEpisodes(env, best, max_evaluations))
        return best.evaluation

    def check(self, problem: PruningProblem, max_evaluations: int) -> None:
        """Refuse a penalty that would make a violated budget the better choice."""
        if self.constraint == "strict" and math.isinf(problem.worst_error):
            raise ValueError(
                "constraint: 'strict' needs an objective whose error has a bound, such as top1, since the reward of a "
                "violated budget must be no better than any other; take 'fit' or 'clamp'"
            )
        counts = {"error": math.e, "error_macs": problem.dense_costs["macs"]}
        worst = -problem.worst_error * math.log(counts.get(problem.reward_form, problem.dense_costs["size"] / 4))
        if self.constraint == "strict" and self.infeasible_reward > worst:
            raise ValueError(
                f"infeasible_reward: expected at most {worst:.4g}, the reward {problem.reward_form!r} of a network "
                f"that is always wrong, got {self.infeasible_reward}: the agent would learn to violate the budget"
            )


#: as in the paper and its released code; `scripts/compare_agents_toy.py` compares it with the defaults
PAPER = DDPG(
    name="ddpg-paper",
    constraint="clamp",
    warmup_episodes=100,
    sigma_decay=0.95,
    stored_action="raw",
)
