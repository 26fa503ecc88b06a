from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from amc_env.cost_map import ChannelMap
from amc_env.problems import PROBLEMS, make_problem
from amc_env.recorded import Fit, RecordedProblem, Recording, Surrogate, shipped_recording
from amc_env.toy import ToyProblem

DATA = os.environ.get("AMC_TEST_DATA")
NAME, IMAGENET = "resnet56-cifar10-v0", "mobilenet-v2-imagenet-v0"


@pytest.fixture
def small() -> Recording:
    """Two plans of a toy problem of two layers."""
    problem = ToyProblem(2, channels=4)
    assert isinstance(problem.cost_map, ChannelMap)
    surrogate = Surrogate(
        link="log", mean=-1.0, lengths=np.array([1.0, 1.5]), weights=np.array([0.5, -0.25]), smallest=0.1, largest=0.9
    )
    return Recording(
        source={"network": "toy"},
        decisions=problem.decisions,
        layers=problem.layers,
        cost_map=problem.cost_map,
        plans=np.array([[4, 4], [2, 1]]),
        errors={"top1": np.array([0.2, 0.4])},
        curves=problem.reconstruction_errors(),
        surrogates={"top1": surrogate},
        fits={"top1": Fit(2, 0.01, 0.1, 0.9, 1, 0.02, 0.2, 0.8)},
    )


def test_the_error_is_that_of_the_formula(small: Recording) -> None:
    problem = RecordedProblem(small)
    # the plan (4, 4) lies at the first point and, in lengths, sqrt(0.5^2 + (0.75 / 1.5)^2) from the second
    scaled = np.sqrt(5.0 * 0.5)
    far = (1.0 + scaled + scaled**2 / 3.0) * np.exp(-scaled)
    error = np.exp(-1.0 + 0.5 - 0.25 * far)
    score = problem.score((4, 4))
    assert score.error == pytest.approx(error, rel=1e-12)
    assert score.accuracy == pytest.approx(1.0 - error)
    by_odds = replace(small.surrogates["top1"], link="logit")
    odds = np.exp(-1.0 + 0.5 - 0.25 * far)
    assert RecordedProblem(replace(small, surrogates={"top1": by_odds})).score((4, 4)).error == pytest.approx(
        odds / (1.0 + odds), rel=1e-12
    )


def test_the_error_stays_between_the_recorded_ones(small: Recording) -> None:
    wild = replace(small.surrogates["top1"], weights=np.array([50.0, 0.0]))
    assert RecordedProblem(replace(small, surrogates={"top1": wild})).score((4, 4)).error == 0.9


def test_what_is_saved_is_loaded(small: Recording, tmp_path: Path) -> None:
    small.save(tmp_path / "r.npz")
    loaded = Recording.load(tmp_path / "r.npz")
    assert loaded.decisions == small.decisions
    assert loaded.layers == small.layers
    assert loaded.source == small.source
    assert loaded.fits == small.fits
    assert np.array_equal(loaded.plans, small.plans)
    first, second = RecordedProblem(loaded), RecordedProblem(small)
    assert first.score((3, 2)) == second.score((3, 2))
    assert first.costs((3, 2)) == second.costs((3, 2))
    for curve, other in zip(first.reconstruction_errors(), second.reconstruction_errors(), strict=True):
        assert np.array_equal(curve, other)


def test_refuses_what_is_no_recording(small: Recording, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"bad.npz: expected a recording written by Recording.save"):
        Recording.load(tmp_path / "bad.npz")
    small.save(tmp_path / "r.npz")
    whole = (tmp_path / "r.npz").read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:200] + bytes(40) + whole[240:]):
        (tmp_path / "damaged.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged.npz: expected a recording written by Recording.save"):
            Recording.load(tmp_path / "damaged.npz")
    with np.load(tmp_path / "r.npz") as file:
        arrays = dict(file)
    arrays["about"] = np.array(json.dumps({**json.loads(str(arrays["about"])), "version": 9}))
    np.savez(tmp_path / "new.npz", allow_pickle=False, **arrays)
    with pytest.raises(ValueError, match=r"new.npz: expected a recording of version 1, got version 9$"):
        Recording.load(tmp_path / "new.npz")


def test_refuses_an_objective_that_was_not_recorded(small: Recording) -> None:
    with pytest.raises(ValueError, match=r"^objective: expected one of top1, got 'top5'$"):
        RecordedProblem(small, objective="top5")


@pytest.mark.parametrize(("name", "macs"), [(NAME, 125_485_696), (IMAGENET, 300_774_272)])
def test_a_shipped_recording_foretells_its_own_plans(name: str, macs: int) -> None:
    recording = Recording.load(shipped_recording(name))
    problem = RecordedProblem(recording)
    assert problem.dense_costs["macs"] == macs  # as the AMC paper counts them: 125.49 M and 300 M
    for objective, errors in recording.errors.items():
        problem = RecordedProblem(recording, objective=objective)
        some = range(0, len(errors), 37)
        told = np.array([problem.score(tuple(recording.plans[index].tolist())).error for index in some])
        fit = recording.fits[objective]
        assert np.sqrt(((told - errors[some]) ** 2).mean()) < fit.rmse < 0.5 * fit.spread
        assert fit.rank > 0.85


@pytest.mark.skipif("AMC_CIFAR10_NPZ" not in os.environ, reason="needs AMC_CIFAR10_NPZ and AMC_RESNET56_WEIGHTS")
def test_real_evaluation_is_one_argument_away() -> None:
    real = {"weights": os.environ["AMC_RESNET56_WEIGHTS"], "path": os.environ["AMC_CIFAR10_NPZ"]}
    problem, recorded = make_problem(NAME, real=real), make_problem(NAME)
    plan = recorded.fit_to_budget(np.full(len(recorded.decisions), 0.5))
    assert problem.names == recorded.names
    assert problem.dense_costs == recorded.dense_costs
    assert problem.evaluate(plan).reward == pytest.approx(recorded.evaluate(plan).reward, abs=0.015)


@pytest.mark.skipif(DATA is None, reason="AMC_TEST_DATA names no folder of real data")
def test_imagenet_too() -> None:
    assert DATA
    images = Path(DATA) / "imagenet_sample"
    real = {"path": images / "images", "labels": images / "labels.csv"}
    real["weights"] = Path(DATA) / "weights" / "imagenet_mobilenet_v2_1.0_224.pt"
    problem, recorded = make_problem(IMAGENET, real=real), make_problem(IMAGENET)
    assert isinstance(recorded, RecordedProblem)
    assert problem.names == recorded.names
    assert problem.dense_costs == recorded.dense_costs
    plan, error = recorded.recording.plans[1], recorded.recording.errors["top1"][1]
    assert problem.evaluate_widths(tuple(plan.tolist()), probe=True).error == pytest.approx(error, abs=0.005)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_named_problem_can_be_played(name: str) -> None:
    problem = make_problem(name, budget={"macs": "60%"})
    evaluation = problem.evaluate(problem.fit_to_budget(np.full(len(problem.decisions), 0.5)))
    assert evaluation.feasible
    assert evaluation.costs["macs"] / problem.dense_costs["macs"] == pytest.approx(0.6, abs=0.08)
    assert evaluation.accuracy is not None
    assert 0.1 < evaluation.accuracy < 1.0


def test_an_unknown_name_is_told_with_the_known_ones() -> None:
    known = ", ".join(PROBLEMS)
    with pytest.raises(
        ValueError, match=rf"^problem: unknown name 'toy-5v0'; did you mean 'toy5-v0'\? \(known: {known}\)$"
    ):
        make_problem("toy-5v0")


def test_real_evaluation_is_of_recorded_problems_with_weights_and_images() -> None:
    with pytest.raises(
        ValueError, match=rf"^real: 'toy5-v0' is evaluated as it is; only {NAME}, {IMAGENET} were recorded$"
    ):
        make_problem("toy5-v0", real={"weights": "w", "path": "p"})
    with pytest.raises(ValueError, match=r"^real: expected weights, path, got weights$"):
        make_problem(NAME, real={"weights": "w"})
    with pytest.raises(ValueError, match=r"^real: expected weights, path, labels, got weights, path$"):
        make_problem(IMAGENET, real={"weights": "w", "path": "p"})
    with pytest.raises(FileNotFoundError, match=r"^weights: no file w$"):
        make_problem(IMAGENET, real={"weights": "w", "path": "p", "labels": "l"})
