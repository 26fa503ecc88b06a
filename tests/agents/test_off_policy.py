"""What DDPG, TD3 and SAC share: the adapter, the warm start, the residual and several budgets."""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from agents.base import Agent
from agents.ddpg import DDPG
from agents.local_search import LocalSearch
from agents.off_policy import OffPolicy
from agents.off_policy_sb3 import AMCLearner, ReportEpisodes
from agents.reconstruction import Reconstruction
from agents.registry import AGENTS, AnyAgent
from agents.sac import SAC
from agents.td3 import TD3
from amc_env import InfeasibleBudgetError
from amc_env.env import PruningEnv
from amc_env.problem import FloatArray
from amc_env.toy import ToyProblem
from tests.contracts.agent_contract import AgentContract, reported

KINDS = ("ddpg", "td3", "sac")
FRACTIONS = (0.7, 0.3)


def agent(kind: str, **settings: Any) -> OffPolicy:
    """Small networks and a short warm-up, so that a few episodes suffice to learn something."""
    made = AGENTS[kind].model_validate({"hidden": (32, 32), "warmup_episodes": 4, **settings})
    assert isinstance(made, OffPolicy)
    return made


def learned(settings: OffPolicy, problem: ToyProblem, episodes: int) -> AMCLearner:
    env = PruningEnv(problem, constraint=settings.constraint, infeasible_reward=-1.0, budgets=settings.budgets)
    model = settings.learner(env, episodes=episodes, seed=0)
    return model.learn(episodes * len(problem.decisions), callback=ReportEpisodes(env, lambda _: None, episodes))


class SeveralBudgets(AgentContract):
    """The contract on problems of one budget; others are refused."""

    @pytest.mark.parametrize("problem", [ToyProblem(1), ToyProblem(25, channels=8)], ids=["one decision", "many"])
    def test_works_on(self, problem: ToyProblem) -> None:
        super().test_works_on(problem)


class TestDDPGOfSeveralBudgets(SeveralBudgets):
    agent: ClassVar[Agent] = DDPG(hidden=(32, 32), budgets=FRACTIONS)


class TestTD3OfSeveralBudgets(SeveralBudgets):
    agent: ClassVar[Agent] = TD3(hidden=(32, 32), budgets=FRACTIONS, warmup="heuristic")


class TestSACOfSeveralBudgets(SeveralBudgets):
    agent: ClassVar[Agent] = SAC(hidden=(32, 32), budgets=FRACTIONS, residual=0.3, warmup="heuristic")


class TestTD3WithAWarmStart(AgentContract):
    agent: ClassVar[Agent] = TD3(hidden=(32, 32), warmup="heuristic", constraint="clamp", stored_action="raw")


class TestDDPGOnMeasuredCurves(AgentContract):
    agent: ClassVar[Agent] = DDPG(hidden=(32, 32), measured=True, warmup="heuristic", residual=0.2)


class TestSACWithAResidual(AgentContract):
    agent: ClassVar[Agent] = SAC(hidden=(32, 32), warmup="budget", residual=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_one_update_per_decision_after_the_warmup(kind: str) -> None:
    """8 episodes of 3 decisions, 4 of warm-up; nothing is learned after the last, which no episode would use."""
    assert learned(agent(kind), ToyProblem(3), 8)._n_updates == 3 * 3


@pytest.mark.parametrize("kind", KINDS)
def test_an_environment_with_infinite_rewards_is_refused(kind: str) -> None:
    with pytest.raises(
        ValueError, match=r"^a learner needs finite rewards, but the environment's infeasible_reward is"
    ):
        agent(kind).learner(PruningEnv(), episodes=1, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_rewards_and_networks_stay_finite_when_most_episodes_are_infeasible(kind: str) -> None:
    model = learned(agent(kind, constraint="strict"), ToyProblem(4, budget={"macs": "10%"}), 20)
    assert model.replay_buffer is not None
    assert np.isfinite(model.replay_buffer.rewards).all()
    assert (model.replay_buffer.rewards[: 19 * 4] == -1.0).any()
    assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_what_others_draw_from_torch_during_a_search_changes_nothing(kind: str) -> None:
    class Drawing(ToyProblem):
        def score(self, widths: tuple[int, ...]) -> Any:
            torch.rand(3)
            return super().score(widths)

    before = torch.random.get_rng_state()
    quiet = reported(agent(kind), ToyProblem(4), 12)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert reported(agent(kind), Drawing(4), 12) == quiet


@pytest.mark.parametrize("kind", KINDS)
def test_the_warm_start_plays_what_local_search_would(kind: str) -> None:
    """The allocation first, then other plans at the budget; a width that one more step of budget allows is taken."""
    problem = ToyProblem(6)
    history = reported(agent(kind, warmup="heuristic", warmup_episodes=8), problem, 8)
    assert history[0] == reported(Reconstruction(), ToyProblem(6), 1)[0]
    assert len({evaluation.widths for evaluation in history}) == 8
    assert max(e.reward for e in history) >= reported(LocalSearch(), ToyProblem(6), 1)[0].reward
    assert min(e.costs["macs"] for e in history) > problem.budgets[0].limit - 5  # the dearest step costs 5 MACs


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_residual_is_the_heuristic_and_never_far_from_it(kind: str) -> None:
    problem = ToyProblem(6)
    settings = agent(kind, residual=0.1, warmup_episodes=20, constraint="strict", stored_action="raw")
    start = np.array(reported(Reconstruction(), ToyProblem(6), 1)[0].ratios)
    model = learned(settings, problem, 1)
    model._last_obs = np.zeros((1, 11), np.float32)
    assert float(model.predict(model._last_obs, deterministic=True)[0].item()) == pytest.approx(0.5)
    for evaluation in reported(settings, problem, 20):
        assert np.abs(np.array(evaluation.ratios) - start).max() <= 0.1 + 0.5 / 16  # and half a rounding step


def test_the_replay_of_a_residual_holds_corrections() -> None:
    """Stored: (executed ratio - heuristic ratio) / residual, 0 for the heuristic itself."""
    problem = ToyProblem(4)
    model = learned(agent("ddpg", residual=0.25, warmup="heuristic"), problem, 3)
    assert model.replay_buffer is not None
    assert model.replay_buffer.actions[:4, 0, 0].tolist() == pytest.approx([0.0] * 4, abs=1e-6)
    assert np.abs(model.replay_buffer.actions[4:8, 0, 0]).max() > 0.1


def test_error_curves_are_asked_for_when_the_settings_need_them() -> None:
    asked = [DDPG(), DDPG(warmup="budget"), DDPG(warmup="heuristic"), DDPG(residual=0.1), LocalSearch()]
    assert [each.needs_error_curves for each in asked] == [False, False, True, True, True]


def test_a_residual_on_measured_curves_corrects_their_allocation() -> None:
    """Here it may not correct anything: every policy after the 6 of the curves is the allocation."""

    class Misjudged(ToyProblem):
        def reconstruction_errors(self) -> tuple[FloatArray, ...]:
            return tuple(curve * 10.0**place for place, curve in enumerate(super().reconstruction_errors()))

    *_, allocation = reported(Reconstruction(measured=True), Misjudged(5), 7)
    history = reported(agent("ddpg", measured=True, residual=1e-6), Misjudged(5), 12)
    assert [evaluation.widths for evaluation in history[6:]] == [allocation.widths] * 6


def test_curves_that_nothing_uses_are_not_measured() -> None:
    with pytest.raises(
        ValidationError, match="measured: the error curves are for warmup 'heuristic' and residual; set"
    ):
        DDPG(measured=True)
    settings = agent("sac", measured=True, residual=0.1, budgets=FRACTIONS)
    settings.check(ToyProblem(3), 7)
    message = (
        "budgets: 3 budgets, with the job's own, take at least as many evaluations, got 2 beside those of the curves"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        settings.check(ToyProblem(3), 6)


@pytest.mark.parametrize("kind", KINDS)
def test_all_budgets_are_played_equally_often_and_the_actor_sees_which(kind: str) -> None:
    problem = ToyProblem(6)
    settings = agent(kind, budgets=FRACTIONS)
    history = reported(settings, problem, 12)
    dense = problem.dense_costs["macs"]
    fractions = [evaluation.costs["macs"] / dense for evaluation in history]
    nearest = [min((0.7, 0.5, 0.3), key=lambda budget: abs(budget - fraction)) for fraction in fractions]
    assert [nearest.count(budget) for budget in (0.7, 0.5, 0.3)] == [4, 4, 4]
    for evaluation, budget in zip(history, nearest, strict=True):
        assert evaluation.costs["macs"] <= budget * dense
        assert evaluation.feasible == (budget < 0.7)
        assert evaluation.error is not None
        assert (evaluation.reward == -math.inf) == (budget == 0.7)
    model = learned(settings, ToyProblem(6), 12)
    assert model.replay_buffer is not None
    seen = model.replay_buffer.observations[: 11 * 6, 0, 11].reshape(11, 6)
    assert (seen == seen[:, :1]).all()
    assert set(seen[:, 0].tolist()) == {np.float32(budget) for budget in (0.7, 0.5, 0.3)}
    assert np.isfinite(model.replay_buffer.rewards).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_front_is_near_the_optimum_under_each_budget(kind: str) -> None:
    """20 evaluations each, warm start and residual: regret at most 0.01 under each in at least 4 of 5 seeds."""
    near = {0.7: 0, 0.5: 0, 0.3: 0}
    for seed in range(5):
        problem = ToyProblem(3, seed=seed)
        settings = agent(kind, budgets=FRACTIONS, warmup="heuristic", residual=0.2, warmup_episodes=30)
        series = settings.series(problem, reported(settings, problem, 60, seed))
        for budget in near:
            best = ToyProblem(3, budget={"macs": f"{budget:.0%}"}, seed=seed).best_widths()
            limit = budget * problem.dense_costs["macs"]
            found = min(e.error for e in series if e.error is not None and e.costs["macs"] <= limit)
            near[budget] += found - problem.score(best).error <= 0.01
    assert min(near.values()) >= 4, near


def test_each_network_of_the_front_answers_the_smallest_budget_that_it_holds() -> None:
    problem = ToyProblem(3)
    settings = agent("ddpg", budgets=FRACTIONS, warmup="heuristic", residual=0.2)
    dense = problem.dense_costs["macs"]
    for evaluation in settings.series(problem, reported(settings, problem, 60, 0)):
        share = evaluation.costs["macs"] / dense
        assert settings.series_budget(problem, evaluation) == min(each for each in (0.7, 0.5, 0.3) if share <= each)
    dearest = problem.evaluate_widths(problem.dense_widths, probe=True)
    assert settings.series_budget(problem, dearest) is None
    assert agent("ddpg").series_budget(problem, dearest) is None


def test_budgets_are_refused_where_they_mean_nothing() -> None:
    settings = agent("ddpg", budgets=FRACTIONS)
    for budget, named in (({"macs": "50%", "size": "70%"}, "macs, size"), ({}, "none")):
        with pytest.raises(ValueError, match=f"^budgets: expected a problem with one budget, .*, got {named}; state"):
            settings.check(ToyProblem(3, budget=budget), 100)
    message = "budgets: 3 budgets, with the job's own, take at least as many evaluations, got 2"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        settings.check(ToyProblem(3), 2)
    with pytest.raises(InfeasibleBudgetError, match="cannot be met"):
        agent("ddpg", budgets=(0.01,)).check(ToyProblem(3), 100)
    with pytest.raises(ValidationError, match=r"budgets.0\n  Input should be less than or equal to 1"):
        DDPG(budgets=(1.5,))
    assert TypeAdapter[Agent](AnyAgent).validate_python({"kind": "td3", "budgets": [0.7, 0.5]}) == TD3(
        budgets=(0.7, 0.5)
    )
