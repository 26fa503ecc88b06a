"""DDPG as [AMC] uses it (arXiv 1802.03494, section 3.3): an actor that chooses one ratio per decision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from agents.off_policy import Deterministic

if TYPE_CHECKING:
    from agents.off_policy_sb3 import AMCLearner


class DDPG(Deterministic):
    """Deep deterministic policy gradient on stable-baselines3; one episode of the environment is one evaluation.

    The actor sees the embedding of a decision and gives its ratio; truncated-normal noise explores around it. When
    an episode has ended, each of its steps is given the final reward, and critic and actor are updated once per
    decision. The result depends on the problem, the settings, `max_evaluations` and `seed` alone; networks,
    exploration and replay have generators of their own. The settings are those of `OffPolicy` and `Deterministic`.

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
        - `warmup="heuristic"`, `residual` and `budgets` are not in the paper; they are off unless asked for.
    """

    kind: Literal["ddpg"] = "ddpg"

    def _learner(self) -> type[AMCLearner]:
        from agents.off_policy_sb3 import DDPGLearner

        return DDPGLearner


#: as in the paper and its released code; `scripts/compare_agents_toy.py` compares it with the defaults
PAPER = DDPG(
    name="ddpg-paper",
    constraint="clamp",
    warmup_episodes=100,
    sigma_decay=0.95,
    stored_action="raw",
)
#: begins with local search from the allocation of the reconstruction errors, and refines that allocation. On four toy
#: problems of six decisions and interaction 2 it lost to local search alone: regret 0.0028 against 0.0000
REFINE = DDPG(name="ddpg-refine", warmup="heuristic", residual=0.2, sigma=0.2, final_sigma=0.02)
