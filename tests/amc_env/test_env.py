"""The environment: Gymnasium's contract, rewards, the exact clamp, and the embedding computed by hand."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from amc_env import ChannelMap, Decision, PruningEnv, PruningProblem, Score, ToyProblem
from amc_env.embedding import FEATURES
from hw import LayerShape


class ThreeLayers(PruningProblem):
    """conv 3->8 (3x3, stride 2, 8x8 to 4x4), depthwise 8 (3x3), conv 8->4 (1x1), linear 4->2: two decisions.

    Dense MACs: 16*8*27 = 3456, 16*8*9 = 1152, 16*4*8 = 512, 4*2 = 8; 5128 together.
    """

    def __init__(self, budget: dict[str, float | str]) -> None:
        layers = [
            LayerShape("a", "conv", 3, 8, (3, 3), (2, 2), input_size=(8, 8), output_size=(4, 4)),
            LayerShape("dw", "conv", 8, 8, (3, 3), groups=8, input_size=(4, 4), output_size=(4, 4)),
            LayerShape("b", "conv", 8, 4, (1, 1), (1, 1), input_size=(4, 4), output_size=(4, 4)),
            LayerShape("fc", "linear", 4, 2),
        ]
        channels = ChannelMap(
            fixed_in=np.array([3, 0, 0, 0]),
            in_per_unit=np.array([[0, 0], [1, 0], [1, 0], [0, 1]]),
            fixed_out=np.array([0, 0, 0, 2]),
            out_per_unit=np.array([[1, 0], [1, 0], [0, 1], [0, 0]]),
        )
        decisions = [
            Decision("a", 8, tuple(range(1, 9)), layers[0]),
            Decision("b", 4, tuple(range(1, 5)), layers[2]),
        ]
        super().__init__(decisions, layers, channels, budget=budget)

    def score(self, widths: tuple[int, ...]) -> Score:
        accuracy = 0.5 + 0.03 * widths[0] + 0.05 * widths[1]
        return Score(1 - accuracy, accuracy)


def play(env: PruningEnv, actions: list[float]) -> tuple[list[np.ndarray[Any, Any]], list[float], dict[str, Any]]:
    observations, rewards = [env.reset(seed=0)[0]], []
    info: dict[str, Any] = {}
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(np.array([action], dtype=np.float32))
        observations.append(observation)
        rewards.append(float(reward))
        assert not truncated
    assert terminated
    return observations, rewards, info


def test_embedding_by_hand() -> None:
    observations, rewards, info = play(PruningEnv(ThreeLayers({"macs": "50%"})), [0.5, 0.25])
    # t, n, c, h, w, stride, k | MACs: decision a owns conv a and the depthwise, decision b owns b and the classifier
    first = [0, 8 / 8, 3 / 8, 8 / 8, 8 / 8, 2 / 2, 3 / 3, 4608 / 4608, 0.0, 520 / 5128, 0.0]
    # after a keeps 4 of 8: 1728 + 576 + 256 + 8 = 2568 MACs are left; nothing rests after the last decision
    second = [1, 4 / 8, 8 / 8, 4 / 8, 4 / 8, 1 / 2, 1 / 3, 520 / 4608, 1 - 2568 / 5128, 0.0, 0.5]
    # and b keeps 3 of 4: 1728 + 576 + 192 + 6 = 2502
    last = [*second[:8], 1 - 2502 / 5128, 0.0, 0.25]
    np.testing.assert_allclose(observations, [first, second, last], rtol=1e-6)
    assert len(FEATURES) == 11
    assert rewards == [0.0, pytest.approx(-(1 - 0.5 - 0.12 - 0.15))]
    assert info["feasible"] is True
    assert info["is_success"] is True
    assert info["violation"] == 0.0
    assert info["costs"] == {"macs": 2502, "size": 4 * (4 * 27 + 4 * 9 + 3 * 4 + 2 * 3)}
    assert info["pruning_policy"] == {"a": 0.5, "b": 0.25}
    assert info["accuracy"] == pytest.approx(0.77)


def test_a_violated_budget_ends_in_minus_infinity_or_what_is_asked() -> None:
    _, rewards, info = play(PruningEnv(ThreeLayers({"macs": "50%"})), [0.0, 0.0])
    assert rewards == [0.0, -math.inf]
    assert info["feasible"] is False
    assert info["violation"] == pytest.approx(1.0)
    assert "accuracy" not in info
    _, rewards, _ = play(PruningEnv(ThreeLayers({"macs": "50%"}), infeasible_reward=-1.0), [0.0, 0.0])
    assert rewards == [0.0, -1.0]


@pytest.mark.parametrize("decisions", [1, 2, 30])
@pytest.mark.parametrize("constraint", ["strict", "clamp", "fit"])
def test_passes_both_environment_checkers(decisions: int, constraint: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # -inf as a reward, and an action space that is not [-1, 1]: both are meant
        gymnasium_check_env(PruningEnv(ToyProblem(decisions), constraint=constraint), skip_render_check=True)
        sb3_check_env(PruningEnv(ToyProblem(decisions), constraint=constraint))


def test_is_made_by_name_without_arguments() -> None:
    env = gymnasium.make("amc_env:Pruning-v0")
    inner = env.unwrapped
    assert isinstance(inner, PruningEnv)
    assert isinstance(inner.problem, ToyProblem)
    assert inner.problem.budgets[0].limit == inner.problem.dense_costs["macs"] / 2
    assert env.spec is not None
    again = gymnasium.make(EnvSpec.from_json(env.spec.to_json())).unwrapped
    assert isinstance(again, PruningEnv)
    assert again.problem.names == inner.problem.names


def random_problem(rng: np.random.Generator) -> PruningProblem:
    if rng.random() < 0.3:
        return ThreeLayers({"macs": f"{rng.integers(30, 99)}%"})
    budget = {"macs": f"{rng.integers(10, 99)}%"} | ({"size": f"{rng.integers(10, 99)}%"} if rng.random() < 0.5 else {})
    return ToyProblem(
        int(rng.integers(1, 12)), channels=int(rng.integers(10, 40)), budget=budget, seed=int(rng.integers(99))
    )


@pytest.mark.parametrize("constraint", ["clamp", "fit"])
def test_not_one_of_2000_random_episodes_is_over_the_budget(constraint: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        env = PruningEnv(random_problem(rng), constraint=constraint)
        for _ in range(20):
            _, rewards, info = play(env, list(rng.uniform(0, 0.999, size=len(env.problem.decisions))))
            assert info["feasible"]
            assert math.isfinite(rewards[-1])


def test_clamp_does_not_touch_what_is_within_reach() -> None:
    problem = ToyProblem()
    plan = problem.fit_to_budget(np.full(6, 0.5)).tolist()
    assert list(play(PruningEnv(problem, constraint="clamp"), plan)[2]["pruning_policy"].values()) == plan


def test_clamp_keeps_the_most_that_leaves_the_budget_within_reach() -> None:
    problem = ThreeLayers({"macs": "50%"})
    _, _, info = play(PruningEnv(problem, constraint="clamp"), [0.0, 0.0])
    kept = problem.widths(list(info["pruning_policy"].values()))
    assert not problem.feasible((kept[0] + 1, 1))
    assert not problem.feasible((kept[0], kept[1] + 1))


def test_fit_uses_the_budget_that_a_plan_left() -> None:
    problem = ToyProblem()
    plan = [0.9] * 6
    left = {mode: play(PruningEnv(problem, constraint=mode), plan)[2]["costs"]["macs"] for mode in ("clamp", "fit")}
    assert left["clamp"] < 0.2 * problem.dense_costs["macs"] < 0.45 * problem.dense_costs["macs"] < left["fit"]


def test_a_fresh_process_gives_the_same_episode() -> None:
    code = (
        "import amc_env\n"
        "env = amc_env.PruningEnv(constraint='clamp')\n"
        "observation, _ = env.reset(seed=5); env.action_space.seed(5)\n"
        "print(observation.tolist())\n"
        "done = False\n"
        "while not done:\n"
        "    observation, reward, done, _, info = env.step(env.action_space.sample())\n"
        "    print(observation.tolist(), reward, sorted(info.items(), key=str))\n"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "ab"
    )
    assert first == second
    assert "pruning_policy" in first


def test_renders_the_layer_table() -> None:
    env = PruningEnv(ThreeLayers({"macs": "50%"}), render_mode="ansi")
    env.reset(seed=0)
    env.step(np.array([0.5], dtype=np.float32))
    assert env.render() == (
        f"{'decision':<32} {'channels':>8} {'kept':>6} {'ratio':>6}\n{'a':<32} {8:>8} {4:>6} {0.5:>6.2f}"
    )


@pytest.mark.parametrize("constraint", ["strict", "clamp", "fit"])
def test_several_budgets_pass_both_environment_checkers(constraint: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        gymnasium_check_env(PruningEnv(constraint=constraint, budgets=[0.7, 0.3]), skip_render_check=True)
        sb3_check_env(PruningEnv(constraint=constraint, budgets=[0.7, 0.3]))


def test_the_twelfth_feature_is_the_budget_and_the_others_stay() -> None:
    problem = ThreeLayers({"macs": "50%"})
    actions = [0.5, 0.25]
    plain = play(PruningEnv(problem), actions)[0]
    env = PruningEnv(problem, budgets=[0.7])
    for budget in (0.7, 0.5):
        observation = env.reset(seed=0, options={"budget": budget})[0]
        assert observation[11] == np.float32(budget)
        for step, action in enumerate(actions):
            np.testing.assert_array_equal(observation[:11], plain[step])
            observation = env.step(np.array([action], dtype=np.float32))[0]
        np.testing.assert_array_equal(observation, [*plain[2], np.float32(budget)])
    assert PruningEnv(problem).observation_space.shape == (11,)


@pytest.mark.parametrize("constraint", ["clamp", "fit"])
def test_every_episode_keeps_its_own_budget(constraint: Any) -> None:
    rng = np.random.default_rng(0)
    problem = ToyProblem(5)
    env = PruningEnv(problem, constraint=constraint, budgets=[0.8, 0.2])
    for _ in range(60):
        budget = float(rng.choice([0.8, 0.5, 0.2]))
        env.reset(seed=0, options={"budget": budget})
        for _ in range(5):
            _, reward, _, _, info = env.step(rng.uniform(0, 0.9, 1).astype(np.float32))
        assert info["costs"]["macs"] <= budget * problem.dense_costs["macs"]
        assert info["feasible"]
        assert env.last_evaluation is not None
        assert env.last_evaluation == problem.evaluate_widths(env.last_evaluation.widths, probe=True)
        assert reward == pytest.approx(info["accuracy"] - 1.0)


def test_a_strict_episode_is_judged_by_its_own_budget() -> None:
    env = PruningEnv(ThreeLayers({"macs": "50%"}), infeasible_reward=-1.0, budgets=[1.0, 0.3])
    for budget, expected in ((1.0, -(1 - 0.5 - 0.24 - 0.2)), (0.5, -1.0), (0.3, -1.0)):
        env.reset(seed=0, options={"budget": budget})
        env.step(np.zeros(1, np.float32))
        _, reward, _, _, info = env.step(np.zeros(1, np.float32))
        assert reward == pytest.approx(expected)
        assert info["feasible"] is (budget == 1.0)
        assert env.last_evaluation is not None
        assert env.last_evaluation.reward == -math.inf


def test_budgets_take_turns_in_an_order_of_the_seed() -> None:
    env = PruningEnv(budgets=[0.9, 0.7, 0.3])

    def played(seed: int) -> list[float]:
        first = env.reset(seed=seed)[0][11]
        return [round(float(first), 3), *(round(float(env.reset()[0][11]), 3) for _ in range(11))]

    orders = [played(seed) for seed in range(5)]
    assert played(0) == orders[0]
    assert len(set(map(tuple, orders))) > 1
    for order in orders:
        assert all(sorted(order[turn : turn + 4]) == [0.3, 0.5, 0.7, 0.9] for turn in (0, 4, 8))


def test_refuses_budgets_that_it_does_not_play() -> None:
    with pytest.raises(ValueError, match=r"^options: unknown budget 0.4; known: 0.7, 0.5$"):
        PruningEnv(budgets=[0.7]).reset(options={"budget": 0.4})
    with pytest.raises(ValueError, match=r"^options: unknown budget 0.4; known: none; make the environment with"):
        PruningEnv().reset(options={"budget": 0.4})


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="constraint: expected 'strict', 'clamp' or 'fit', got 'soft'"):
        PruningEnv(constraint="soft")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="infeasible_reward: expected a number or -inf, got nan"):
        PruningEnv(infeasible_reward=math.nan)
    env = PruningEnv(ToyProblem(1))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action: expected a ratio removed in \[0, 1\), got nan"):
        env.step(np.array([math.nan], dtype=np.float32))
    env.step(np.array([0.5], dtype=np.float32))
    with pytest.raises(RuntimeError, match=r"the episode has ended; call reset\(\) first"):
        env.step(np.array([0.5], dtype=np.float32))


def test_a_problem_goes_by_its_name_and_survives_the_json_of_the_spec() -> None:
    env = gymnasium.make("amc_env:Pruning-v0", problem="toy5-v0", budget={"macs": "40%"}, constraint="clamp")
    assert env.spec is not None
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()))
    for made in (env, again):
        assert isinstance(made.unwrapped, PruningEnv)
        assert made.unwrapped.problem.budgets[0].limit == 0.4 * made.unwrapped.problem.dense_costs["macs"]


def test_refuses_a_budget_beside_a_problem_that_has_one() -> None:
    with pytest.raises(
        ValueError, match=r"^budget, real: of a problem that is named; this one has its budget already$"
    ):
        PruningEnv(ToyProblem(), budget={"macs": "40%"})


def test_the_picture_shows_what_is_kept_what_is_removed_and_the_budget() -> None:
    env = PruningEnv(ToyProblem(4, channels=4), render_mode="rgb_array")
    env.reset()
    blank = env.render()
    env.step(np.array([0.5], dtype=np.float32))
    picture = env.render()
    assert isinstance(picture, np.ndarray)
    assert isinstance(blank, np.ndarray)
    assert picture.dtype == np.uint8
    assert picture.shape == blank.shape == (240, 4 * 24 + 24, 3)
    dark, light, grey, red = (27, 107, 170), (200, 221, 238), (228, 231, 235), (196, 57, 43)
    column = picture[48:228, 14]
    assert (column == dark).all(axis=1).sum() == (column == light).all(axis=1).sum() == 90
    assert (picture[48:228, 14 + 24] == grey).all()
    assert (picture[20, 12:] == red).all(axis=1).argmax() == round((96 - 2) * 0.5)


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vector_environments_play_the_same(mode: str) -> None:
    rng = np.random.default_rng(0)
    actions = rng.random((5, 3, 1)).astype(np.float32)
    many = gymnasium.make_vec(
        "amc_env:Pruning-v0", num_envs=3, vectorization_mode=mode, problem="toy5-v0", constraint="fit"
    )
    single = gymnasium.make("amc_env:Pruning-v0", problem="toy5-v0", constraint="fit")
    try:
        many.reset(seed=0)
        rewards = [many.step(action)[1] for action in actions]
    finally:
        many.close()
    for index in range(3):
        single.reset(seed=index)
        assert [single.step(action[index])[1] for action in actions] == [reward[index] for reward in rewards]
