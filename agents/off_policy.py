"""What the off-policy learners DDPG, TD3 and SAC share: episodes, replay, warm start, several budgets."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from agents.base import BestSoFar, OnEvaluation
from agents.measured_curves import CurveAgent
from amc_env.env import PruningEnv
from amc_env.front import budget_views, front
from amc_env.problem import Evaluation, FloatArray, PruningProblem

if TYPE_CHECKING:
    from agents.off_policy_sb3 import AMCLearner


class OffPolicy(CurveAgent):
    """An actor that chooses one ratio per decision, and critics, on stable-baselines3; an episode is one evaluation.

    When an episode has ended, each of its steps is given the final reward, and critics and actor are updated once per
    decision. Networks, exploration, replay and environment have random generators of their own.

    Attributes:
        constraint: how the environment keeps the budget; see `PruningEnv`.
        infeasible_reward: reward of an episode over budget ("strict" only); finite, no better than any feasible one.
        warmup: "noise" explores around the untrained actor; "budget" plays random plans brought to the budget;
            "heuristic" plays the allocation of the error curves, and then what local search makes of it.
        warmup_episodes: episodes before learning starts; None: a third of the evaluations, at most 100.
        residual: if above 0, the actor corrects the ratios of the allocation of the error curves, each by at most
            this; it begins with no correction.
        measured: take `measured_curves` for the two above; refused without them.
        budgets: fractions, in (0, 1], of the dense cost that the problem's one budget limits. Each episode is played
            under one of them or the problem's own, all in turn; the actor sees which. `series` is then the front: for
            each budget the best network that holds it. Those over the problem's own budget are probes.
        hidden: units of the hidden layers of actor and critic.
        actor_learning_rate, critic_learning_rate: of Adam.
        tau: fraction by which the target networks follow at each update.
        discount: gamma. With the final reward at every step and 1, the critic estimates the reward times the
            decisions left; with 0, the reward itself.
        batch_size: transitions per update.
        replay_size: transitions kept.
        updates_per_decision: updates at the end of an episode = this * number of decisions.
        baseline_decay: of the moving average of rewards that is subtracted.
        stored_action: what the critic learns of: the "executed" ratios or the "raw" ones that the actor chose.
    """

    constraint: Literal["fit", "clamp", "strict"] = "fit"
    infeasible_reward: float = -1.0
    warmup: Literal["noise", "budget", "heuristic"] = "noise"
    warmup_episodes: int | None = Field(default=None, ge=0)
    residual: float = Field(default=0.0, ge=0, le=1)
    budgets: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    hidden: tuple[int, ...] = Field(default=(300, 300), min_length=1)
    actor_learning_rate: float = Field(default=1e-4, gt=0)
    critic_learning_rate: float = Field(default=1e-3, gt=0)
    tau: float = Field(default=0.01, gt=0, le=1)
    discount: float = Field(default=1.0, ge=0, le=1)
    batch_size: int = Field(default=64, ge=1)
    replay_size: int = Field(default=2000, ge=1)
    updates_per_decision: int = Field(default=1, ge=1)
    baseline_decay: float = Field(default=0.95, ge=0, le=1)
    stored_action: Literal["executed", "raw"] = "executed"

    @property
    def needs_error_curves(self) -> bool:  # type: ignore[override]  # here the settings decide
        """Whether it asks for `problem.reconstruction_errors()`."""
        return self.warmup == "heuristic" or self.residual > 0.0

    @model_validator(mode="after")
    def _measures_what_it_uses(self) -> Self:
        if self.measured and not self.needs_error_curves:
            raise ValueError("measured: the error curves are for warmup 'heuristic' and residual; set one of them")
        return self

    def warmup_for(self, evaluations: int) -> int:
        """Warm-up episodes of a search of so many evaluations."""
        return min(100, evaluations // 3) if self.warmup_episodes is None else self.warmup_episodes

    @abstractmethod
    def _learner(self) -> type[AMCLearner]:
        """What learns; imports stable-baselines3."""

    def learner(
        self, env: PruningEnv, *, episodes: int, seed: int, curves: Sequence[FloatArray] | None = None
    ) -> AMCLearner:
        """What learns in this environment; the arguments are those of `AMCLearner`."""
        return self._learner()(env, self, episodes=episodes, seed=seed, curves=curves)

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        if max_evaluations < 1:
            return None
        self.check(problem, max_evaluations)
        from agents.off_policy_sb3 import ReportEpisodes

        env = PruningEnv(
            problem, constraint=self.constraint, infeasible_reward=self.infeasible_reward, budgets=self.budgets
        )
        best = BestSoFar(on_evaluation)
        curves = self.curves(problem, best) if self.measured else None
        episodes = max_evaluations - best.count
        learner = self.learner(env, episodes=episodes, seed=seed, curves=curves)
        learner.learn(episodes * len(problem.decisions), callback=ReportEpisodes(env, best, episodes))
        return best.evaluation

    def check(self, problem: PruningProblem, max_evaluations: int) -> None:
        """Refuse a penalty that would make a violated budget the better choice, and budgets that cannot be searched."""
        super().check(problem, max_evaluations)
        left = max_evaluations - self.probes(problem)
        if self.budgets and left < len(budget_views(problem, self.budgets)):
            raise ValueError(
                f"budgets: {len(budget_views(problem, self.budgets))} budgets, with the job's own, take at least as "
                f"many evaluations, got {left}{' beside those of the curves' if self.measured else ''}"
            )
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

    @property
    def needs_budget(self) -> bool:
        return bool(self.budgets)

    def series(self, problem: PruningProblem, evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
        """With `budgets` the front: for each the best evaluation that holds it."""
        return front(problem, self.budgets, evaluations) if self.budgets else ()

    def series_budget(self, problem: PruningProblem, evaluation: Evaluation) -> float | None:
        """Of `budgets` and the problem's own the smallest."""
        views = budget_views(problem, self.budgets).items() if self.budgets else ()
        return min((fraction for fraction, view in views if view.violation(evaluation.costs) == 0.0), default=None)


class Deterministic(OffPolicy):
    """An off-policy learner whose actor gives one ratio, around which truncated-normal noise explores.

    Attributes:
        sigma: width of the truncated normal in the warm-up, as a fraction of the range of the actor: a ratio, or a
            share of 2 * `residual`.
        sigma_decay: factor per episode after the warm-up; None: such that sigma ends at `final_sigma`.
        final_sigma: sigma in the last episode, if `sigma_decay` is None.
    """

    sigma: float = Field(default=0.5, gt=0)
    sigma_decay: float | None = Field(default=None, gt=0, le=1)
    final_sigma: float = Field(default=0.05, gt=0)
