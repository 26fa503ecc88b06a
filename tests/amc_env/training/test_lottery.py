"""Lottery tickets: which weights stay and from where they train, exact resumption, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from amc_env.datasets import SplitSizes, load_splits, load_training
from amc_env.splits import Split
from amc_env.training.finetune import TrainingProgress, fine_tune
from amc_env.training.lottery import Lottery, LotteryProgress, LotterySettings, TicketError, TicketRecord, find_tickets
from amc_env.training.recipe import FineTuneSettings

SIZES = SplitSizes(calibration=1, search=300, test=500)
DATA = load_splits("digits", SIZES)
RECIPE = FineTuneSettings(epochs=2, batch=32, learning_rate=0.1)
SETTINGS = LotterySettings(RECIPE, rounds=2, ratio=0.5)


@pytest.fixture(scope="module")
def training() -> Split:
    return load_training("digits", SIZES, images=160)  # 5 steps an epoch


def build(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))


def score(network: nn.Module) -> Mapping[str, float]:
    with torch.inference_mode():
        right = network(DATA.preprocessing(DATA.test.images)).argmax(1).numpy() == DATA.test.labels
    return {"test": float(right.mean())}


def lottery(training: Split, **changes: Any) -> Lottery:
    return Lottery(build, training, DATA.preprocessing, score, replace(SETTINGS, **changes))


def masks(folder: Path, name: str) -> dict[str, Any]:
    with np.load(folder / f"{name}-masks.npz") as stored:
        return dict(stored)


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / f"{name}.pt", weights_only=True)
    return state


@pytest.mark.parametrize("scope", ["global", "local"])
def test_each_arm_has_its_mask_and_its_start(
    training: Split, tmp_path: Path, scope: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[tuple[dict[str, torch.Tensor], int]] = []

    def remembered(network: nn.Module, *arguments: Any, **options: Any) -> Any:
        starts.append(({name: tensor.clone() for name, tensor in network.state_dict().items()}, options["first_step"]))
        return fine_tune(network, *arguments, **options)

    monkeypatch.setattr("amc_env.training.lottery.fine_tune", remembered)
    records = find_tickets(lottery(training, scope=scope, rewind=3), 0, tmp_path)
    names = [f"round{record.round}-{record.arm}" for record in records]
    assert names == ["round0-dense"] + [
        f"round{number}-{arm}" for number in (1, 2) for arm in ("ticket", "one_shot", "reinitialised", "random_mask")
    ]
    assert [record.left for record in records] == [1.0] + [0.5] * 4 + [0.25] * 4
    rewound, dense = weights(tmp_path, "rewound"), weights(tmp_path, "round0-dense")
    assert starts[0][1] == 0
    for name, record, (start, first) in zip(names[1:], records[1:], starts[1:], strict=True):
        kept, trained = masks(tmp_path, name), weights(tmp_path, name)
        for layer, count in record.kept.items():
            assert kept[layer].sum() == count
            gone = ~torch.from_numpy(kept[layer])
            assert (trained[f"{layer}.weight"][gone] == 0).all()
            origin = rewound if record.arm != "reinitialised" else start
            assert torch.equal(start[f"{layer}.weight"], origin[f"{layer}.weight"].masked_fill(gone, 0.0))
            assert torch.equal(start[f"{layer}.bias"], origin[f"{layer}.bias"])
        assert first == (0 if record.arm == "reinitialised" else 3)
        ticket = masks(tmp_path, f"round{record.round}-ticket")
        assert {layer: mask.sum() for layer, mask in ticket.items()} == record.kept or record.arm == "one_shot"
        if record.arm == "reinitialised":
            assert all(np.array_equal(ticket[layer], mask) for layer, mask in kept.items())
            assert not torch.equal(start["1.bias"], rewound["1.bias"])
        if record.arm == "random_mask":
            assert not np.array_equal(ticket["1"], kept["1"])
    one, two = (masks(tmp_path, f"round{number}-ticket") for number in (1, 2))
    assert not any((two[layer] & ~mask).any() for layer, mask in one.items())
    # the first ticket and one-shot pruning are one network; what stays is larger than what goes
    assert all(np.array_equal(mask, masks(tmp_path, "round1-one_shot")[layer]) for layer, mask in one.items())
    if scope == "local":
        for layer, mask in masks(tmp_path, "round2-one_shot").items():
            sizes = dense[f"{layer}.weight"].abs().numpy()
            assert sizes[mask].min() >= sizes[~mask].max()


def test_the_rewound_weights_are_those_after_so_many_steps(training: Split, tmp_path: Path) -> None:
    seen: dict[int, dict[str, torch.Tensor]] = {}
    network = build(5)

    def keep(progress: TrainingProgress) -> None:
        seen[progress.step] = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    fine_tune(network, training, DATA.preprocessing, replace(RECIPE, seed=5), on_progress=keep)
    find_tickets(lottery(training, rewind=7, rounds=1, arms=("ticket",)), 5, tmp_path / "7")
    assert all(torch.equal(tensor, seen[7][name]) for name, tensor in weights(tmp_path / "7", "rewound").items())
    find_tickets(lottery(training, rounds=1, arms=("ticket",)), 5, tmp_path / "0")
    initial = build(5).state_dict()
    assert all(torch.equal(tensor, initial[name]) for name, tensor in weights(tmp_path / "0", "rewound").items())


@pytest.mark.parametrize("stop", [2, 9, 14, 27, 35])
def test_an_interrupted_search_comes_to_the_same(training: Split, tmp_path: Path, stop: int) -> None:
    whole = find_tickets(lottery(training, rewind=6), 1, tmp_path / "whole")
    calls: list[LotteryProgress] = []

    def interrupt(progress: LotteryProgress) -> None:
        calls.append(progress)
        if len(calls) == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_tickets(lottery(training, rewind=6), 1, tmp_path / "parts", interrupt)
    done = len(list((tmp_path / "parts").glob("round*.json")))
    again: list[LotteryProgress] = []
    assert find_tickets(lottery(training, rewind=6), 1, tmp_path / "parts", again.append) == whole
    assert again[0].index == done + 1
    assert again[-1].index == again[-1].networks == 9
    for name in ("rewound", "round2-ticket", "round2-random_mask"):
        for layer, tensor in weights(tmp_path / "whole", name).items():
            assert torch.equal(weights(tmp_path / "parts", name)[layer], tensor)
    silent: list[LotteryProgress] = []
    assert find_tickets(lottery(training, rewind=6), 1, tmp_path / "parts", silent.append) == whole
    assert not silent
    more = find_tickets(lottery(training, rewind=6, rounds=3), 1, tmp_path / "parts", silent.append)
    assert more[:9] == whole
    assert {progress.round for progress in silent} == {3}


def test_a_search_goes_on_whose_process_ended_after_a_record_was_written(
    training: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def interrupted(path: Path, missing_ok: bool = False) -> None:
        if path.name.endswith("training.pt"):
            raise KeyboardInterrupt
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            find_tickets(lottery(training), 0, tmp_path)
    assert (tmp_path / "round0-dense.json").exists()
    assert len(find_tickets(lottery(training), 0, tmp_path)) == 9
    assert not list(tmp_path.glob("*training.pt"))


def test_interrupted_in_an_arm_others_can_be_trained_first(training: Split, tmp_path: Path) -> None:
    def interrupt(progress: LotteryProgress) -> None:
        if (progress.arm, progress.training.step) == ("one_shot", 7):  # in its second epoch: the first is kept
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        find_tickets(lottery(training), 0, tmp_path, interrupt)
    find_tickets(lottery(training, arms=("ticket",)), 0, tmp_path)
    steps: list[tuple[int, str, int]] = []
    find_tickets(lottery(training), 0, tmp_path, lambda at: steps.append((at.round, at.arm, at.training.step)))
    assert steps[0] == (1, "one_shot", 6)
    assert not list(tmp_path.glob("*training.pt"))


def test_another_search_is_refused(training: Split, tmp_path: Path) -> None:
    find_tickets(lottery(training, rounds=1, arms=("ticket",)), 0, tmp_path)
    for changed, seed in ((lottery(training, ratio=0.4), 0), (lottery(training), 1), (lottery(training, rewind=1), 0)):
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: of another search for tickets: seed, network")):
            find_tickets(changed, seed, tmp_path)
    (tmp_path / "round1-ticket.json").write_text("{")
    with pytest.raises(ValueError, match=r"round1-ticket\.json is damaged; delete it, the network is then tr"):
        find_tickets(lottery(training, rounds=1, arms=("ticket",)), 0, tmp_path)


def test_a_damaged_mask_is_named(training: Split, tmp_path: Path) -> None:
    find_tickets(lottery(training, rounds=1, arms=("ticket",)), 0, tmp_path)
    (tmp_path / "round1-ticket-masks.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"round1-ticket-masks\.npz is damaged; delete the folder"):
        find_tickets(lottery(training, rounds=2, arms=("ticket",)), 0, tmp_path)


def test_a_network_that_breaks_its_mask_is_noticed(
    training: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc_env.training.lottery.hold_zeros", lambda weight, stays: None)
    with pytest.raises(TicketError, match="seed 0, round1-ticket: removed weights of layer '1' are back"):
        find_tickets(lottery(training), 0, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds: expected at least 1, got 0"),
        ({"ratio": 1.0}, "ratio: expected a fraction in (0, 1), got 1.0"),
        ({"rewind": -1}, "rewind: expected at least 0 steps, got -1"),
        ({"scope": "all"}, "scope: expected one of local, global, got 'all'"),
        ({"arms": ("one_shot",)}, "arms: expected ticket, and others of ticket, one_shot, reinitialised, random_mask"),
        ({"rewind": 10}, "rewind: expected less than the 10 steps, got 10"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    training: Split, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        find_tickets(lottery(training, **changes), 0, tmp_path)


def test_a_record_replays(training: Split, tmp_path: Path) -> None:
    record = find_tickets(lottery(training, rounds=1, arms=("ticket",)), 0, tmp_path)[1]
    network = build(0)
    network.load_state_dict(weights(tmp_path, "round1-ticket"))
    assert score(network.eval()) == record.scores
    assert TicketRecord(**json.loads((tmp_path / "round1-ticket.json").read_text())).kept == record.kept
