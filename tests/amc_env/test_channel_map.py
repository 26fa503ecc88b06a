"""Costs as functions of the widths: the quadratic form of a bilinear cost, and any other cost model, agree with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from amc_env import ChannelMap, PruningEnv, PruningProblem, Score, ToyProblem
from amc_env.cost_map import LayeredCost, QuadraticCost
from amc_env.env import Constraint
from hw import BilinearCost, CostFunction, LayerShape, MacCount
from hw.cost import IntArray


class LookedUp:
    """The MACs as a cost model that says nothing of its form, as a table of measured times does."""

    name = "macs"
    unit = "MACs"

    def bind(self, layers: Sequence[LayerShape]) -> CostFunction:
        macs = MacCount().bind(layers)
        return lambda kept_in, kept_out: macs(kept_in, kept_out)

    def layer_costs(self, layers: Sequence[LayerShape]) -> NDArray[np.float64]:
        return MacCount().layer_costs(layers)


class LookedUpToy(PruningProblem):
    """`ToyProblem` with its MACs looked up."""

    def __init__(self) -> None:
        self.toy = ToyProblem()
        toy = self.toy
        super().__init__(toy.decisions, toy.layers, toy.cost_map, budget={"macs": "50%"}, cost_models=[LookedUp()])

    def score(self, widths: tuple[int, ...]) -> Score:
        return self.toy.score(widths)


@given(layers=st.integers(1, 6), decisions=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_a_bilinear_cost_of_widths_is_exactly_that_of_the_channels(layers: int, decisions: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    fixed_in, fixed_out, per_product, per_channel = rng.integers(0, 10**4, size=(4, layers))
    in_per_unit, out_per_unit = rng.integers(0, 5, size=(2, layers, decisions))
    channels = ChannelMap(fixed_in, in_per_unit, fixed_out, out_per_unit)
    cost = BilinearCost(per_product, per_channel)
    widths: IntArray = rng.integers(1, 2000, size=decisions)
    expected = cost(*channels.channels(widths))
    assert channels.cost_of_widths(cost)(widths) == expected
    assert channels.cost_of_widths(cost)(widths.tolist()) == expected
    assert channels.cost_of_widths(lambda kept_in, kept_out: cost(kept_in, kept_out))(widths) == expected


class InOneCall:
    """A cost function that counts many plans at once, and nothing else."""

    def __call__(self, kept_in: IntArray, kept_out: IntArray) -> float:
        raise AssertionError("asked for one plan")

    def many(self, kept_in: IntArray, kept_out: IntArray) -> NDArray[np.float64]:
        costs: NDArray[np.float64] = (kept_in * kept_out).sum(axis=1).astype(np.float64)
        return costs


@given(layers=st.integers(1, 6), decisions=st.integers(1, 4), plans=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_many_plans_cost_what_each_does(layers: int, decisions: int, plans: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    fixed_in, fixed_out = rng.integers(0, 10**4, size=(2, layers))
    in_per_unit, out_per_unit = rng.integers(0, 5, size=(2, layers, decisions))
    channels = ChannelMap(fixed_in, in_per_unit, fixed_out, out_per_unit)
    bilinear = BilinearCost(np.ones(layers, dtype=np.int64), np.zeros(layers, dtype=np.int64))
    widths: IntArray = rng.integers(1, 2000, size=(plans, decisions))
    expected = [bilinear(*channels.channels(plan)) for plan in widths]
    for cost in (bilinear, InOneCall(), lambda kept_in, kept_out: bilinear(kept_in, kept_out)):
        bound = channels.cost_of_widths(cost)
        assert isinstance(bound, QuadraticCost | LayeredCost)
        assert bound.many(widths).tolist() == expected


@pytest.mark.parametrize("constraint", ["strict", "clamp", "fit"])
def test_an_episode_is_the_same_whatever_the_form_of_the_cost(constraint: Constraint) -> None:
    envs = [PruningEnv(problem, constraint=constraint) for problem in (ToyProblem(), LookedUpToy())]
    rng = np.random.default_rng(0)
    for env in envs:
        env.reset(seed=0)
    for ratio in rng.uniform(0.0, 0.6, size=(6, 1)).astype(np.float32):
        (first, reward, *_, info), (second, same_reward, *_, same_info) = (env.step(ratio) for env in envs)
        np.testing.assert_array_equal(first, second)
        assert reward == same_reward
        assert info["kept"] == same_info["kept"]


def test_an_observation_is_the_callers_own() -> None:
    env = PruningEnv(ToyProblem())
    action = np.array([0.5], dtype=np.float32)
    first, _ = env.reset(seed=0)
    second = env.step(action)[0]
    kept = first.copy(), second.copy()
    first[:], second[:] = -1.0, -1.0
    np.testing.assert_array_equal(env.reset(seed=0)[0], kept[0])
    np.testing.assert_array_equal(env.step(action)[0], kept[1])
