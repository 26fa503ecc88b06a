"""TD3, the successor of DDPG (Fujimoto, van Hoof, Meger, 2018, arXiv 1802.09477), on [AMC]'s environment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from agents.off_policy import Deterministic

if TYPE_CHECKING:
    from agents.off_policy_sb3 import AMCLearner


class TD3(Deterministic):
    """Twin delayed DDPG: two critics whose smaller value counts, a delayed actor, smoothed target actions.

    All else is as of `agents.ddpg.DDPG`.

    Differences from the paper:
        - Exploration, replay, baseline and the moment of the updates are those of [AMC]: truncated-normal noise that
          falls, the final reward at every step, updates at the end of an episode. So are learning rates, tau, batch
          size and units.
        - `discount` is 1 (0.99 in the paper): an episode ends after the last decision.

    Attributes:
        policy_delay: critic updates per update of the actor and of the target networks.
        target_noise: standard deviation of the noise on target actions, in units of the actor's output in [-1, 1].
        target_noise_clip: bound of that noise, in the same units.
    """

    kind: Literal["td3"] = "td3"
    policy_delay: int = Field(default=2, ge=1)
    target_noise: float = Field(default=0.2, ge=0)
    target_noise_clip: float = Field(default=0.5, ge=0)

    def _learner(self) -> type[AMCLearner]:
        from agents.off_policy_sb3 import TD3Learner

        return TD3Learner
