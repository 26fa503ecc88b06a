"""A recording as a data set of Minari: what was written is read back and played again in the environment it names."""

from __future__ import annotations

from pathlib import Path

import minari
import numpy as np
import pytest

from amc_env.problems import make_problem
from amc_env.recorded import RecordedProblem
from scripts.minari_dataset import VIOLATED, write

NAME = "resnet56-cifar10-v0"


def test_every_recorded_plan_is_an_episode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    write(NAME, "70%")
    data = minari.load_dataset("amc/resnet56-cifar10/macs-70-v0")
    env = data.recover_environment()
    problem = env.unwrapped.problem
    assert isinstance(problem, RecordedProblem)
    assert problem.budgets[0].limit == pytest.approx(0.7 * problem.dense_costs["macs"])
    plans, errors = problem.recording.plans, problem.recording.errors["top1"]
    assert data.total_episodes == len(plans)
    feasible = [problem.feasible(plan) for plan in plans]
    rewards = [float(episode.rewards[-1]) for episode in data]
    assert rewards == [-error if meets else VIOLATED for error, meets in zip(errors, feasible, strict=True)]
    for number in (0, 100, feasible.index(True), feasible.index(False)):
        episode = data[number]
        observation, _ = env.reset()
        observations, kept = [observation], []
        for action in episode.actions:
            observation, _, terminated, _, info = env.step(action)
            observations.append(observation)
            kept.append(info["kept"])
        assert terminated
        assert kept == plans[number].tolist()
        np.testing.assert_array_equal(episode.observations, observations)
        assert episode.terminations.tolist() == [False] * (len(kept) - 1) + [True]
    uniform = problem.evaluate(problem.fit_to_budget([0.5] * len(problem.decisions))).reward
    scores = minari.get_normalized_score(data, np.array([uniform, max(rewards)]))
    assert scores == pytest.approx([0.0, 1.0])


def test_only_recorded_problems_have_one() -> None:
    with pytest.raises(ValueError, match=r"^toy5-v0: expected a recorded problem$"):
        write("toy5-v0", "50%")
    with pytest.raises(ValueError, match="unknown name 'resnet56'"):
        make_problem("resnet56")
