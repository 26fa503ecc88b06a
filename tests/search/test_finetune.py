"""Fine-tuning in a job: before and after in results, table, report and export; interrupted, resumed, refused."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click.testing
import numpy as np
import pytest
import torch
from torch import nn

import search.finetune_job
import search.job
from amc_env.evaluation import NetworkProblem
from amc_env.splits import Split
from amc_env.training.finetune import TrainingLog, fine_tune
from amc_env.weights import weights_digest
from search.build import build_problem, load_training_images
from search.cli import main
from search.export import load_exported
from search.finetune_job import check_recipe
from search.job import load_results
from search.progress import FineTuneProgress
from search.report import render_report
from search.results import FineTunedRecord, FineTuneRecord, Results, SplitScores
from search.spec import load_spec
from search.spec_training import Finetune
from search.tables import compare, display_table
from search.verdict import said_of

SPEC = """\
version: 1
name: digits
network: {kind: digits}
data: {kind: digits, calibration_images: 60, search_images: 200, test_images: 300}
budget: {macs: 35%}
pruning: {round_to: 4, criterion: l1}
evaluation: {fidelity: magnitude}
agents: [{kind: random}, {kind: uniform}, {kind: uniform, name: again}]
seeds: [0, 1]
evaluations: 3
finetune: {epochs: 4, batch: 64, learning_rate: 0.05, images: 600, threads: 1, dense: true}
"""


pytestmark = pytest.mark.usefixtures("one_process")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path / "spec.yaml"


def amc(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])


def tuned(folder: Path) -> FineTuneRecord:
    record = load_results(folder).finetune
    assert record is not None
    return record


def timeless(record: FineTuneRecord) -> FineTuneRecord:
    winners = tuple(winner.model_copy(update={"seconds": 0.0}) for winner in record.winners)
    dense = record.dense and record.dense.model_copy(update={"seconds": 0.0})
    return record.model_copy(update={"winners": winners, "dense": dense})


def test_a_job_shows_its_winners_before_and_after(spec: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    outcome = amc("run", spec, "--out", job)
    assert outcome.exit_code == 0, outcome.output
    assert "(1/3): step 1/40, loss " in outcome.stderr
    assert "fine-tuning dense (3/3): step 1/40, loss " in outcome.stderr
    record, results = tuned(job), load_results(job)
    assert (record.images, record.threads, record.crop_padding, record.flip) == (600, 1, 0, False)
    assert record.source == "digits training images, 600 of 897 drawn with seed 0"
    rows = {row.agent: row for row in compare([results])}
    assert [winner.agent for winner in record.winners] == ["random", "uniform", "again"]
    assert record.winners[1].folder == record.winners[2].folder == "uniform-seed0"  # one policy is trained once
    for winner in record.winners:
        row = rows[winner.agent]
        assert winner.seed == row.best_seed
        assert winner.before.test_accuracy == row.test_accuracy
        assert winner.before.search_accuracy == row.search_accuracy
        assert winner.after is not None
        assert winner.after.test_accuracy == row.fine_tuned_accuracy
        assert (winner.after.test_accuracy or 0.0) > (winner.before.test_accuracy or 0.0) + 0.1
        assert winner.losses[3] < winner.losses[0]
        assert winner.steps == 40
        files = {path.name for path in (job / "finetune" / winner.folder).iterdir()}
        assert files == {"weights.pt", "result.json"}
    for best in (trial.best for trial in results.trials):
        assert best is not None
        assert best.test_correct is not None
        assert best.test_accuracy is not None
        hits = np.unpackbits(np.frombuffer(base64.b64decode(best.test_correct), dtype=np.uint8))
        assert hits.sum() == round(best.test_accuracy * results.splits["test"].images)
    assert record.dense is not None
    assert record.dense.after is not None
    assert rows["dense"].fine_tuned_accuracy == record.dense.after.test_accuracy
    headings, cells = display_table(list(rows.values()))
    assert cells[1][headings.index("fine-tuned")] == f"{100 * (rows['random'].fine_tuned_accuracy or 0.0):.2f} %"
    page = render_report(results)
    assert "<h2>Fine-tuning</h2>" in page
    assert "SGD for 4 epochs on 600 images (digits training images, 600 of 897 drawn with seed 0), batch 64" in page
    assert "all trials are finished, nothing to resume" in amc("resume", job).output


def test_hints_of_blocks_that_lost_channels_and_mixup_are_said(spec: Path, tmp_path: Path) -> None:
    losses = []
    for hints in (0, 20):
        job = tmp_path / f"hints-{hints}"
        recipe = (
            f"finetune={{steps: 8, batch: 64, images: 600, distillation: 1, hints: {hints}, mixup: 0.5, threads: 1}}"
        )
        outcome = amc(
            "run", spec, "--out", job, "--set", recipe, "--set", "agents=[{kind: uniform}]", "--set", "seeds=[0]"
        )
        assert outcome.exit_code == 0, outcome.output
        losses.append(tuned(job).winners[0].losses[0])
        report = (job / "report.html").read_text()
        assert ("hints from the dense network&#x27;s blocks with weight 20" in report) == (hints > 0)
        assert "mixup with shares from Beta(0.5, 0.5)" in report
    assert losses[1] > losses[0] + 5  # every block has lost channels, and is compared all the same


def test_an_exported_winner_has_the_trained_weights(spec: Path, tmp_path: Path) -> None:
    job, out = tmp_path / "job", tmp_path / "out"
    assert amc("run", spec, "--out", job, "--set", "finetune.dense=false").exit_code == 0
    outcome = amc("export", job, "--out", out, "--agent", "uniform")
    assert outcome.exit_code == 0, outcome.output
    card = json.loads((out / "card.json").read_text())
    winner = tuned(job).winners[1]
    assert winner.after is not None
    assert card["fine_tuned"] == winner.model_dump(mode="json")
    assert card["test_accuracy_at_export"] == winner.after.test_accuracy
    stored = torch.load(job / "finetune" / winner.folder / "weights.pt", weights_only=True)
    for name, tensor in load_exported(out).state_dict().items():
        assert torch.equal(tensor, stored[name])
    best = compare([load_results(job)])[1].best_seed
    assert best is not None
    assert amc("export", job, "--out", tmp_path / "other", "--agent", "random", "--seed", 1 - best).exit_code == 0
    assert json.loads((tmp_path / "other" / "card.json").read_text())["fine_tuned"] is None


def test_an_interrupted_fine_tuning_goes_on_and_comes_to_the_same(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert amc("run", spec, "--out", whole).exit_code == 0
    calls, stops = list[int](), [55]  # in the second epoch of the second network

    def interrupted(*arguments: Any, on_progress: Callable[[Any], None], **options: Any) -> TrainingLog:
        def stop(progress: Any) -> None:
            calls.append(progress.step)
            if [len(calls)] == stops:
                raise KeyboardInterrupt

        return fine_tune(*arguments, on_progress=stop, **options)

    monkeypatch.setattr(search.finetune_job, "fine_tune", interrupted)
    outcome = amc("run", spec, "--out", parts)
    assert outcome.exit_code == 130
    assert f"interrupted; continue with: amc resume {parts}" in outcome.stderr
    assert load_results(parts).finetune is None
    assert (parts / "report.html").exists()
    assert {path.name for path in (parts / "finetune" / "uniform-seed0").iterdir()} == {"start.pt", "checkpoint.pt"}
    calls.clear()
    stops.clear()
    monkeypatch.setattr(search.job, "_search", None)  # no trial runs again
    assert amc("resume", parts).exit_code == 0
    assert calls[0] == 11
    assert len(calls) == 30 + 40
    assert timeless(tuned(parts)) == timeless(tuned(whole))


def test_each_trial_may_be_fine_tuned(spec: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    assert amc("run", spec, "--out", job, "--set", "finetune={steps: 3, per: trial, threads: 1}").exit_code == 0
    assert [(winner.agent, winner.seed) for winner in tuned(job).winners] == [
        ("random", 0), ("random", 1), ("uniform", 0), ("again", 0),
    ]  # fmt: skip
    assert tuned(job).dense is None
    assert tuned(job).images == 897
    assert {winner.steps for winner in tuned(job).winners} == {3}


def test_a_diverged_training_is_told_and_the_others_are_done(spec: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    outcome = amc("run", spec, "--out", job, "--set", "finetune={epochs: 3, learning_rate: 1.0e+30, threads: 1}")
    assert outcome.exit_code == 0, outcome.output
    assert all("fine-tuning diverged: the loss is" in (winner.error or "") for winner in tuned(job).winners)
    assert {winner.after for winner in tuned(job).winners} == {None}
    assert "fine-tuned" not in outcome.stdout
    page = render_report(load_results(job))
    assert "diverged" in page
    assert "random, seed " in page
    assert amc("export", job, "--out", tmp_path / "out").exit_code == 0


def test_a_folder_of_another_network_is_refused(spec: Path, tmp_path: Path) -> None:
    job = tmp_path / "job"
    assert amc("run", spec, "--out", job).exit_code == 0
    (job / "report.html").unlink()
    path = job / "finetune" / "uniform-seed0" / "result.json"
    record = FineTunedRecord.model_validate_json(path.read_text())
    path.write_text(record.model_copy(update={"widths": (1, 1)}).model_dump_json())
    assert f"{path} is of another policy; delete its folder" in amc("resume", job).output
    path.write_text("{")
    assert f"{path} is damaged; delete its folder" in amc("resume", job).output
    path.unlink()
    assert amc("resume", job).exit_code == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("finetune={}", "finetune: epochs, steps: expected one of them, such as epochs: 10, got neither"),
        (
            "finetune={epochs: 1, steps: 1}",
            "finetune: epochs, steps: expected one of them, such as epochs: 10, got bot",
        ),
        ("finetune={epoch: 1}", "finetune.epoch: unknown key; did you mean 'epochs'?"),
        ("finetune={epochs: 1, images: 898}", "finetune: 898 images asked for, but digits training images has 897"),
        ("evaluation={finetune: {steps: -1}}", "evaluation.finetune.steps: Input should be greater than or equal to 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_search(spec: Path, tmp_path: Path, change: str, message: str) -> None:
    outcome = amc("run", spec, "--out", tmp_path / "job", "--set", change)
    assert outcome.exit_code == 2
    assert message in outcome.output
    assert not (tmp_path / "job").exists()


def test_what_the_training_would_refuse_is_refused_before_the_search(spec: Path) -> None:
    loaded = load_spec(spec)
    problem, training = build_problem(loaded), load_training_images(loaded)
    assert isinstance(problem, NetworkProblem)
    assert training is not None
    before = weights_digest(problem.network)
    check_recipe(Finetune(epochs=1, batch=600, hints=1, mixup=1, distillation=0.5), problem, training)
    assert weights_digest(problem.network) == before
    labels = training.labels.copy()
    labels[-1] = 10
    beyond = Split(training.images, labels, "n")
    with pytest.raises(ValueError, match=r"^finetune: expected labels in 0\.\.9, the network's outputs, got 10$"):
        check_recipe(Finetune(epochs=1, batch=16), problem, beyond)
    check_recipe(Finetune(epochs=1, distillation=1), problem, beyond)
    plain = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    without_blocks = NetworkProblem(plain, problem.data, budget={"macs": "50%"})
    with pytest.raises(ValueError, match=r"^finetune: hints need a block, a module made of modules"):
        check_recipe(Finetune(epochs=1, hints=1), without_blocks, training)
    normed = NetworkProblem(
        nn.Sequential(*plain[:4], nn.BatchNorm1d(32), plain[4]), problem.data, budget={"macs": "50%"}
    )
    odd = Split(training.images[:599], training.labels[:599], "n")
    check_recipe(Finetune(epochs=1, batch=3), normed, odd)
    with pytest.raises(ValueError, match=r"^finetune: Expected more than 1 value per channel when training"):
        check_recipe(Finetune(epochs=1, batch=2), normed, odd)  # the last batch is of one image


def test_the_toy_problem_is_not_fine_tuned(tmp_path: Path) -> None:
    (tmp_path / "toy.yaml").write_text(
        "version: 1\nnetwork: {kind: toy}\nbudget: {macs: 50%}\nagents: [{kind: uniform}]\nevaluations: 1\n"
        "finetune: {epochs: 1}\n"
    )
    outcome = amc("spec", "validate", tmp_path / "toy.yaml")
    assert "finetune: the toy problem has no network to train; leave the section out" in outcome.output


def test_the_section_has_the_defaults_of_the_recipe() -> None:
    section = Finetune(epochs=10)
    assert section.settings() == type(section.settings())(epochs=10)


def test_progress_names_the_network_and_the_time_left() -> None:
    progress = FineTuneProgress("ddpg-seed0", 2, 5, 120, 3910, 0.01234, 3723.0)
    assert str(progress) == "fine-tuning ddpg-seed0 (2/5): step 120/3910, loss 0.0123, 1:02:03 left"


def scores(test: float) -> SplitScores:
    return SplitScores(search_error=0.1, test_error=1 - test, search_accuracy=0.9, test_accuracy=test)


def with_tuned(results: Results, pairs: list[tuple[float, float]]) -> Results:
    winners = tuple(
        FineTunedRecord(
            agent=f"agent {index}",
            seed=0,
            widths=(index,),
            folder="x",
            before=scores(before),
            after=scores(after),
            steps=1,
            losses=(1.0,),
            seconds=1.0,
        )
        for index, (before, after) in enumerate(pairs)
    )
    record = FineTuneRecord(
        images=5, source="test", digest="", crop_padding=4, flip=True, threads=1, winners=winners, dense=None
    )
    spec = {**results.spec, "finetune": Finetune(steps=7, distillation=0.5).model_dump()}
    return results.model_copy(update={"finetune": record, "spec": spec})


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (
            [(0.1, 0.7), (0.2, 0.8), (0.3, 0.9)],
            "rank correlation of the test figures before and after fine-tuning is 1.00: it keeps their order.",
        ),
        ([(0.1, 0.8), (0.2, 0.7), (0.3, 0.75), (0.4, 0.9)], "is 0.40: it does not keep their order."),
        ([(0.1, 0.8), (0.2, 0.7), (0.3, 0.9), (0.4, 0.95)], "is 0.80: it mostly keeps their order."),
    ],
)
def test_the_report_says_whether_the_order_stays(
    toy_results: Callable[..., Results], pairs: list[tuple[float, float]], said: str
) -> None:
    tuned = with_tuned(toy_results(), pairs)
    page = render_report(tuned).replace("&nbsp;", " ")
    assert said in page
    assert sum(said in line for line in said_of([tuned])) == 1
    assert (
        "SGD for 7 steps on 5 images (test), batch 128, learning rate 0.01, schedule cosine, shifts of up to 4" in page
    )
    assert "mirrored images, distillation from the dense network with weight 0.5." in page


def test_two_networks_have_no_correlation(toy_results: Callable[..., Results]) -> None:
    assert "Spearman" not in render_report(with_tuned(toy_results(), [(0.1, 0.2), (0.3, 0.4)]))
    assert "Spearman" not in render_report(with_tuned(toy_results(), [(0.1, 0.2), (0.1, 0.4), (0.1, 0.5)]))
