from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from agents.replay import Episode, EpisodeReplay


def replay(size: int = 8, decay: float = 0.75, executed: Episode | None = None) -> EpisodeReplay:
    return EpisodeReplay(
        size,
        spaces.Box(0.0, 1.0, (1,), np.float32),
        spaces.Box(0.0, 1.0, (1,), np.float32),
        seed=np.random.SeedSequence(0),
        baseline_decay=decay,
        rewrite=None if executed is None else lambda: executed,
        device="cpu",
    )


def play(buffer: EpisodeReplay, observations: list[float], actions: list[float], reward: float) -> None:
    """One episode whose last observation follows the last action."""
    for step, action in enumerate(actions):
        done = step == len(actions) - 1
        buffer.add(
            np.array([[observations[step]]]),
            np.array([[observations[step + 1]]]),
            np.array([[action]]),
            np.array([reward if done else 0.0]),
            np.array([done]),
            [{}],
        )


def test_every_step_gets_the_final_reward() -> None:
    buffer = replay()
    play(buffer, [0.0, 0.1, 0.2, 0.3], [-1.0, 0.0, 1.0], -0.4)
    np.testing.assert_allclose(buffer.rewards[:3, 0], [-0.4, -0.4, -0.4])
    np.testing.assert_allclose(buffer.observations[:3, 0, 0], [0.0, 0.1, 0.2], rtol=1e-6)
    np.testing.assert_allclose(buffer.next_observations[:3, 0, 0], [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(buffer.actions[:3, 0, 0], [-1.0, 0.0, 1.0])
    np.testing.assert_allclose(buffer.dones[:3, 0], [0, 0, 1])


def test_nothing_is_written_before_the_episode_ends() -> None:
    buffer = replay()
    buffer.add(np.zeros((1, 1)), np.zeros((1, 1)), np.zeros((1, 1)), np.zeros(1), np.zeros(1), [{}])
    assert (buffer.size(), buffer.baseline) == (0, None)


def test_the_baseline_is_a_moving_average_of_final_rewards() -> None:
    """-0.4, then 0.75 * -0.4 + 0.25 * -0.2 = -0.35, then 0.75 * -0.35 + 0.25 * 0 = -0.2625."""
    buffer = replay()
    baselines = []
    for reward in (-0.4, -0.2, 0.0):
        play(buffer, [0.0, 0.0], [0.0], reward)
        baselines.append(buffer.baseline)
    assert baselines == pytest.approx([-0.4, -0.35, -0.2625])


def test_a_sample_subtracts_the_present_baseline() -> None:
    buffer = replay()
    play(buffer, [0.0, 0.0], [-1.0], -0.4)
    play(buffer, [1.0, 1.0], [1.0], -0.2)
    batch = buffer.sample(50)
    expected = torch.where(batch.actions < 0, -0.05, 0.15)
    torch.testing.assert_close(batch.rewards, expected)
    assert (batch.actions < 0).any()
    assert (batch.actions > 0).any()


def test_the_executed_episode_replaces_the_chosen_one() -> None:
    buffer = replay(executed=(np.array([[0.5], [0.6]]), np.array([[0.25], [0.75]])))
    play(buffer, [0.0, 0.1, 0.9], [-1.0, 1.0], -0.4)
    np.testing.assert_allclose(buffer.observations[:2, 0, 0], [0.5, 0.6])
    np.testing.assert_allclose(buffer.next_observations[:2, 0, 0], [0.6, 0.9], rtol=1e-6)
    np.testing.assert_allclose(buffer.actions[:2, 0, 0], [0.25, 0.75])


def test_the_oldest_transitions_make_room() -> None:
    buffer = replay(size=3)
    play(buffer, [0.0, 0.0, 0.0], [0.0, 0.0], -0.4)
    play(buffer, [0.0, 0.0, 0.0], [0.0, 0.0], -0.2)
    np.testing.assert_allclose(buffer.rewards[:, 0], [-0.2, -0.4, -0.2])


@pytest.mark.parametrize("reward", [-math.inf, math.inf, math.nan])
def test_a_reward_that_is_not_finite_is_refused_before_it_is_learned(reward: float) -> None:
    buffer = replay()
    message = (
        f"^the episode ended with a reward of {reward}: a learner needs finite rewards, one infinite reward turns its "
        r"networks to NaN. Give the environment a finite infeasible_reward, for example -1.0.$"
    )
    with pytest.raises(ValueError, match=message):
        play(buffer, [0.0, 0.0], [0.0], reward)
    assert buffer.size() == 0


def test_sampling_depends_on_its_own_seed_alone() -> None:
    def draw() -> torch.Tensor:
        buffer = replay()
        play(buffer, [0.0] * 7, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5], -0.4)
        return buffer.sample(20).actions

    first = draw()
    np.random.seed(1)  # noqa: NPY002 - stable-baselines3 samples from the global state
    torch.testing.assert_close(draw(), first)
