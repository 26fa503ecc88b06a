"""Soft actor-critic (Haarnoja et al., 2018, arXiv 1812.05905) on [AMC]'s environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from agents.off_policy import OffPolicy

if TYPE_CHECKING:
    from agents.off_policy_sb3 import AMCLearner


class SAC(OffPolicy):
    """Soft actor-critic: a stochastic actor explores by itself, as much as its entropy is worth.

    The temperature, by which entropy is weighed against reward, is adapted until the actor's entropy is the target.
    All else is as of `agents.ddpg.DDPG`, without its noise.

    Differences from the paper:
        - Replay, baseline and the moment of the updates are those of [AMC]: the final reward at every step, updates at
          the end of an episode. So are learning rates, tau, batch size and units.
        - The temperature begins at `temperature` (1 in stable-baselines3) and has a learning rate of its own: rewards
          here are errors, whose differences are small, and a search has few updates.
        - `discount` is 1 (0.99 in the paper): an episode ends after the last decision.

    Attributes:
        temperature: at the start.
        temperature_learning_rate: of Adam, on the logarithm of the temperature.
        target_entropy: of the actor's output in [-1, 1], in nats; uniform would be 0.69, -1 is that of a normal
            distribution of standard deviation 0.09.
    """

    kind: Literal["sac"] = "sac"
    temperature: float = Field(default=0.01, gt=0)
    temperature_learning_rate: float = Field(default=1e-3, gt=0)
    target_entropy: float = -1.0

    def _learner(self) -> type[AMCLearner]:
        from agents.off_policy_sb3 import SACLearner

        return SACLearner
