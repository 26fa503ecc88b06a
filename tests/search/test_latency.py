"""Latency in a job and on the command line, on the embedded digits in onnxruntime; trials run in this process."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click.testing
import numpy as np
import pytest
import torch
import yaml
from torch import nn

import search.finetune_job
import search.latency
import search.latency_job
from amc_env.env import PruningEnv
from amc_env.evaluation import NetworkProblem, channel_map
from amc_env.pruning.trace import trace_channels
from hw.latency_file import load_table, save_table
from hw.latency_table import LatencyTable
from hw.timing import Effort, Timing
from search.build import build_problem
from search.cli import main
from search.job import load_results
from search.latency import Winner, WinnersTimed, time_winners, verify_table
from search.latency_job import put_aside, refinements
from search.report import render_report
from search.results import TimedPolicyRecord, TimingRecord
from search.spec import load_spec
from search.tables import winner

pytestmark = pytest.mark.usefixtures("one_process")

SPEC = """\
version: 1
name: digits-latency
network: {kind: digits}
data: {kind: digits, calibration_images: 60, search_images: 100, test_images: 100}
budget: {latency_ms: 85%}
latency: {batch: 64, levels: 3, random: 3, seconds: 1, refine: 0}
pruning: {round_to: 4}
evaluation: {fidelity: magnitude, recalibrate_batchnorm: false}
agents: [{kind: uniform}, {kind: random}]
evaluations: 6
"""


def amc(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a spec and the table that the command line measured for it."""
    place = tmp_path_factory.mktemp("latency")
    (place / "spec.yaml").write_text(SPEC)
    result = amc("lut", "build", place / "spec.yaml", "--out", place / "table.json")
    assert result.exit_code == 0, result.output
    assert "onnxruntime, 1 thread, batch 64, float32" in result.output
    assert "12 networks" in result.output
    assert not (place / "table.json.journal").exists()
    return place


@pytest.fixture
def table(folder: Path) -> LatencyTable:
    return load_table(folder / "table.json")


@pytest.fixture
def problem(folder: Path, table: LatencyTable) -> NetworkProblem:
    built = build_problem(load_spec(folder / "spec.yaml"), table=table)
    assert isinstance(built, NetworkProblem)
    return built


def with_table(folder: Path, tmp_path: Path, **changes: object) -> Path:
    content = yaml.safe_load(SPEC)
    content["budget"]["table"] = str(folder / "table.json")
    content["latency"] |= changes
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def claim_slow_winners(monkeypatch: pytest.MonkeyPatch, excess: list[float]) -> None:
    """Let the clock show, round by round, that winners exceed the limit by so much."""

    def timed(problem: NetworkProblem, table: LatencyTable, policies: list[tuple[int, ...]]) -> WinnersTimed:
        slower, dense = excess.pop(0), Timing(45, 1.0, 1.0, 1.0)
        limit = 0.85 * problem.dense_costs["latency_ms"]
        found = []
        for widths in policies:
            predicted = problem.cost("latency_ms", widths)
            found.append(Winner(widths, predicted, dense, limit * (1 + slower), 1.5, (1.4, 1.6)))
        return WinnersTimed(dense, dense, 1.0, tuple(found))

    monkeypatch.setattr(search.latency_job, "time_winners", timed)


def test_the_table_knows_every_width_that_a_search_can_meet(problem: NetworkProblem) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        widths = tuple(int(rng.choice(decision.choices)) for decision in problem.decisions)
        assert 0 < problem.cost("latency_ms", widths) < 2 * problem.dense_costs["latency_ms"]


def test_the_table_tells_where_it_was_measured(table: LatencyTable) -> None:
    assert table.host.cpus >= 1
    assert set(table.host.versions) == {"onnxruntime", "torch"}
    assert table.reference is not None
    assert table.reference.n >= 24
    assert len(table.networks) == 14  # the dense one in each of two batches


def test_the_dense_network_is_predicted_as_it_was_measured(table: LatencyTable, problem: NetworkProblem) -> None:
    """A statistical test on a shared machine: within a half, which a wrong attribution or unit would not be."""
    assert table.reference is not None
    assert problem.dense_costs["latency_ms"] == pytest.approx(table.reference.p10, rel=0.5)


def test_features_count_latency_where_the_paper_counts_flops(folder: Path, problem: NetworkProblem) -> None:
    spec = load_spec(folder / "spec.yaml")
    macs = build_problem(spec.model_copy(update={"budget": {"macs": "50%"}}))
    assert (problem.feature_cost, macs.feature_cost) == ("latency_ms", "macs")
    latency, flops = (PruningEnv(each).reset()[0] for each in (problem, macs))
    assert latency[:7] == pytest.approx(flops[:7])
    assert latency[9] != pytest.approx(flops[9], rel=1e-3)
    env = PruningEnv(problem)
    env.reset()
    done = False
    while not done:
        observation, _, done, _, info = env.step(np.array([0.5], dtype=np.float32))
    reduced = 1 - info["costs"]["latency_ms"] / problem.dense_costs["latency_ms"]
    assert observation[8] == pytest.approx(reduced, abs=1e-6)


def test_show_diff_and_verify(folder: Path, table: LatencyTable, tmp_path: Path) -> None:
    shown = amc("lut", "show", folder / "table.json")
    assert "conv 3x3 16->16" in shown.output
    assert "then batch_norm+add+relu" in shown.output
    schema = json.loads(amc("lut", "schema").output)
    assert set(schema["required"]) == set(json.loads((folder / "table.json").read_text()))
    csv = amc("lut", "show", folder / "table.json", "--format", "csv").output
    assert csv.count("\n") == 1 + len(table.entries)
    slower = tmp_path / "slower.json"
    (tmp_path / "table.csv").write_text(csv)
    imported = amc("lut", "import", tmp_path / "table.csv", "--out", slower, "--runtime", "pixel1", "--processor", "x")
    assert imported.output == f"{len(table.entries)} entries written to {slower}\n"
    difference = json.loads(amc("lut", "diff", folder / "table.json", slower, "--json").output)
    assert {ratio for _, ratio in difference["ratios"]} == {1.0}
    assert ["runtime", "onnxruntime", "pixel1"] in difference["changed"]
    page = tmp_path / "page.html"
    arguments = (folder / "spec.yaml", folder / "table.json", "--policies", 4, "--json", "--plot", page)
    checked = json.loads(amc("lut", "verify", *arguments).stdout)
    assert len(checked["networks"]) == 4
    assert {"median_error", "p95_error", "rank_correlation", "noise_median", "speeds"} <= set(checked)
    drawn = page.read_text()
    assert drawn.count("<svg") == 2
    assert '<meta name="viewport"' in drawn
    assert re.search(r"<pre>4 random policies, onnxruntime[^<]*\npredicted / measured [^<]*</pre>", drawn)


def test_verification_measures_twice_and_brings_times_to_the_speed_of_the_table(
    table: LatencyTable, problem: NetworkProblem
) -> None:
    checked = verify_table(problem, table, 4, effort=Effort(3, 3))
    assert len(checked.networks) == len(checked.sum_errors) == 4
    assert len(checked.speeds) == 2
    for network in checked.networks:
        assert network.predicted_ms == pytest.approx(problem.cost("latency_ms", network.widths))
        assert network.measured_ms == pytest.approx((network.first_ms + network.second_ms) / 2)


def test_winners_are_timed_beside_the_dense_network(table: LatencyTable, problem: NetworkProblem) -> None:
    timed = time_winners(problem, table, [problem.smallest_widths], effort=Effort(9, 9))
    (smallest,) = timed.winners
    assert smallest.timing.n == timed.dense.n == 9
    assert smallest.speedup == pytest.approx(timed.dense.p10 / smallest.timing.p10)
    assert smallest.speedup_range[0] <= smallest.speedup <= smallest.speedup_range[1]
    assert smallest.measured_ms == pytest.approx(smallest.timing.p10 / timed.speed)


@pytest.mark.parametrize(("speeds", "runs", "taken"), [([1.5, 2.0, 1.03], 3, 1.03), ([2.0, 1.5, 1.2, 1.9], 4, 1.2)])
def test_a_disturbed_run_is_timed_again(
    table: LatencyTable,
    problem: NetworkProblem,
    monkeypatch: pytest.MonkeyPatch,
    speeds: list[float],
    runs: int,
    taken: float,
) -> None:
    made = 0

    def timed(networks: list[object], *_: object, **__: object) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
        nonlocal made
        made += 1
        assert table.reference is not None
        return [np.full(9, speeds[made - 1] * table.reference.p10) for _ in networks]

    monkeypatch.setattr(search.latency, "time_interleaved", timed)
    result = time_winners(problem, table, [problem.smallest_widths])
    assert made == runs
    assert result.speed == pytest.approx(taken)


def test_a_job_with_a_table_times_its_winners(folder: Path, tmp_path: Path) -> None:
    spec = with_table(folder, tmp_path)
    result = amc("run", spec, "--out", tmp_path / "job")
    assert result.exit_code == 0, result.output
    assert "latency" in result.output
    results = load_results(tmp_path / "job")
    record = results.latency
    assert record is not None
    assert record.limit_ms == pytest.approx(0.85 * results.dense.costs["latency_ms"])
    assert results.budgets[0].limit == pytest.approx(0.99 * record.limit_ms)
    assert {policy.agent for policy in record.policies} == {"uniform", "random"}
    assert len(record.checks) == 14
    assert record.staircases
    best = winner(results.trials)
    assert best is not None
    assert best[1].costs["latency_ms"] <= results.budgets[0].limit
    page = render_report(results)
    assert "Latency, predicted and measured" in page
    assert "Measured end to end it takes" in page
    again = amc("resume", tmp_path / "job")
    assert "all trials are finished, nothing to resume" in again.output
    (tmp_path / "job" / "latency.json").write_text("{")
    damaged = amc("export", tmp_path / "job", "--out", tmp_path / "exported")
    assert damaged.exit_code == 2
    assert "latency.json: not a latency table of format 'amc-latency-table', version 1: " in damaged.output
    assert not (tmp_path / "exported").exists()


def test_a_job_without_a_table_measures_one(tmp_path: Path) -> None:
    """Agents whose budgets are fractions of a latency are asked whether they can be met when the table is there."""
    (tmp_path / "spec.yaml").write_text(SPEC.replace("{kind: random}", "{kind: ddpg, budgets: [0.95, 0.85]}"))
    result = amc("run", tmp_path / "spec.yaml", "--out", tmp_path / "job")
    assert result.exit_code == 0, result.output
    assert "measuring latency: 0/12 networks" in result.output
    (front,) = (trial.series for trial in load_results(tmp_path / "job").trials if trial.kind == "ddpg")
    assert front
    assert {network.budget for network in front} <= {0.95, 0.85, 0.85 * 0.99}
    assert "Measured end to end it takes" in result.output
    assert load_table(tmp_path / "job" / "latency.json").conditions.batch == 64
    assert not (tmp_path / "job" / "latency.journal").exists()


def test_a_winner_over_the_budget_corrects_the_table_and_the_search_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_slow_winners(monkeypatch, [0.02, -0.01])
    spec = with_table(folder, tmp_path, refine=2)
    assert amc("run", spec, "--out", tmp_path / "job").exit_code == 0
    job, original = tmp_path / "job", load_table(folder / "table.json")
    results, corrected = load_results(job), load_table(job / "latency.json")
    record = results.latency
    assert record is not None
    assert len(record.refinements) == len(corrected.correction.refinements) == 1
    assert (job / "rounds" / "1" / "trials" / "uniform-seed0" / "result.json").exists()
    first = json.loads(
        (job / "rounds" / "1" / "trials" / record.refinements[0].agent.join(["", "-seed0"]) / "result.json").read_text()
    )
    widths = tuple(first["best"]["widths"])
    before, after = (build_problem(load_spec(spec), table=each) for each in (original, corrected))
    assert before.cost("latency_ms", widths) == pytest.approx(record.refinements[0].predicted_ms)
    assert after.cost("latency_ms", widths) == pytest.approx(record.refinements[0].measured_ms)
    assert after.dense_costs["latency_ms"] == pytest.approx(before.dense_costs["latency_ms"])
    assert "the table was corrected" in " ".join(render_report(results).split())


def test_a_table_that_another_job_has_corrected_is_corrected_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_slow_winners(monkeypatch, [0.02, -0.01, 0.03, -0.01])
    assert amc("run", with_table(folder, tmp_path, refine=1), "--out", tmp_path / "first").exit_code == 0
    table = f"budget.table={tmp_path / 'first' / 'latency.json'}"
    assert amc("run", tmp_path / "spec.yaml", "--out", tmp_path / "second", "--set", table).exit_code == 0
    first, second = (
        load_table(tmp_path / name / "latency.json").correction.refinements for name in ("first", "second")
    )
    assert (len(first), len(second)) == (1, 2)
    assert second[0] == first[0]
    record = load_results(tmp_path / "second").latency
    assert record is not None
    assert [refinement.earlier for refinement in record.refinements] == [1]


def test_a_round_without_a_note_was_interrupted_and_is_taken_again(tmp_path: Path, table: LatencyTable) -> None:
    missed = TimedPolicyRecord(
        agent="uniform", seed=0, widths=(1,), predicted_ms=1.0, measured_ms=1.1,
        timing=TimingRecord(n=1, median=1.1, p10=1.1, p90=1.1), speedup=1.0, speedup_low=1.0, speedup_high=1.0,
    )  # fmt: skip
    (tmp_path / "rounds" / "1").mkdir(parents=True)
    put_aside(tmp_path, missed, table)
    assert [record.measured_ms for record in refinements(tmp_path)] == [1.1]


def test_a_correction_that_leaves_nothing_feasible_is_not_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_slow_winners(monkeypatch, [0.5])
    assert amc("run", with_table(folder, tmp_path, refine=1), "--out", tmp_path / "job").exit_code == 0
    results = load_results(tmp_path / "job")
    assert results.latency is not None
    assert results.latency.refinements == ()
    assert not (tmp_path / "job" / "rounds").exists()
    assert "The winner misses the latency budget when it is measured" in render_report(results)


def test_a_table_of_a_busy_machine_is_told(folder: Path, table: LatencyTable, tmp_path: Path) -> None:
    for error, told in ((0.029, False), (0.031, True)):
        path = tmp_path / f"{error}.json"
        save_table(replace(table, correction=replace(table.correction, after=error)), path)
        assert ("no better than to 3.1 % (median): the machine was busy" in amc("lut", "show", path).output) is told
    job = tmp_path / "job"
    amc("run", with_table(folder, tmp_path), "--out", job, "--set", f"budget.table={tmp_path / '0.031.json'}")
    assert "The latency table predicts networks that it has seen no better than" in render_report(load_results(job))


def test_a_winner_that_misses_the_budget_is_told_plainly(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim_slow_winners(monkeypatch, [0.06])
    amc("run", with_table(folder, tmp_path), "--out", tmp_path / "job")
    page = render_report(load_results(tmp_path / "job"))
    assert "misses the budget of" in page
    assert "The winner misses the latency budget when it is measured" in page


def test_an_interrupted_refinement_is_finished_on_resume(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    claim_slow_winners(monkeypatch, [0.02, -0.01])
    spec, job = with_table(folder, tmp_path, refine=1), tmp_path / "job"
    with monkeypatch.context() as patched:
        patched.setattr(
            search.latency_job,
            "save_table",
            lambda table, path: save_table(table, path) if not (job / "rounds").exists() else killed(),
        )
        assert amc("run", spec, "--out", job).exit_code == 130
    assert (job / "rounds" / "1" / "refinement.json").exists()
    assert not (job / "rounds" / "1" / "trials").exists()
    assert amc("resume", job).exit_code == 0
    assert len(load_table(job / "latency.json").correction.refinements) == 1
    assert load_results(job).latency is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("budget.latency_ms=10%", "budget latency_ms <= "),
        ("latency.threads=2", "but the spec's section latency says onnxruntime, 2 threads, batch 64, float32; change"),
        ("latency.runtime=onnx", "latency.runtime: expected one of onnxruntime, torch, torch.compile, cuda"),
        ("budget.table=nowhere.json", "nowhere.json: cannot be read as a latency table: No such file or directory"),
        ("network={kind: toy}", "budget: the toy problem has no latency, for it has no network"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    folder: Path, tmp_path: Path, change: str, message: str
) -> None:
    extra = ("--set", "data=null", "--set", "evaluation={}") if "toy" in change else ()
    result = amc("run", with_table(folder, tmp_path), "--out", tmp_path / "job", "--set", change, *extra)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "job").exists()


def test_a_network_that_the_table_does_not_know_names_the_command(folder: Path, tmp_path: Path) -> None:
    spec = with_table(folder, tmp_path)
    result = amc(
        "run", spec, "--out", tmp_path / "job", "--set", "pruning.max_ratio=0.95", "--set", "pruning.round_to=1"
    )
    assert result.exit_code == 2
    assert "the latency table has no entry for layer" in result.output
    assert "Measure it with: amc lut build SPEC --out TABLE.json" in result.output


def test_lut_build_refuses_what_would_be_lost(folder: Path, tmp_path: Path) -> None:
    result = amc("lut", "build", folder / "spec.yaml", "--out", folder / "table.json")
    assert result.exit_code == 2
    assert "table.json exists; delete it or give another name" in result.output
    result = amc("lut", "build", folder / "spec.yaml", "--out", tmp_path / "no" / "table.json")
    assert "there is no folder" in result.output
    result = amc("lut", "show", folder / "spec.yaml")
    assert result.exit_code == 1
    assert "not a latency table of format 'amc-latency-table', version 1" in result.output


def test_winners_are_not_timed_again_because_their_fine_tuning_was_interrupted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    claim_slow_winners(monkeypatch, [-0.01])  # once
    spec, job = with_table(folder, tmp_path), tmp_path / "job"
    with monkeypatch.context() as patched:
        patched.setattr(search.finetune_job, "fine_tune", killed)
        assert amc("run", spec, "--out", job, "--set", "finetune={steps: 1, threads: 1}").exit_code == 130
    timed = load_results(job).latency
    assert timed is not None
    outcome = amc("resume", job)
    assert outcome.exit_code == 0, outcome.output
    results = load_results(job)
    assert results.finetune is not None
    assert results.latency == timed


class Joined(nn.Module):
    """Many branches; one norm and one linear layer read them all, as in DenseNets."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(1, 8, 3) for _ in range(14))
        self.norm = nn.BatchNorm2d(14 * 8)
        self.head = nn.Linear(14 * 8, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        joined = self.norm(torch.cat([branch(image) for branch in self.branches], 1))
        logits: torch.Tensor = self.head(joined.relu().mean((2, 3)))
        return logits


def test_a_norm_lets_no_decisions_meet() -> None:
    graph = trace_channels(Joined().eval(), torch.rand(1, 1, 6, 6))
    problem: Any = SimpleNamespace(
        channels=channel_map(graph, graph.groups),
        layers=graph.layers,
        decisions=[SimpleNamespace(choices=tuple(range(1, 9))) for _ in graph.groups],
    )
    assert [layer.op for layer in graph.layers].count("norm") == 1
    assert len(search.latency._covering(problem, 7)) == 49
