from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import ValidationError

from agents.base import Agent
from agents.off_policy_sb3 import SACLearner
from agents.sac import SAC
from amc_env.env import PruningEnv
from amc_env.toy import ToyProblem
from tests.contracts.agent_contract import AgentContract


class TestSAC(AgentContract):
    agent: ClassVar[Agent] = SAC(hidden=(32, 32))


def learner(**settings: Any) -> SACLearner:
    env = PruningEnv(ToyProblem(4), constraint="fit", infeasible_reward=-1.0)
    return SACLearner(env, SAC(hidden=(16,), warmup_episodes=2, batch_size=8, **settings), episodes=20, seed=0)


def test_the_untrained_actor_explores_most_of_the_range_by_itself() -> None:
    model = learner()
    model._last_obs = np.zeros((1, 11), np.float32)
    draws = [model._explore() for _ in range(200)]
    assert min(draws) < 0.1
    assert max(draws) > 0.9


@pytest.mark.parametrize(("target", "falls"), [(-5.0, True), (0.69, False)])
def test_the_temperature_moves_towards_the_target_entropy(target: float, falls: bool) -> None:
    """A wide actor has more entropy than -5 nats, and less than the uniform distribution."""
    model = learner(target_entropy=target, temperature_learning_rate=0.01)
    model.learn(20 * 4)
    assert model.log_ent_coef is not None
    assert (model.log_ent_coef.exp().item() < 0.01) is falls


def test_three_learning_rates() -> None:
    model = learner(temperature_learning_rate=0.002)
    model.learn(6 * 4)
    assert model.ent_coef_optimizer is not None
    rates = [optimizer.param_groups[0]["lr"] for optimizer in (model.actor.optimizer, model.critic.optimizer)]
    assert [*rates, model.ent_coef_optimizer.param_groups[0]["lr"]] == [1e-4, 1e-3, 0.002]


def test_refuses_a_temperature_of_zero() -> None:
    with pytest.raises(ValidationError, match="temperature\n  Input should be greater than 0"):
        SAC(temperature=0.0)
