from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from amc_env import PruningEnv, ToyProblem
from amc_env.wrappers import BudgetFeature, DiscreteWidths, ErrorShaping, FinitePenalty, RawObservation

MAKERS: dict[str, Any] = {
    "FinitePenalty": FinitePenalty,
    "RawObservation": RawObservation,
    "BudgetFeature": BudgetFeature,
    "ErrorShaping": ErrorShaping,
    "DiscreteWidths": DiscreteWidths,
}


def play(env: gymnasium.Env[Any, Any], actions: list[Any]) -> list[float]:
    """The rewards of an episode of these actions."""
    env.reset(seed=0)
    return [float(env.step(action)[1]) for action in actions]


def ratios(*values: float) -> list[np.ndarray[Any, Any]]:
    return [np.array([value], dtype=np.float32) for value in values]


@pytest.mark.filterwarnings(
    "ignore:.*A Box observation space:UserWarning", "ignore:.*different from the unwrapped:UserWarning"
)
@pytest.mark.parametrize("name", MAKERS)
def test_a_wrapped_environment_is_one_of_gymnasium(name: str) -> None:
    check_env(MAKERS[name](PruningEnv(ToyProblem(3), constraint="fit")), skip_render_check=True)


@pytest.mark.parametrize("name", MAKERS)
def test_a_wrapper_survives_the_json_of_a_spec(name: str) -> None:
    env = MAKERS[name](gymnasium.make("amc_env:Pruning-v0", problem="toy5-v0", constraint="fit"))
    spec = gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json())
    again = gymnasium.make(spec)
    first, second = env.reset(seed=3)[0], again.reset(seed=3)[0]
    assert np.array_equal(first, second)
    assert type(again).__name__ == name


def test_a_violated_budget_costs_a_finite_penalty() -> None:
    env = PruningEnv(ToyProblem(2))
    assert play(env, ratios(0.0, 0.0)) == [0.0, -math.inf]
    assert play(FinitePenalty(env, penalty=-2.0), ratios(0.0, 0.0)) == [0.0, -2.0]
    # dense: twice the budget of half the MACs, an excess of 1
    assert play(FinitePenalty(env, penalty=-2.0, per_violation=0.5), ratios(0.0, 0.0)) == [0.0, -2.5]
    kept = play(env, ratios(0.6, 0.6))
    assert play(FinitePenalty(env), ratios(0.6, 0.6)) == kept


@pytest.mark.parametrize("penalty", [math.nan, -math.inf])
def test_refuses_a_penalty_that_is_not_finite(penalty: float) -> None:
    with pytest.raises(ValueError, match=rf"^penalty, per_violation: expected finite numbers, got {penalty} and 0.0$"):
        FinitePenalty(PruningEnv(), penalty=penalty)


def test_raw_features_are_channels_pixels_and_macs() -> None:
    problem = ToyProblem(3, channels=8)
    env = RawObservation(PruningEnv(problem))
    observation, _ = env.reset()
    costs = problem.channel_costs
    assert observation[:8].tolist() == [0, 8, costs[0], 1, 1, 1, 1, 8 * costs[0]]
    assert observation[9] == pytest.approx(8 * (costs[1] + costs[2]))
    observation = env.step(ratios(0.5)[0])[0]
    assert observation[0] == 1
    assert observation[8] == pytest.approx(4 * costs[0])
    assert observation[10] == pytest.approx(0.5)
    assert env.observation_space.contains(observation)


def test_the_budget_is_the_twelfth_feature() -> None:
    env = BudgetFeature(PruningEnv(ToyProblem(3, budget={"macs": "30%"})))
    observation, _ = env.reset()
    assert observation.shape == (12,)
    assert observation[11] == pytest.approx(0.3)


def test_shaping_gives_back_at_the_end_what_it_took() -> None:
    problem = ToyProblem(3, interaction=1.0)
    plan = ratios(0.25, 0.5, 0.75)
    plain = play(PruningEnv(problem), plan)
    shaped = play(ErrorShaping(PruningEnv(problem), scale=2.0), plan)
    errors = [curve[problem.decisions[0].choices.index(kept)] for curve, kept in
              zip(problem.reconstruction_errors(), (12, 8, 4), strict=True)]  # fmt: skip
    assert shaped[:2] == pytest.approx([-2 * errors[0], -2 * errors[1]])
    assert shaped[2] == pytest.approx(plain[2] + 2 * (errors[0] + errors[1]))
    assert sum(shaped) == pytest.approx(sum(plain))


def test_discrete_actions_are_the_widths_from_the_narrowest_to_the_dense() -> None:
    env = DiscreteWidths(PruningEnv(ToyProblem(2, channels=5)))
    assert env.action_space == gymnasium.spaces.Discrete(5)
    env.reset()
    assert env.step(np.int64(0))[4]["kept"] == 1
    assert env.step(np.int64(4))[4]["kept"] == 5
    coarse = DiscreteWidths(PruningEnv(ToyProblem(1, channels=9)), levels=3)
    assert [(coarse.reset(), coarse.step(np.int64(level))[4]["kept"])[1] for level in range(3)] == [1, 5, 9]


def test_refuses_one_level() -> None:
    with pytest.raises(ValueError, match=r"^levels: expected at least 2, got 1$"):
        DiscreteWidths(PruningEnv(), levels=1)


def test_refuses_another_environment() -> None:
    with pytest.raises(TypeError, match=r"^expected a PruningEnv below the wrappers, got CartPoleEnv$"):
        RawObservation(gymnasium.make("CartPole-v1"))
