"""Jobs on single weights: what a spec may say of them, and one from its start to the exported files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from amc_env.evaluation import NetworkProblem
from amc_env.fine_grained import WeightProblem
from amc_env.storage import load_compressed
from search.build import build_problem, build_untrained
from search.chosen import choose_winner
from search.export import export_job, load_exported
from search.job import load_results, run_job
from search.progress import CalibrationProgress
from search.spec import SpecError, load_spec, save_spec
from search.spec_models import Spec
from tests.search.conftest import run_here

SPEC = """\
version: 1
name: digits-weights
network: {kind: digits}
data: {kind: digits, calibration_images: 100, search_images: 100, test_images: 100}
budget: {size: 10%}
pruning: {granularity: fine_grained}
storage: {codebook: 16}
agents: [{kind: reconstruction}, {kind: uniform}, {kind: sensitivity, ratios: [0.8]}]
evaluations: 12
finetune: {steps: 3, threads: 1}
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    (folder / "spec.yaml").write_text(SPEC)
    said: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMC_CACHE", str(folder / "cache"))
        patch.setattr("search.job._search", run_here)
        results = run_job(load_spec(folder / "spec.yaml"), folder / "job", on_progress=said.append)
    assert [(trial.agent, trial.error) for trial in results.trials if trial.status != "finished"] == []
    calibrations = [progress for progress in said if isinstance(progress, CalibrationProgress)]
    assert calibrations[0].done == 0
    assert calibrations[-1].done == calibrations[-1].layers
    return folder / "job"


@pytest.fixture(autouse=True)
def _cache(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shared = "job" in request.fixturenames
    folder = request.getfixturevalue("job").parent if shared else tmp_path
    monkeypatch.setenv("AMC_CACHE", str(folder / "cache"))


def written(folder: Path, text: str = SPEC) -> Path:
    (folder / "spec.yaml").write_text(text)
    return folder / "spec.yaml"


def test_defaults_are_those_for_single_weights(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path))
    assert spec.pruning.model_dump() == {
        "granularity": "fine_grained", "round_to": 1, "max_ratio": 0.98, "criterion": "obs", "keep": (),
    }  # fmt: skip
    assert spec.evaluation.fidelity == "prefix"
    assert spec.storage is not None
    assert spec.storage.model_dump() == {"format": "eie", "elements": 1, "codebook": 16}
    (tmp_path / "again.yaml").write_text(save_spec(spec))
    assert load_spec(tmp_path / "again.yaml") == spec


@pytest.mark.parametrize("granularity", ["2:4", "n:4", "4x1", "kernel"])
def test_patterns_are_stored_by_their_own_form_unless_told(granularity: str, tmp_path: Path) -> None:
    """Also 2:4 without quotes, which YAML takes for a number to base 60."""
    text = SPEC.replace("fine_grained", granularity)
    spec = load_spec(written(tmp_path, text))
    assert spec.pruning.granularity == granularity
    assert spec.pruning.criterion == "obs"
    assert spec.storage is not None
    assert spec.storage.model_dump() == {"format": "pattern", "elements": 1, "codebook": 16}
    (tmp_path / "again.yaml").write_text(save_spec(spec))
    assert load_spec(tmp_path / "again.yaml") == spec
    kept = load_spec(written(tmp_path, text.replace("{codebook: 16}", "{format: eie}")))
    assert kept.storage is not None
    assert kept.storage.format == "eie"
    assert load_spec(tmp_path / "spec.yaml", ["storage=null"]).storage == spec.storage.model_copy(
        update={"codebook": None}
    )


def test_channels_stay_the_default(tmp_path: Path) -> None:
    text = SPEC.replace("{granularity: fine_grained}", "{}").replace("storage:", "# storage:").replace("10%", "50%")
    spec = load_spec(written(tmp_path, text))
    assert spec.pruning.granularity == "channel"
    assert spec.evaluation.fidelity == "sequential"
    assert isinstance(build_problem(spec), NetworkProblem)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "pruning.granularity=filters",
            "pruning.granularity: expected one of fine_grained, vector, kernel, filter, channel, NxM (such as 4x1) or "
            "N:M (such as 2:4, n:4), got 'filters'; did you mean filter?",
        ),
        ("pruning.granularity=5:4", "pruning.granularity: expected N:M with N from 1 to M - 1"),
        ("storage={format: pattern, elements: 2}", "storage: elements: of format eie only, got 2 with pattern"),
        ("pruning.criterion=energy", "pruning: criterion: energy is of channels, by the layers that read them; for"),
        ("pruning.criterion=apoz", "pruning: criterion: apoz scores whole filters; take granularity filter (or"),
        ("pruning.round_to=8", "pruning: round_to: how many weights stay follows from the pattern, got 8"),
        ("evaluation.fidelity=sequential", "evaluation.fidelity: sequential fits layers that lose channels"),
        ("storage.codebook=32", "storage.codebook: Input should be 16 or 256, got 32"),
        ("storage.format=csr", "storage.format: Input should be 'eie' or 'pattern', got 'csr'"),
        ("budget.latency_ms=50%", "budget: latency_ms is of dense layers, which lose no time with single weights"),
        ("pruning.granularity=channel", "storage: only for single weights; leave it out, or set pruning.granularity"),
    ],
)
def test_what_does_not_go_together_is_refused(override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        load_spec(written(tmp_path), [override])
    assert message in str(refused.value)


def test_the_toy_problem_has_no_weights() -> None:
    toy: dict[str, Any] = {
        "version": 1, "network": {"kind": "toy"}, "budget": {"macs": "50%"}, "agents": [{"kind": "uniform"}],
        "evaluations": 1, "pruning": {"granularity": "fine_grained"},
    }  # fmt: skip
    with pytest.raises(
        ValueError, match=r"evaluation: network 'toy' has a closed-form accuracy|the toy problem has no w"
    ):
        Spec.model_validate(toy)


def test_the_exported_network_is_the_winner_and_so_is_its_compressed_form(job: Path, tmp_path: Path) -> None:
    export_job(job, tmp_path / "pruned")
    folder, results = tmp_path / "pruned", load_results(job)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "policy.json", "plan.json", "masks.npz", "weights.pt", "model.onnx", "card.json", "compressed",
    }  # fmt: skip
    winner = choose_winner(results, None, None).network
    problem = build_problem(Spec.model_validate(results.spec))
    assert isinstance(problem, WeightProblem)
    card = json.loads((folder / "card.json").read_text())
    plan = json.loads((folder / "plan.json").read_text())
    network = load_exported(folder)
    with np.load(folder / "masks.npz") as masks:
        assert sorted(masks) == sorted(plan["layers"])
        for name, layer in plan["layers"].items():
            assert int(masks[name].sum()) == layer["kept"]
            weight = network.get_parameter(f"{name}.weight").detach().numpy()
            assert ((weight != 0) == masks[name]).all()
    stages = {stage["stage"]: stage["bytes"] for stage in card["compression"]}
    assert stages["shared"] == winner.costs["size"] <= 0.1 * stages["dense"]
    stored = build_untrained(Spec.model_validate(results.spec))
    load_compressed(stored, folder / "compressed")
    images = problem.data.preprocessing(problem.data.test.images)
    with torch.no_grad():
        torch.testing.assert_close(stored(images), network(images), rtol=1e-4, atol=1e-4)
    assert card["fine_tuned"]["after"]["test_error"] == problem.measure_network(network, "test").error


def test_the_report_speaks_of_weights(job: Path) -> None:
    report = (job / "report.html").read_text()
    assert "The fraction of weights that the best policy of each agent removes" in report
    assert "<th>weights</th>" in report
    assert "channels" not in report
