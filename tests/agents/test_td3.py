from __future__ import annotations

from typing import ClassVar

import pytest
from pydantic import ValidationError

from agents.base import Agent
from agents.off_policy_sb3 import TD3Learner
from agents.td3 import TD3
from amc_env.env import PruningEnv
from amc_env.toy import ToyProblem
from tests.contracts.agent_contract import AgentContract


class TestTD3(AgentContract):
    agent: ClassVar[Agent] = TD3(hidden=(32, 32))


def test_two_critics_a_delayed_actor_and_smoothed_targets() -> None:
    env = PruningEnv(ToyProblem(3), infeasible_reward=-1.0)
    settings = TD3(policy_delay=3, target_noise=0.3, target_noise_clip=0.6)
    learner = TD3Learner(env, settings, episodes=4, seed=0)
    assert len(learner.critic.q_networks) == 2
    assert (learner.policy_delay, learner.target_policy_noise, learner.target_noise_clip) == (3, 0.3, 0.6)


def test_refuses_a_delay_that_never_updates() -> None:
    with pytest.raises(ValidationError, match="policy_delay\n  Input should be greater than or equal to 1"):
        TD3(policy_delay=0)
