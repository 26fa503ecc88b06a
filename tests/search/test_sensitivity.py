"""Sensitivity curves on the command line and in the report of a job, on the toy problem."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import click.testing
import pytest

import search.build
from agents.sensitivity import Sensitivity
from agents.uniform import Uniform
from amc_env.problem import Score, Widths
from search.cli import main
from search.journal import read_journal
from search.report import render_report
from search.results import HistoryPoint, Results
from search.sensitivity import CurvePoint, SensitivityRecord, make_curves
from search.sensitivity_report import curves_plot, sensitivity_page, sensitivity_sections
from search.spec import load_spec
from tests.search.test_cli import DIGITS

SPEC = """\
version: 1
name: toy
network: {kind: toy, decisions: 3, channels: 10}
agents: [{kind: uniform}]
evaluations: 1
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def amc(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, ["sensitivity", *(str(argument) for argument in arguments)])


class Scores:
    """Counts what is scored, and interrupts before one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.interrupt_at = 0, -1
        original = search.build.SlowToyProblem.score

        def score(problem: search.build.SlowToyProblem, widths: Widths) -> Score:
            if self.count == self.interrupt_at:
                raise KeyboardInterrupt
            self.count += 1
            return original(problem, widths)

        monkeypatch.setattr(search.build.SlowToyProblem, "score", score)


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Scores:
    return Scores(monkeypatch)


def test_a_table_and_three_files_without_budget_or_search(spec: Path, tmp_path: Path, scores: Scores) -> None:
    out = tmp_path / "curves"
    outcome = amc(spec, "--out", out)
    assert outcome.exit_code == 0, outcome.output
    assert scores.count == 1 + 3 * 9
    lines = outcome.stdout.splitlines()
    assert lines[0].split() == ["layer", "channels", *(f"0.{tenth}" for tenth in range(1, 10))]
    assert set(lines[1]) == {"─", " "}
    assert [line.split()[:2] for line in lines[2:5]] == [["layer0", "10"], ["layer1", "10"], ["layer2", "10"]]
    assert lines[5] == (
        "top-1 accuracy in % on the search split, by the share of channels removed from that layer alone (the nearest "
        "allowed); dense 100.0 %"
    )
    assert "28/28 measurements" in outcome.stderr
    record = SensitivityRecord.model_validate_json((out / "sensitivity.json").read_bytes())
    problem = search.build.build_problem(load_spec(spec, ["reward=error_macs"]))
    assert isinstance(problem, search.build.SlowToyProblem)
    for curve, sensitivity, line in zip(record.curves, problem.sensitivities, lines[2:5], strict=True):
        assert [point.kept for point in curve.points] == [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
        assert curve.at(0.5).error == pytest.approx(sensitivity * 0.25)
        assert line.split()[6] == f"{100 * (1 - sensitivity * 0.25):.1f}"
    with (out / "sensitivity.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 10
    assert list(rows[0]) == ["layer", "channels", "kept", "ratio", "error", "accuracy", "envelope"]
    assert (out / "sensitivity.html").read_text() == sensitivity_page(record)


def test_without_a_folder_the_same_command_goes_on_all_the_same(
    spec: Path, tmp_path: Path, scores: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        outcome = amc(spec)
        assert outcome.exit_code == 0, outcome.output
        assert scores.count == 1 + 3 * 9
    folder = Path("runs") / f"{load_spec(spec, ['reward=error_macs']).name}-sensitivity"
    assert outcome.stdout.splitlines()[-1] == f"page: {folder / 'sensitivity.html'}"
    assert (folder / "sensitivity.csv").is_file()


def test_one_json_object_instead_of_the_table(spec: Path, tmp_path: Path) -> None:
    outcome = amc(spec, "--out", tmp_path / "curves", "--json", "--step", "0.25")
    record = SensitivityRecord.model_validate_json(outcome.stdout)
    assert record.ratios == (0.25, 0.5, 0.75)
    assert record.conditions["network"]["decisions"] == 3
    assert json.loads((tmp_path / "curves" / "sensitivity.json").read_text()) == json.loads(outcome.stdout)


def test_what_was_stopped_goes_on_where_it_was(spec: Path, tmp_path: Path, scores: Scores) -> None:
    out = tmp_path / "curves"
    scores.interrupt_at = 11
    stopped = amc(spec, "--out", out)
    assert stopped.exit_code == 130
    assert "interrupted; the same command goes on" in stopped.stderr
    assert len(read_journal(out / "evaluations.jsonl")) == 11
    assert not (out / "sensitivity.json").exists()
    scores.interrupt_at = -1
    assert amc(spec, "--out", out).exit_code == 0
    assert scores.count == 28
    assert amc(spec, "--out", tmp_path / "undisturbed").exit_code == 0
    resumed, undisturbed = (
        SensitivityRecord.model_validate_json((folder / "sensitivity.json").read_bytes()).curves
        for folder in (out, tmp_path / "undisturbed")
    )
    assert resumed == undisturbed


def test_other_ratios_measure_what_is_missing(spec: Path, tmp_path: Path, scores: Scores) -> None:
    out = tmp_path / "curves"
    assert amc(spec, "--out", out, "--ratios", "0.5").exit_code == 0
    assert scores.count == 1 + 3
    assert amc(spec, "--out", out, "--ratios", "0.8,0.5").exit_code == 0
    assert scores.count == 1 + 3 + 3
    record = SensitivityRecord.model_validate_json((out / "sensitivity.json").read_bytes())
    assert [[point.kept for point in curve.points] for curve in record.curves] == [[10, 5, 2]] * 3
    assert amc(spec, "--out", out, "--ratios", "0.8,0.5").exit_code == 0
    assert scores.count == 1 + 3 + 3


def test_what_only_the_final_network_is_given_measures_nothing_anew(tmp_path: Path) -> None:
    path, out = tmp_path / "spec.yaml", tmp_path / "curves"
    path.write_text(DIGITS)
    assert amc(path, "--out", out, "--ratios", "0.5").exit_code == 0
    journal = (out / "evaluations.jsonl").read_bytes()
    assert amc(path, "--set", "evaluation.block_epochs=10", "--out", out, "--ratios", "0.5").exit_code == 0
    assert (out / "evaluations.jsonl").read_bytes() == journal


def test_a_folder_of_something_else_is_refused(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "curves"
    assert amc(spec, "--out", out, "--ratios", "0.5").exit_code == 0
    outcome = amc(spec, "--out", out, "--set", "network.seed=1")
    assert outcome.exit_code == 2
    assert outcome.stderr == (
        f"error: {out}: holds measurements of another network; take another folder, or delete this one\n"
    )
    outcome = amc(spec, "--out", tmp_path)
    assert outcome.exit_code == 2
    assert outcome.stderr == (f"error: {tmp_path}: expected a new or empty folder, or one of an earlier measurement\n")
    (out / "conditions.json").write_text("{")
    assert f"error: {out / 'conditions.json'} is damaged; delete the folder" in amc(spec, "--out", out).stderr


def test_a_folder_in_which_nothing_was_measured_yet_may_change(spec: Path, tmp_path: Path, scores: Scores) -> None:
    scores.interrupt_at = 0
    assert amc(spec, "--out", tmp_path / "curves").exit_code == 130
    scores.interrupt_at = -1
    assert amc(spec, "--out", tmp_path / "curves", "--set", "network.decisions=2").exit_code == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--step", "0.1", "--ratios", "0.5"], "--step and --ratios: expected one of them"),
        (["--step", "1"], "1.0 is not in the range 0<x<1"),
        (["--ratios", "0,0.5"], "--ratios: expected fractions in (0, 1), such as 0.25,0.5, got '0,0.5'"),
        (["--ratios", "half"], "--ratios: expected fractions in (0, 1), such as 0.25,0.5, got 'half'"),
    ],
)
def test_unusable_ratios_are_refused(spec: Path, tmp_path: Path, options: list[str], expected: str) -> None:
    outcome = amc(spec, "--out", tmp_path / "curves", *options)
    assert outcome.exit_code == 2
    assert expected in outcome.stderr
    assert not (tmp_path / "curves").exists()


def test_missing_weights_are_told_without_a_traceback(spec: Path, tmp_path: Path) -> None:
    network = "network={kind: cifar_resnet, depth: 20, weights: /none.pt}"
    outcome = amc(spec, "--set", network, "--set", "data={kind: digits}", "--out", tmp_path / "curves")
    assert outcome.exit_code == 2
    assert "no file /none.pt" in outcome.stderr
    assert "Traceback" not in outcome.output
    assert not (tmp_path / "curves").exists()


def point(widths: Widths, error: float) -> HistoryPoint:
    return HistoryPoint(
        widths=widths, reward=None, error=error, accuracy=1 - error, costs={}, best_reward=None, stopped_early=False
    )


def test_curves_are_made_of_what_prunes_one_layer_alone() -> None:
    history = [point((4, 4), 0.1), point((2, 4), 0.4), point((1, 4), 0.3), point((2, 2), 0.9)]
    first, second = make_curves({"a": 4, "b": 4}, history)
    dense = CurvePoint(kept=4, ratio=0.0, error=0.1, accuracy=0.9, envelope=0.1)
    assert first.points == (
        dense,
        CurvePoint(kept=2, ratio=0.5, error=0.4, accuracy=0.6, envelope=0.4),
        CurvePoint(kept=1, ratio=0.75, error=0.3, accuracy=0.7, envelope=0.4),
    )
    assert second.points == (dense,)


def test_every_layer_has_a_panel_on_both_screens() -> None:
    curves = make_curves({f"layer{index}": 4 for index in range(27)}, dense_and_halves(27))
    for narrow in (False, True):
        drawn = curves_plot(curves, "top1", narrow=narrow)
        assert [f"layer{index}: 4 channels" in drawn for index in range(27)] == [True] * 27
        assert drawn.count('class="winner c0"') == 27
        assert "layer3: 2 of 4 channels kept, 50.0 % removed, top1 error 20.00 %" in drawn


def dense_and_halves(layers: int) -> list[HistoryPoint]:
    dense = (4,) * layers
    halves = [point((*dense[:index], 2, *dense[index + 1 :]), 0.2) for index in range(layers)]
    return [point(dense, 0.1), *halves]


def test_names_are_escaped() -> None:
    curves = make_curves({"<b>&": 4}, dense_and_halves(1))
    record = SensitivityRecord(
        name="\x1b[1m<i>", objective="top1", ratios=(0.5,), curves=curves, seconds=1.0, conditions={}, versions={}
    )
    page = sensitivity_page(record)
    assert "<h1>&lt;i&gt;</h1>" in page
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;&amp;: 4 channels" in page


def test_without_accuracies_the_page_shows_errors() -> None:
    bare = [entry.model_copy(update={"accuracy": None}) for entry in dense_and_halves(2)]
    record = SensitivityRecord(
        name="detector",
        objective="agreement",
        ratios=(0.5,),
        curves=make_curves({"a": 4, "b": 4}, bare),
        seconds=1.0,
        conditions={},
        versions={},
    )
    page = sensitivity_page(record)
    said = "b suffers most: agreement (nats) 0.2 without 50 % of its channels, a least, 0.2; the dense network has 0.1."
    assert said in page
    assert "top-1" not in page


def test_the_report_of_a_job_shows_the_curves_of_its_sensitivity_trial(toy_results: Callable[..., Results]) -> None:
    results = toy_results(agents=[Sensitivity(), Uniform()], evaluations=30)
    section = sensitivity_sections(results)
    assert "<h2>Sensitivity of each layer, measured by sensitivity</h2>" in section
    assert "The vertical line is the ratio that the trial came to." in section
    assert section.count('<line class="limit"') == 2 * 6  # wide and narrow
    assert section in render_report(results)


def test_a_report_without_such_a_trial_has_no_section(toy_results: Callable[..., Results]) -> None:
    assert sensitivity_sections(toy_results()) == ""
