"""The verb `amc lottery`: results, table and page; interrupted and gone on with; what a spec may not say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click.testing
import pytest
import torch

from amc_env.training.lottery import LotteryProgress
from search.cli import main
from search.locking import acquire
from search.lottery_job import LotteryResults, run_lottery
from search.lottery_report import LeftCurve, LeftPoint, left_plot, left_table
from search.lottery_spec import LotterySpec
from search.spec import load_as

SPEC = """\
version: 1
name: digits-tickets
network: {kind: digits}
data: {kind: digits, calibration_images: 1, search_images: 200, test_images: 300}
lottery: {training: {steps: 4, batch: 32}, rounds: 2, ratio: 0.5, images: 128, arms: [ticket, one_shot, random_mask]}
seeds: [0, 3]
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "lottery.yaml"
    path.write_text(SPEC)
    return path


def amc(*arguments: object) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [*map(str, arguments)])


def test_it_writes_results_a_table_and_a_page(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = amc("lottery", spec, "--out", out)
    assert outcome.exit_code == 0, outcome.output
    results = LotteryResults.model_validate_json((out / "results.json").read_bytes())
    arms = ["ticket", "one_shot", "random_mask"]
    expected = [(0, "dense"), *((number, arm) for number in (1, 2) for arm in arms)]
    assert [(network.round, network.arm) for network in results.networks] == expected * 2
    assert [network.seed for network in results.networks] == [0] * 7 + [3] * 7
    assert [point.left for point in results.curves[0].points] == pytest.approx([0.5, 0.25], abs=1e-4)
    assert results.curves[1].name == "one-shot ticket"
    lines = outcome.stdout.splitlines()
    assert lines[0].split("  ")[0] == "weights left"
    assert any(line.strip().startswith("25.0 %") for line in lines)
    assert f"page: {out / 'lottery.html'}" in lines
    assert "seed 3, round 2, random_mask (14/14): step 1/4, loss " in outcome.stderr
    page = (out / "lottery.html").read_text()
    assert "<h1>digits-tickets: lottery tickets</h1>" in page
    assert page.count('<figure class="plot') == 2
    assert "new weights from its first step, the others from the step to which tickets go back." in page
    again = amc("lottery", spec, "--out", out, "--json")
    assert again.stderr == ""
    assert LotteryResults.model_validate(json.loads(again.stdout)) == results
    ticket = torch.load(out / "seed3" / "round2-ticket.pt", weights_only=True)
    kept = next(network.kept for network in results.networks if (network.seed, network.round) == (3, 2))
    assert {name: int(torch.count_nonzero(ticket[f"{name}.weight"])) for name in kept} == kept


def test_interrupted_the_same_command_goes_on(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_as(LotterySpec, spec, ["seeds=[3]"])
    whole = run_lottery(loaded, tmp_path / "whole")

    def stop(done: int, progress: LotteryProgress) -> None:
        if progress.index == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr("search.cli_lottery._Told", lambda seeds: stop)
    outcome = amc("lottery", spec, "--out", tmp_path / "parts", "--set", "seeds=[3]")
    assert outcome.exit_code == 130
    assert "interrupted; the same command goes on" in outcome.stderr
    assert run_lottery(loaded, tmp_path / "parts") == whole


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("network={kind: cifar_resnet, depth: 20, weights: a.pt}", "network.weights: unknown key (known here: kind"),
        ("network={kind: toy}", "network: unknown kind 'toy'"),
        ("lottery.ratio=1.0", "lottery.ratio: "),
        ("lottery.arms=[one_shot]", "lottery: arms: expected ticket, and others of ticket, one_shot, reinitialised"),
        ("lottery.training.distillation=0.5", "lottery: training: distillation and hints need a trained network"),
        ("lottery.training.epochs=1", "epochs, steps: expected one of them, such as epochs: 10, got both"),
        ("lottery.rewind=4", "rewind: expected less than the 4 steps, got 4"),
        ("seeds=[1, 1]", "seeds: expected each seed once, got [1, 1]"),
        ("lottery.images=5000", "lottery: 5000 images asked for, but digits training images has 897"),
    ],
)  # fmt: skip
def test_what_a_spec_may_not_say(spec: Path, tmp_path: Path, override: str, message: str) -> None:
    outcome = amc("lottery", spec, "--out", tmp_path / "out", "--set", override)
    assert outcome.exit_code == 2
    assert message in outcome.stderr


def test_a_folder_of_another_search_is_refused(spec: Path, tmp_path: Path) -> None:
    small = ("--out", tmp_path / "out", "--set", "seeds=[0]", "--set", "lottery.rounds=1")
    assert amc("lottery", spec, *small).exit_code == 0
    outcome = amc("lottery", spec, *small, "--set", "lottery.ratio=0.3")
    assert outcome.exit_code == 2
    assert "of another search for tickets: seed, network, images or recipe are not the same" in outcome.stderr


def test_a_folder_in_use_is_refused(spec: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with (out / "lock").open("ab") as lock:
        assert acquire(lock, 0.0)
        outcome = amc("lottery", spec, "--out", out)
    assert outcome.exit_code == 2
    assert f"{out}: another process is running this search" in outcome.stderr
    assert not (out / "seed0").exists()


def test_table_and_plot() -> None:
    curves = [
        LeftCurve("ticket", (LeftPoint(0.5, (0.9, 0.92)), LeftPoint(1 / 9, (0.8, 0.86)))),
        LeftCurve("<other>", (LeftPoint(0.5, (0.7, 0.7)), LeftPoint(1 / 9, (0.1, 0.3)))),
    ]
    dense = LeftPoint(1.0, (0.95, 0.97))
    headings, lines = left_table(curves, dense)
    assert headings == ["weights left", "fewer", "ticket", "<other>"]
    assert lines[0] == ["100 %", "1x", "96.00 % (95.00 to 97.00)", "96.00 % (95.00 to 97.00)"]
    assert lines[2] == ["11.1 %", "9.0x", "83.00 % (80.00 to 86.00)", "20.00 % (10.00 to 30.00)"]
    drawing = left_plot(curves, dense)
    assert "ticket: 83.00 % with 11.1 % of the weights (9.0x fewer)" in drawing
    assert "<other>" not in drawing
    assert len(re.findall('class="curve thin', drawing)) == 2


def test_a_curve_that_falls_far_below_the_rest_leaves_the_plot() -> None:
    near = (LeftPoint(0.5, (0.95,)), LeftPoint(0.25, (0.95,)), LeftPoint(0.125, (0.95,)))
    fallen = (LeftPoint(0.5, (0.95,)), LeftPoint(0.25, (0.5,)), LeftPoint(0.125, (0.1,)))
    drawing = left_plot([LeftCurve("near", near), LeftCurve("fallen", fallen)], LeftPoint(1.0, (0.96,)))
    assert "fallen: 95.00 %" in drawing
    assert "fallen: 50.00 %" not in drawing
    assert "fallen: 10.00 %" not in drawing
    lower, upper = re.findall('class="curve thin[^"]*" d="([^"]*)"', drawing)[::-1]
    assert len(re.findall("[ML]", upper)) == 3
    assert len(re.findall("[ML]", lower)) == 2


def test_a_curve_that_begins_far_below_the_rest_falls_from_the_dense_network_out_of_the_plot() -> None:
    near, fallen = (tuple(LeftPoint(0.5**number, (mean,)) for number in (1, 2, 3)) for mean in (0.95, 0.1))
    curves = [LeftCurve("near", near), LeftCurve("as near", near), LeftCurve("fallen", fallen)]
    drawing = left_plot(curves, LeftPoint(1.0, (0.96,)))
    assert "fallen: " not in drawing
    start, end = re.findall(r'class="curve thin c2" d="M(\S+) \S+L(\S+) 336"', drawing)[0]
    assert 76 == float(start) < float(end) < 357
