"""The exported network: whole or not at all, rebuilt from its plan, and equal in onnxruntime."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner

from amc_env import PruningPolicy
from amc_env.evaluation import NetworkProblem
from hw.torch_threads import torch_threads
from search import export
from search.build import build_problem
from search.chosen import ChoiceError, choose_winner
from search.cli import main
from search.figures import percent
from search.job import load_results, run_job
from search.results import PolicyRecord, Results, SeriesRecord
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
    results = run_job(load_spec(folder / "spec.yaml"), folder / "job")
    assert results.status == "finished"
    return folder / "job"


def problem_of(results: Results) -> NetworkProblem:
    problem = build_problem(Spec.model_validate(results.spec))
    assert isinstance(problem, NetworkProblem)
    return problem


def test_everything_exported_is_the_winner(job: Path, tmp_path: Path) -> None:
    export.export_job(job, tmp_path / "pruned")
    names = {path.name for path in (tmp_path / "pruned").iterdir()}
    assert names == {"policy.json", "plan.json", "weights.pt", "model.onnx", "card.json"}
    results = load_results(job)
    chosen = choose_winner(results, None, None)
    trial, winner = chosen.trial, chosen.network
    assert isinstance(winner, PolicyRecord)
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


def test_blocks_are_reconstructed_as_when_the_trial_tested_them(tmp_path: Path) -> None:
    """On as many threads: what is trained depends on how sums are rounded."""
    (tmp_path / "spec.yaml").write_text(
        SPEC.replace("agents:", "evaluation: {objective: cross_entropy, block_epochs: 5}\nagents:")
    )
    results = run_job(load_spec(tmp_path / "spec.yaml"), tmp_path / "job")
    winner = choose_winner(results, None, None).network
    assert isinstance(winner, PolicyRecord)
    with torch_threads(2):
        export.export_job(tmp_path / "job", tmp_path / "pruned")
        assert torch.get_num_threads() == 2
    card = json.loads((tmp_path / "pruned" / "card.json").read_text())
    assert card["test_error_at_export"] == winner.test_error


def test_weights_that_were_saved_on_a_gpu_are_loaded_without_one(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before networks were moved to the CPU to be saved."""
    export.export_job(job, tmp_path / "pruned")
    state = torch.load(tmp_path / "pruned" / "weights.pt", weights_only=True)
    monkeypatch.setattr("torch.serialization.location_tag", lambda storage: "cuda:0")
    torch.save(state, tmp_path / "pruned" / "weights.pt")
    for name, tensor in export.load_exported(tmp_path / "pruned").state_dict().items():
        assert torch.equal(tensor, state[name])
        assert tensor.device.type == "cpu"


def test_one_agent_or_seed_may_be_asked_for(job: Path) -> None:
    results = load_results(job)
    assert choose_winner(results, "uniform", None).trial.agent == "uniform"
    assert choose_winner(results, "random", 1).trial.seed == 1
    with pytest.raises(
        ChoiceError,
        match=r"no feasible policy of agent ddpg, seed 3; trials: random seed 0 \(finished\), random seed 1",
    ):
        choose_winner(results, "ddpg", 3)


@pytest.fixture(scope="module")
def series_job(job: Path) -> Path:
    """The job as if its random agents had kept the dense network and two smaller ones, the last within the budget."""
    folder = job.parent / "series"
    shutil.copytree(job, folder)
    results = load_results(job)
    problem = problem_of(results)
    series = []
    for removed in (0.0, 0.25, 0.5):
        scored = problem.evaluate_widths(problem.widths([removed] * len(problem.decisions)), probe=True)
        assert scored.error is not None
        series.append(
            SeriesRecord(
                widths=scored.widths, costs=dict(scored.costs), search_error=scored.error,
                search_accuracy=scored.accuracy, feasible=scored.feasible,
            )
        )  # fmt: skip
    assert [network.feasible for network in series] == [False, False, True]
    trials = (
        trial.model_copy(update={"series": tuple(series)}) if trial.agent == "random" else trial
        for trial in results.trials
    )
    results = results.model_copy(update={"trials": tuple(trials)})
    (folder / "results.json").write_text(results.model_dump_json())
    return folder


@pytest.mark.parametrize("step", [2, 3])
def test_a_network_of_a_series_is_exported_by_its_number(series_job: Path, tmp_path: Path, step: int) -> None:
    out = tmp_path / "network"
    outcome = CliRunner().invoke(
        main, f"export {series_job} --agent random --seed 1 --step {step} --out {out}".split(), catch_exceptions=False
    )
    assert outcome.exit_code == 0
    assert ("network 2 of random seed 1 is over the budget" in outcome.stderr) == (step == 2)
    results = load_results(series_job)
    network = next(trial for trial in results.trials if (trial.agent, trial.seed) == ("random", 1)).series[step - 1]
    card = json.loads((out / "card.json").read_text())
    assert (card["series"], card["within_budget"]) == ({"step": step, "of": 3}, step == 3)
    assert (card["agent"], card["seed"], card["pruned"]["widths"]) == ("random", 1, list(network.widths))
    problem = problem_of(results)
    assert card["test_accuracy_at_export"] == problem.measure(network.widths, "test").accuracy
    assert problem.widths(PruningPolicy.load(out / "policy.json")) == network.widths
    images = problem.data.preprocessing(problem.data.test.images[:7])
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    actual = session.run(None, {"images": images.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(actual, problem.prune(network.widths)(images).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("agent", "seed", "step", "message"),
    [
        ("random", 0, 4, "step 4: the series of random seed 0 has networks 1 to 3"),
        ("random", 0, 0, "step 0: the series of random seed 0 has networks 1 to 3"),
        (
            None,
            None,
            1,
            "step 1: expected one trial with a series, agent any, seed any has 2; give --agent and --seed of one of "
            "those with networks on the way: random seed 0 (3), random seed 1 (3)",
        ),
        ("uniform", None, 1, "agent uniform, seed any has 0; give --agent and --seed of one of those"),
    ],
)
def test_a_network_that_there_is_not_is_refused(
    series_job: Path, tmp_path: Path, agent: str | None, seed: int | None, step: int, message: str
) -> None:
    with pytest.raises(ChoiceError, match=re.escape(message)):
        export.export_job(series_job, tmp_path / "network", agent, seed, step)
    assert list(tmp_path.iterdir()) == []


def test_show_lists_the_networks_of_a_series(series_job: Path) -> None:
    shown = CliRunner().invoke(main, ["show", str(series_job)]).stdout
    command = f"amc export {series_job} --agent random --seed 1 --step N --out NEW"
    assert f"networks on the way of random seed 1; export number N with: {command}\n" in shown
    table = shown.partition(command)[2].splitlines()
    assert table[1].split() == ["step", "MACs", "of", "dense", "size", "of", "dense", "search", "accuracy", "budget"]
    network = load_results(series_job).trials[1].series[0]
    assert table[3].split() == ["1", "100.0", "%", "100.0", "%", *percent(network.search_accuracy).split(), "over"]
    assert [line.split()[-1] for line in table[3:6]] == ["over", "over", "within"]


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


def test_weights_that_have_moved_are_named(job: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(job, moved)
    results = load_results(moved)
    network = {"kind": "cifar_resnet", "depth": 20, "weights": str(tmp_path / "gone.pt")}
    spec = {**results.spec, "network": network}
    (moved / "results.json").write_text(results.model_copy(update={"spec": spec}).model_dump_json())
    refused = CliRunner().invoke(main, ["export", str(moved), "--out", str(tmp_path / "out")])
    assert refused.exit_code == 1
    assert refused.stderr.startswith("error: ")
    assert f"{tmp_path / 'gone.pt'}" in refused.stderr
    assert not (tmp_path / "out").exists()
