"""The exported network: whole or not at all, rebuilt from its plan, and equal in onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from amc_env import PruningPolicy
from amc_env.evaluation import NetworkProblem
from search import export
from search.build import build_problem
from search.job import load_results, run_job
from search.results import Results
from search.spec import load_spec
from search.spec_models import Spec

SPEC = """\
version: 1
name: digits
network: {kind: digits}
data: {kind: digits, calibration_images: 100, search_images: 100, test_images: 100}
budget: {macs: 50%}
pruning: {round_to: 2}
agents: [{kind: random}, {kind: uniform}]
seeds: [0, 1]
evaluations: 2
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    (folder / "spec.yaml").write_text(SPEC)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_CACHE", str(folder / "cache"))
        results = run_job(load_spec(folder / "spec.yaml"), folder / "job")
    assert results.status == "finished"
    return folder / "job"


@pytest.fixture(autouse=True)
def _cache(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE", str(job.parent / "cache"))


def problem_of(results: Results) -> NetworkProblem:
    problem = build_problem(Spec.model_validate(results.spec))
    assert isinstance(problem, NetworkProblem)
    return problem


def test_everything_exported_is_the_winner(job: Path, tmp_path: Path) -> None:
    export.export_job(job, tmp_path / "pruned")
    names = {path.name for path in (tmp_path / "pruned").iterdir()}
    assert names == {"policy.json", "plan.json", "weights.pt", "model.onnx", "card.json"}
    results = load_results(job)
    trial, winner = export.choose_winner(results, None, None)
    assert winner.reward == max(t.best.reward for t in results.trials if t.best)
    problem = problem_of(results)
    assert PruningPolicy.load(tmp_path / "pruned" / "policy.json") == PruningPolicy(winner.ratios)
    card = json.loads((tmp_path / "pruned" / "card.json").read_text())
    assert (card["agent"], card["seed"]) == (trial.agent, trial.seed)
    assert card["pruned"]["test_accuracy"] == card["test_accuracy_at_export"] == winner.test_accuracy
    assert card["spec_id"] == results.spec_id
    images = problem.data.preprocessing(problem.data.test.images[:7])
    loaded = export.load_exported(tmp_path / "pruned")
    with torch.no_grad():
        expected = problem.prune(winner.widths)(images)
        torch.testing.assert_close(loaded(images), expected, rtol=1e-5, atol=1e-5)
    assert sum(parameter.numel() * 4 for parameter in loaded.parameters()) == winner.costs["size"]
    session = onnxruntime.InferenceSession(tmp_path / "pruned" / "model.onnx", providers=["CPUExecutionProvider"])
    actual = session.run(None, {"images": images.numpy()})[0]
    np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-4, atol=1e-4)


def test_one_agent_or_seed_may_be_asked_for(job: Path) -> None:
    results = load_results(job)
    assert export.choose_winner(results, "uniform", None)[0].agent == "uniform"
    assert export.choose_winner(results, "random", 1)[0].seed == 1
    with pytest.raises(
        export.ExportError,
        match=r"no feasible policy of agent ddpg, seed 3; trials: random seed 0 \(finished\), random seed 1",
    ):
        export.choose_winner(results, "ddpg", 3)


def test_an_export_that_fails_its_check_leaves_nothing(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "ONNX_TOLERANCE", -1.0)
    with pytest.raises(export.ExportError, match="onnxruntime's outputs differ by"):
        export.export_job(job, tmp_path / "pruned")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(job: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(export.ExportError, match="exists and is not an empty folder; give another --out"):
        export.export_job(job, tmp_path)
    assert (tmp_path / "mine").read_text() == "precious"
