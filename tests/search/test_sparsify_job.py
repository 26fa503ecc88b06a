"""Jobs whose fine-tuning removes weights on the way, or penalises them: results, page, export, resumption, refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import search.finetune_job
from amc_env.pruning.patterns import parse_pattern
from amc_env.training.finetune import TrainingLog, fine_tune
from search.export import export_job
from search.job import JobError, load_results, resume_job, run_job
from search.report import render_report
from search.results import FineTuneRecord
from search.spec import SpecError, load_spec
from search.spec_training import Finetune
from tests.search.conftest import run_here

SPEC = """\
version: 1
name: digits-sparse
network: {kind: digits}
data: {kind: digits, calibration_images: 60, search_images: 200, test_images: 300}
budget: {macs: 30%%}
pruning: {granularity: %s, criterion: l1, keep: [%s]}
evaluation: {fidelity: magnitude}
agents: [{kind: uniform}]
evaluations: 3
finetune: {epochs: 3, batch: 64, learning_rate: 0.05, images: 320, threads: 1, %s}
"""
SPARSIFY = "sparsify: {end: 0.6, frequency: 2}"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.job._search", run_here)


def spec_file(folder: Path, granularity: str, finetune: str, keep: str = "") -> Path:
    path = folder / "spec.yaml"
    path.write_text(SPEC % (granularity, keep, finetune))
    return path


def tuned(folder: Path) -> FineTuneRecord:
    record = load_results(folder).finetune
    assert record is not None
    return record


@pytest.mark.parametrize(
    ("granularity", "keep", "finetune"),
    [
        ("fine_grained", "", SPARSIFY),
        ("4x1", "linear", "sparsify: {type: progressive, frequency: 4}, regularizer: {kind: l1, strength: 1e-5}"),
    ],
)
def test_training_ends_with_the_counts_of_the_winner(
    tmp_path: Path, granularity: str, keep: str, finetune: str
) -> None:
    loaded = load_spec(spec_file(tmp_path, granularity, finetune, keep))
    results = run_job(loaded, tmp_path / "job")
    (winner,) = tuned(tmp_path / "job").winners
    assert winner.error is None
    state = torch.load(tmp_path / "job" / "finetune" / winner.folder / "weights.pt", weights_only=True)
    sizes = {decision.name: decision.channels for decision in results.decisions}
    removed = 0
    for (name, size), kept in zip(sizes.items(), winner.widths, strict=True):
        weight = state[f"{name}.weight"]
        assert int(torch.count_nonzero(weight)) == kept
        assert np.array_equal((weight != 0).numpy(), parse_pattern(granularity).mask(weight.abs().numpy(), kept))
        removed += size - kept
    pruned = sum(size for size, kept in zip(sizes.values(), winner.widths, strict=True) if kept < size)
    assert winner.sparsity[-1][1] == pytest.approx(removed / pruned)
    assert [share for _, share in winner.sparsity] == sorted(share for _, share in winner.sparsity)
    assert len(winner.sparsity) > 2
    page = render_report(load_results(tmp_path / "job"))
    assert "from the dense network, from which weights were removed on the way (exp, " in page
    assert "Loss, and share of weights removed, over the steps of fine-tuning" in page
    assert re.search(r"were removed in the training; stored, the network takes [0-9.]+(&nbsp;| )% of the dense", page)
    export_job(tmp_path / "job", tmp_path / "out")
    masks = np.load(tmp_path / "out" / "masks.npz")
    for name, mask in masks.items():
        assert np.array_equal(mask, (state[f"{name}.weight"] != 0).numpy())
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["compression"][-1]["bytes"] == winner.size_bytes


def test_an_interrupted_one_comes_to_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_spec(spec_file(tmp_path, "fine_grained", SPARSIFY))
    run_job(loaded, tmp_path / "whole")

    def interrupted(*arguments: Any, on_progress: Callable[[Any], None], **options: Any) -> TrainingLog:
        def stop(progress: Any) -> None:
            if progress.step == 8:
                raise KeyboardInterrupt

        return fine_tune(*arguments, on_progress=stop, **options)

    monkeypatch.setattr(search.finetune_job, "fine_tune", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_job(loaded, tmp_path / "parts")
    monkeypatch.undo()
    monkeypatch.setattr("search.job._search", run_here)
    resume_job(tmp_path / "parts")
    (whole,), (parts,) = (tuned(tmp_path / name).winners for name in ("whole", "parts"))
    assert parts.model_copy(update={"seconds": whole.seconds}) == whole
    weights = [
        torch.load(tmp_path / name / "finetune" / whole.folder / "weights.pt", weights_only=True)
        for name in ("whole", "parts")
    ]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_regularizer_works_for_channels_too(tmp_path: Path) -> None:
    plain = load_spec(spec_file(tmp_path, "channel, round_to: 4", "seed: 1"))
    pressed = load_spec(spec_file(tmp_path, "channel, round_to: 4", "regularizer: {kind: slimming, strength: 0.1}"))
    scales = []
    for name, loaded in (("plain", plain), ("pressed", pressed)):
        run_job(loaded, tmp_path / name)
        (winner,) = tuned(tmp_path / name).winners
        state = torch.load(tmp_path / name / "finetune" / winner.folder / "weights.pt", weights_only=True)
        scales.append(sum(float(t.abs().sum()) for key, t in state.items() if f"{key[:-6]}running_mean" in state))
        assert winner.sparsity == ()
    assert scales[1] < 0.95 * scales[0]
    assert "regularizer slimming of strength 0.1" in render_report(load_results(tmp_path / "pressed"))


def test_specs_without_the_new_keys_are_written_as_before() -> None:
    written = Finetune(epochs=10).model_dump(mode="json")
    assert not {"precision", "sparsify", "regularizer"} & set(written)
    changed = Finetune.model_validate({"epochs": 10, "precision": "bfloat16", "sparsify": {}})
    assert Finetune.model_validate(changed.model_dump(mode="json")) == changed
    assert changed.settings().precision == "bfloat16"


@pytest.mark.parametrize(
    ("granularity", "finetune", "message"),
    [
        ("channel", SPARSIFY, "finetune.sparsify: removes weights while the network is trained; with gran"),
        (
            "channel",
            "regularizer: {kind: group_lasso, strength: 1, pattern: 4x1}",
            "finetune.regularizer: pattern: channels change the shapes of layers; expected one of filter, ch",
        ),
        ("fine_grained", "sparsify: {start: 0.9}", "end: expected a share above the start of 0.9, got 0.7"),
        ("fine_grained", "sparsify: {decay: cubic}", "decay"),
        ("fine_grained", "regularizer: {kind: l1, strength: 1, pattern: filter}", "pattern: only of group_lasso"),
    ],
)  # fmt: skip
def test_specs_that_do_not_go_together_are_refused(
    tmp_path: Path, granularity: str, finetune: str, message: str
) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        load_spec(spec_file(tmp_path, granularity, finetune))


def test_shared_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"sparsify: trains weights that share no values; leave storage\.codebook out"):
        load_spec(spec_file(tmp_path, "fine_grained", SPARSIFY), ("storage={codebook: 16}",))


@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        ("sparsify: {frequency: 50}", "finetune.sparsify: frequency: 50 steps leave no second update"),
        ("regularizer: {kind: group_lasso, strength: 1, pattern: 7x1}", "finetune: regularizer: layer "),
    ],
)  # fmt: skip
def test_what_does_not_suit_the_network_is_refused_before_the_search(
    tmp_path: Path, finetune: str, message: str
) -> None:
    with pytest.raises(JobError, match=re.escape(message)):
        run_job(load_spec(spec_file(tmp_path, "fine_grained", finetune)), tmp_path / "job")
    assert not (tmp_path / "job").exists()
