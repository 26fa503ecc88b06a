"""The vector environment of one process plays as Gymnasium's own vector environment of single ones does."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import VectorEnv

from amc_env.toy import ToyProblem
from amc_env.vector import PruningVectorEnv


def make(mode: str, count: int = 3, **options: Any) -> VectorEnv[Any, Any, Any]:
    return gymnasium.make_vec("amc_env:Pruning-v0", num_envs=count, vectorization_mode=mode, **options)


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Infos are equal, their types included."""
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if isinstance(value, dict):
            same(ours[key], value)
        else:
            assert ours[key].dtype == value.dtype, key
            np.testing.assert_array_equal(ours[key], value)


@pytest.mark.parametrize("constraint", ["strict", "clamp", "fit"])
@pytest.mark.parametrize("problem", ["toy5-v0", "toy20-staircase-v0", "resnet56-cifar10-v0"])
@pytest.mark.parametrize("budgets", [(), (0.8, 0.6)])
def test_plays_as_single_environments(problem: str, constraint: str, budgets: tuple[float, ...]) -> None:
    options: dict[str, Any] = {
        "problem": problem,
        "constraint": constraint,
        "budgets": budgets,
        "infeasible_reward": -1.0,
    }
    ours, theirs = make("vector_entry_point", **options), make("sync", **options)
    assert isinstance(ours.unwrapped, PruningVectorEnv)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"]
    rng = np.random.default_rng(0)
    observations, _ = ours.reset(seed=7)
    np.testing.assert_array_equal(observations, theirs.reset(seed=7)[0])
    ends = 0
    for _ in range(2 * len(ours.unwrapped.problem.decisions) + 4):
        actions = (rng.random((3, 1)) * np.array([[1.0], [0.6], [0.3]])).astype(np.float32)
        *played, infos = ours.step(actions)
        *expected, their_infos = theirs.step(actions)
        for mine, other in zip(played, expected, strict=True):
            assert mine.dtype == other.dtype
            np.testing.assert_array_equal(mine, other)
        same(infos, their_infos)
        ends += int(played[2].all())
    assert ends == 2


def test_is_what_make_vec_makes() -> None:
    envs = gymnasium.make_vec("amc_env:Pruning-v0", num_envs=2, problem="toy5-v0")
    assert isinstance(envs.unwrapped, PruningVectorEnv)


def test_the_budget_of_all_can_be_asked_for_and_seeds_be_given() -> None:
    envs = PruningVectorEnv(2, "toy5-v0", budgets=[0.7, 0.3])
    observations, _ = envs.reset(options={"budget": 0.3})
    assert observations[:, 11].tolist() == pytest.approx([0.3, 0.3])
    first, again = envs.reset(seed=[4, 9])[0], envs.reset(seed=[4, 9])[0]
    np.testing.assert_array_equal(first, again)


def test_a_problem_is_shared() -> None:
    problem = ToyProblem(3)
    envs = PruningVectorEnv(4, problem, constraint="fit")
    envs.reset()
    for _ in range(3):
        _, rewards, terminated, _, _ = envs.step(np.full((4, 1), 0.5, dtype=np.float32))
    assert terminated.all()
    assert len(problem.memo) == 1
    assert len(set(rewards.tolist())) == 1


def test_renders_each() -> None:
    envs = PruningVectorEnv(2, "toy5-v0", render_mode="ansi")
    envs.reset()
    envs.step(np.array([[0.0], [0.5]], dtype=np.float32))
    first, second = envs.render() or ()
    assert [line.split()[-2:] for line in (first.splitlines()[1], second.splitlines()[1])] == [
        ["16", "0.00"], ["8", "0.50"],
    ]  # fmt: skip
    assert len(first.splitlines()) == 2
    for _ in range(4):
        envs.step(np.zeros((2, 1), dtype=np.float32))
    assert [len(text.splitlines()) for text in envs.render() or ()] == [6, 6]
    assert PruningVectorEnv(1, "toy5-v0").render() is None


def test_faults() -> None:
    envs = PruningVectorEnv(2, "toy5-v0")
    with pytest.raises(RuntimeError, match=r"^step: call reset\(\) first$"):
        envs.step(np.zeros((2, 1), dtype=np.float32))
    envs.reset()
    with pytest.raises(ValueError, match=r"^actions: expected shape \(2, 1\), got \(2,\)$"):
        envs.step(np.zeros(2, dtype=np.float32))
    for wrong in (1.0, -0.5, np.nan):
        with pytest.raises(ValueError, match=rf"^action: expected a ratio removed in \[0, 1\), got {wrong}$"):
            envs.step(np.array([[0.5], [wrong]], dtype=np.float32))
    with pytest.raises(ValueError, match=r"^seed: expected one for each of 2 environments, got 1$"):
        envs.reset(seed=[1])
    with pytest.raises(ValueError, match=r"^options: reset_mask is not for these environments"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ValueError, match=r"^num_envs: expected at least 1, got 0$"):
        PruningVectorEnv(0, "toy5-v0")
