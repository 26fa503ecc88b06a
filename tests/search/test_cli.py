"""The command line: verbs, exit codes and messages. Trials run in this process; `test_tuner` runs them on Ray."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import click.testing
import pytest

import search.job
from agents.base import OnEvaluation
from agents.random_search import RandomSearch
from amc_env.problem import Evaluation, PruningProblem
from search.cli import _Lines, main
from search.cli_errors import clear_errors
from search.job import load_results
from search.progress import FineTuneProgress, TrialProgress
from search.verdict import caveats, score_note, verdict
from tests.search.conftest import comparable

pytestmark = pytest.mark.usefixtures("one_process")

SPEC = """\
version: 1
name: toy
network: {kind: toy, decisions: 4}
budget: {macs: 50%}
agents: [{kind: uniform}, {kind: random}]
seeds: [0, 1]
evaluations: 5
"""

DIGITS = """\
version: 1
name: digits
network: {kind: digits}
data: {kind: digits, calibration_images: 60, search_images: 100, test_images: 100}
budget: {macs: 50%}
pruning: {round_to: 4}
evaluation: {fidelity: sequential, images: 40, rows: 500, objective: agreement}
agents: [{kind: uniform}, {kind: reconstruction}]
evaluations: 2
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    return path


def amc(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])


def fail_at(monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    """Let the random agent fail after its second evaluation."""

    def search(
        self: RandomSearch, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        original(self, problem, max_evaluations=2, seed=seed, on_evaluation=on_evaluation)
        raise error("on purpose")

    original = RandomSearch.search
    monkeypatch.setattr(RandomSearch, "search", search)


def test_run_prints_the_comparison_and_leaves_results_and_report(spec: Path, tmp_path: Path) -> None:
    outcome = amc("run", spec, "--out", tmp_path / "job", "--set", "evaluations=6")
    assert outcome.exit_code == 0
    assert "uniform" in outcome.stdout
    assert f"report: {tmp_path / 'job' / 'report.html'}" in outcome.stdout
    assert "toy: 3 trials of up to 6 evaluations" in outcome.stderr
    assert "wall-clock" in outcome.stderr
    results = load_results(tmp_path / "job")
    assert results.status == "finished"
    assert [(trial.agent, trial.seed, trial.evaluations) for trial in results.trials] == [
        ("uniform", 0, 1),
        ("random", 0, 6),
        ("random", 1, 6),
    ]
    assert results.dense.test_accuracy == 1.0
    assert results.budgets[0].fraction == 0.5
    assert (tmp_path / "job" / "report.html").read_text().startswith("<!")


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """What is calibrated depends on the data's seed: no other test has the seeds of these."""
    path = tmp_path / "digits.yaml"
    path.write_text(DIGITS)
    return path


def test_the_calibration_is_told_once_and_not_again_when_it_is_cached(digits: Path, tmp_path: Path) -> None:
    first = amc("run", digits, "--out", tmp_path / "a", "--set", "data.seed=1")
    assert first.exit_code == 0
    assert first.stderr.count("calibrating: 0/") == 1
    assert "agreement (nats)" in first.stdout
    note = "networks fitted on 40 of the 60 calibration images"
    assert note in first.stdout
    assert note in amc("show", tmp_path / "a").stdout
    again = amc("run", digits, "--out", tmp_path / "b", "--set", "data.seed=1")
    assert again.exit_code == 0
    assert "calibrating" not in again.stderr
    assert comparable(load_results(tmp_path / "a")).trials == comparable(load_results(tmp_path / "b")).trials


def test_a_search_that_max_ratio_holds_says_so(digits: Path, tmp_path: Path) -> None:
    options = ("--set", "agents=[{kind: uniform}]", "--set", "budget.macs=158208")
    held = amc("run", digits, "--out", tmp_path / "held", "--set", "pruning.max_ratio=0.5", *options).stdout
    results = load_results(tmp_path / "held")
    best = results.trials[0].best
    assert best is not None
    assert f"{len(best.widths)} of {len(best.widths)} decisions of the winner cannot get narrower" in held
    assert results.narrowest == best.widths
    free = amc("run", digits, "--out", tmp_path / "free", "--set", "pruning.max_ratio=0.9", *options).stdout
    assert "cannot get narrower" not in free


def test_a_log_tells_each_trial_that_ends_and_each_tenth_of_a_fine_tuning(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _Lines()
    for count in (1, 2):
        lines(TrialProgress("ddpg-seed0", "running", count, -0.25))
    lines(TrialProgress("ddpg-seed0", "finished"))
    lines(TrialProgress("random-seed0", "failed", 1))
    for step in range(1, 41):
        lines(FineTuneProgress("ddpg-seed0", 1, 2, step, 40, 0.5, 40.0 - step))
    assert capsys.readouterr().err.splitlines() == [
        "ddpg-seed0: finished, 2 evaluations, best reward -0.2500",
        "random-seed0: failed, 1 evaluation, no feasible policy",
        *(
            f"fine-tuning ddpg-seed0 (1/2): step {step}/40, loss 0.5000, 0:00:{40 - step:02} left"
            for step in (1, *range(4, 41, 4))
        ),
    ]


def test_nothing_is_calibrated_that_no_trial_needs(digits: Path, tmp_path: Path) -> None:
    outcome = amc("run", digits, "--out", tmp_path / "job", "--set", "data.seed=2", "--set", "agents=[{kind: uniform}]")
    assert outcome.exit_code == 0
    assert "calibrating" not in outcome.stderr


def test_an_objective_that_does_not_fit_the_network_is_refused(digits: Path, tmp_path: Path) -> None:
    outcome = amc("run", digits, "--out", tmp_path / "job", "--set", "evaluation.objective=top11")
    assert outcome.exit_code == 2
    assert "objective 'top11': the network has 10 outputs only" in outcome.stderr


def test_default_folder_names_the_job(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert amc("run", spec).exit_code == 0
    assert [folder.name.startswith("toy-20") for folder in (tmp_path / "runs").iterdir()] == [True]


def test_used_folder_is_refused(spec: Path, tmp_path: Path) -> None:
    assert amc("run", spec, "--out", tmp_path / "job").exit_code == 0
    outcome = amc("run", spec, "--out", tmp_path / "job")
    assert outcome.exit_code == 2
    assert "expected a new or empty folder for the job" in outcome.stderr


def test_job_that_another_process_runs_is_refused(spec: Path, tmp_path: Path) -> None:
    assert amc("run", spec, "--out", tmp_path / "job").exit_code == 0
    with search.job._locked(tmp_path / "job"):
        outcome = amc("resume", tmp_path / "job")
        assert "running" in amc("show", tmp_path / "job").stdout
    assert outcome.exit_code == 2
    assert "another process is running this job" in outcome.stderr


def test_a_job_that_has_just_begun_is_shown_as_running(spec: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    shutil.copy(spec, folder / "spec.yaml")
    with search.job._locked(folder):
        shown = amc("show", folder)
    assert (shown.exit_code, shown.stdout) == (0, f"{folder}: running, nothing is evaluated yet\n")
    assert "continue with" in amc("show", folder).stderr


def test_unknown_key_is_named(spec: Path) -> None:
    outcome = amc("run", spec, "--set", "seedz=[1]")
    assert outcome.exit_code == 2
    assert "seedz: unknown key; did you mean 'seeds'?" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_budget_that_nothing_meets_is_refused_before_any_search(spec: Path, tmp_path: Path) -> None:
    outcome = amc("run", spec, "--set", "budget.macs=1%", "--out", tmp_path / "job")
    assert outcome.exit_code == 2
    assert "the smallest reachable macs is 14 MACs" in outcome.stderr
    assert not (tmp_path / "job").exists()


def test_more_than_the_machine_has_is_refused_before_any_search(spec: Path, tmp_path: Path) -> None:
    outcome = amc("run", spec, "--set", "resources.threads_per_trial=100000", "--out", tmp_path / "job")
    assert outcome.exit_code == 2
    assert "threads_per_trial 100000, but the largest node has" in outcome.stderr


def test_missing_weights_are_refused(spec: Path, tmp_path: Path) -> None:
    network = "network={kind: cifar_resnet, depth: 20, weights: /none.pt}"
    data = "data={kind: digits}"
    outcome = amc("run", spec, "--set", network, "--set", data, "--out", tmp_path / "job")
    assert outcome.exit_code == 2
    assert "no file /none.pt" in outcome.stderr


def test_failed_trial_is_told_and_can_be_resumed(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, ArithmeticError)
        outcome = amc("run", spec, "--out", tmp_path / "job")
    assert outcome.exit_code == 0
    assert "random seed 0 failed: ArithmeticError: on purpose" in outcome.stderr
    assert "ArithmeticError: on purpose" in amc("show", tmp_path / "job").stdout
    assert amc("resume", tmp_path / "job").exit_code == 0
    assert amc("run", spec, "--out", tmp_path / "undisturbed").exit_code == 0
    resumed, undisturbed = load_results(tmp_path / "job"), load_results(tmp_path / "undisturbed")
    assert comparable(resumed) == comparable(undisturbed)


def test_job_whose_trials_all_failed_has_failed(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, ArithmeticError)
    outcome = amc("run", spec, "--set", "agents=[{kind: random}]", "--out", tmp_path / "job")
    assert outcome.exit_code == 1
    assert load_results(tmp_path / "job").status == "failed"


def test_damaged_results_are_named_and_made_anew(spec: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    assert amc("run", spec, "--out", job).exit_code == 0
    before = load_results(job)
    (job / "results.json").write_text("{broken")
    for verb in ("show", "resume"):
        refused = amc(verb, job)
        assert refused.exit_code == 2
        assert f"results.json is damaged; delete it, `amc resume {job}` makes it anew" in refused.stderr
    (job / "results.json").unlink()
    assert amc("resume", job).exit_code == 0
    assert comparable(load_results(job)) == comparable(before)


def test_interrupted_job_says_so_and_resumes(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, KeyboardInterrupt)
        outcome = amc("run", spec, "--out", tmp_path / "job")
    assert outcome.exit_code == 130
    assert f"amc resume {tmp_path / 'job'}" in outcome.stderr
    assert load_results(tmp_path / "job").status == "interrupted"
    assert "random seed 0: not finished, 2 evaluations" in amc("show", tmp_path / "job").stdout
    assert amc("resume", tmp_path / "job").exit_code == 0
    assert load_results(tmp_path / "job").status == "finished"
    refused = amc("resume", tmp_path / "job")
    assert refused.exit_code == 2
    assert "all trials are finished, nothing to resume" in refused.stderr


def test_resume_refuses_a_spec_that_was_changed(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(monkeypatch, KeyboardInterrupt)
    assert amc("run", spec, "--out", tmp_path / "job").exit_code == 130
    path = tmp_path / "job" / "spec.yaml"
    path.write_text(path.read_text().replace("evaluations: 5", "evaluations: 7"))
    outcome = amc("resume", tmp_path / "job")
    assert outcome.exit_code == 2
    assert "not what it was when the job began: spec" in outcome.stderr


def test_no_feasible_policy(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def search(
        self: RandomSearch, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        on_evaluation(problem.evaluate_widths(problem.dense_widths))
        return None

    monkeypatch.setattr(RandomSearch, "search", search)
    outcome = amc("run", spec, "--set", "agents=[{kind: random}]", "--out", tmp_path / "job")
    assert outcome.exit_code == 3
    assert "no agent found a policy that meets the budget" in outcome.stderr


def test_compare_formats(spec: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert amc("run", spec, "--out", tmp_path / name, "--set", f"name={name}").exit_code == 0
    rows = json.loads(amc("compare", tmp_path / "a", tmp_path / "b", "--format", "json").stdout)
    assert [(row["job"], row["agent"]) for row in rows] == [
        (job, agent) for job in ("a", "b") for agent in ("dense", "uniform", "random")
    ]
    assert amc("compare", tmp_path / "a", "--format", "csv").stdout.startswith("job,")
    assert amc("compare", tmp_path / "a", "--format", "md").stdout.startswith("| agent |")
    assert "uniform" in amc("compare", tmp_path / "a").stdout


def test_what_the_report_says_stands_below_the_table_and_not_in_files(spec: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    best = "is the best agent at this budget"
    assert best in amc("run", spec, "--out", job).stdout
    shown = amc("show", job).stdout
    assert best in shown
    results = load_results(job)
    assert all(f"\n{line}\n" in shown for line in [verdict(results), *caveats(results), score_note(results)] if line)
    assert "Evaluations (distinct ones) and time of a seed: " in shown
    assert "Fewer than 5 seeds: random 2." in shown
    for form in ("table", "md"):
        assert best in amc("compare", job, "--format", form).stdout
    for form in ("csv", "json"):
        assert best not in amc("compare", job, "--format", form).stdout


def test_jobs_of_one_problem_are_compared_with_each_other_and_others_not(spec: Path, tmp_path: Path) -> None:
    for name, budget in (("a", "50%"), ("b", "50%"), ("c", "60%")):
        changes = "--set", f"name={name}", "--set", f"budget.macs={budget}"
        assert amc("run", spec, "--out", tmp_path / name, *changes).exit_code == 0
    together = amc("compare", tmp_path / "a", tmp_path / "b").stdout
    assert "(a) is the best agent" in together
    assert "(b), the runner-up" in together
    for name in ("a", "b"):
        assert f"\n{name}: {verdict(load_results(tmp_path / name))}\n" in together
    apart = amc("compare", tmp_path / "a", tmp_path / "c").stdout
    assert "Agents of different jobs are not compared, for these differ in: budget." in apart
    assert apart.count("is the best agent at this budget") == 2


@pytest.mark.parametrize("verb", ["show", "compare", "resume"])
def test_folder_without_a_job_is_named(verb: str, tmp_path: Path) -> None:
    outcome = amc(verb, tmp_path)
    assert outcome.exit_code == 2
    assert "no job folder, it has no spec.yaml" in outcome.stderr


def test_export_says_why_it_cannot(spec: Path, tmp_path: Path) -> None:
    assert amc("run", spec, "--out", tmp_path / "job").exit_code == 0
    outcome = amc("export", tmp_path / "job", "--out", tmp_path / "exported")
    assert outcome.exit_code == 1
    assert "the toy problem, which has no network to export" in outcome.stderr


def test_spec_verbs(tmp_path: Path) -> None:
    path = tmp_path / "new.yaml"
    assert amc("spec", "init", path).exit_code == 0
    assert "valid, spec id" in amc("spec", "validate", path).stdout
    assert amc("spec", "init", path).exit_code == 2
    assert amc("spec", "validate", path, "--set", "evaluations=0").exit_code == 2
    assert json.loads(amc("spec", "schema").stdout)["title"] == "Spec"


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys, click.testing; from search.cli import main\n"
        "assert click.testing.CliRunner().invoke(main, ['--help']).exit_code == 0\n"
        "print(sorted({'torch', 'ray', 'stable_baselines3', 'gymnasium', 'pydantic', 'numpy', 'yaml', 'rich'}"
        " & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_verb_without_its_extra_says_what_to_install(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, clear_errors():
        raise ModuleNotFoundError("No module named 'ray'", name="ray.tune")
    assert end.value.code == 2
    expected = "error: No module named 'ray'; this verb needs: pip install 'amc-search[search]'\n"
    assert capsys.readouterr().err == expected
    with pytest.raises(ModuleNotFoundError, match="mine"), clear_errors():
        raise ModuleNotFoundError("No module named 'mine'", name="mine")
