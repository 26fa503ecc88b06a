"""Moments against numpy's on the same rows, and files that are measured once and survive an interruption."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc_env.evaluation import NetworkProblem
from amc_env.pruning.calibration import Calibration
from amc_env.pruning.consumers import find_layers, readers
from amc_env.pruning.trace import trace_channels
from amc_env.settings import PruningSettings
from tests.amc_env.pruning.small_networks import Residual, chain, images, random_splits, randomised
from tests.amc_env.pruning.test_prefix import rows_of

ALL = 10**9


class Images:
    """Counts the batches that are read, and can fail at one of them."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.batches = torch.split(images(20), 8)  # the last one is smaller
        self.read = 0
        self.fails_at = fails_at

    def __call__(self) -> Iterator[torch.Tensor]:
        for batch in self.batches:
            if self.read == self.fails_at:
                raise ConnectionError("the disk is gone")
            self.read += 1
            yield batch


def make_calibration(network: nn.Module, source: Images, folder: Path, rows: int = ALL) -> Calibration:
    graph = trace_channels(network, images(2))
    layers = {layer.name: layer.columns for layer in readers(find_layers(graph))}
    return Calibration(network, layers, source, images=20, rows=rows, folder=folder)


def test_moments_are_those_of_all_rows(tmp_path: Path) -> None:
    network = randomised(Residual())
    calibration, rows = make_calibration(network, Images(), tmp_path), rows_of(network, images(20))
    for name in ("first", "second", "reader", "other"):
        moments, expected = calibration.moments(name), rows.inputs[name]
        assert moments.rows == len(expected) == 20 * 64
        np.testing.assert_allclose(moments.mean.numpy(), expected.mean(axis=0), rtol=1e-9, atol=1e-12)
        centred = expected - expected.mean(axis=0)
        np.testing.assert_allclose(moments.gram.numpy(), centred.T @ centred, rtol=1e-9, atol=1e-7)


def test_sampled_moments_are_near_and_as_many_as_asked_for(tmp_path: Path) -> None:
    network = randomised(Residual())
    whole = make_calibration(network, Images(), tmp_path / "all").moments("first")
    part = make_calibration(network, Images(), tmp_path / "part", rows=400).moments("first")
    assert part.rows == 400
    difference = part.gram / part.rows - whole.gram / whole.rows
    assert torch.linalg.norm(difference) < 0.4 * torch.linalg.norm(whole.gram / whole.rows)


def test_a_second_calibration_reads_the_files(tmp_path: Path) -> None:
    network, source, again = randomised(Residual()), Images(), Images(fails_at=0)
    first = make_calibration(network, source, tmp_path)
    first.prepare()
    assert source.read == 3  # one pass
    second = make_calibration(network, again, tmp_path)
    progress: list[tuple[int, int]] = []
    second.prepare(lambda done, total: progress.append((done, total)))
    assert torch.equal(first.moments("first").gram, second.moments("first").gram)
    assert progress == [(4, 4)]


def test_an_order_is_computed_once(tmp_path: Path) -> None:
    calibration = make_calibration(randomised(Residual()), Images(), tmp_path)
    assert calibration.remember_order("obs-stem", lambda: np.array([2, 0, 1])).tolist() == [2, 0, 1]
    other = make_calibration(randomised(Residual()), Images(), tmp_path)
    assert other.remember_order("obs-stem", lambda: pytest.fail("computed again")).tolist() == [2, 0, 1]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_damaged_file_is_named(tmp_path: Path, share: float) -> None:
    network = randomised(Residual())
    calibration = make_calibration(network, Images(), tmp_path)
    calibration.moments("first")
    calibration.remember_order("obs-stem", lambda: np.array([2, 0, 1]))
    for name in ("first.pt", "order-obs-stem.npy"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"first\.pt is damaged; delete it, it is then measured again"):
        make_calibration(network, Images(), tmp_path).moments("first")
    with pytest.raises(ValueError, match=r"order-obs-stem\.npy is damaged; delete it, it is then computed again"):
        calibration.remember_order("obs-stem", lambda: np.array([0, 1, 2]))


@pytest.mark.parametrize("fails_at", [1, 4, 11])
def test_an_interrupted_calibration_goes_on_with_the_same_numbers(
    fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc_env.pruning.calibration._BYTES_AT_ONCE", 1)  # a pass for each layer
    network = randomised(Residual())
    whole = make_calibration(network, Images(), tmp_path / "whole", rows=200)
    progress: list[int] = []
    whole.prepare(lambda done, total: progress.append(done))
    assert progress == [0, 1, 2, 3, 4]
    broken = make_calibration(network, Images(fails_at), tmp_path / "broken", rows=200)
    with pytest.raises(ConnectionError, match="the disk is gone"):
        broken.prepare()
    assert len(list((tmp_path / "broken").glob("*"))) == fails_at // 3
    resumed_source = Images()
    resumed = make_calibration(network, resumed_source, tmp_path / "broken", rows=200)
    progress.clear()
    resumed.prepare(lambda done, total: progress.append(done))
    assert progress == list(range(fails_at // 3, 5))
    assert resumed_source.read == 3 * (4 - fails_at // 3)
    for name in ("first", "second", "reader", "other"):
        assert torch.equal(whole.moments(name).gram, resumed.moments(name).gram)


def test_the_rows_of_a_layer_do_not_depend_on_which_others_are_measured(tmp_path: Path) -> None:
    """Otherwise a calibration that was interrupted while it saved would give other numbers than a whole one."""
    network = randomised(Residual())
    whole = make_calibration(network, Images(), tmp_path / "whole", rows=200)
    whole.prepare()
    (tmp_path / "part").mkdir()
    for name in ("first", "reader"):
        (tmp_path / "part" / f"{name}.pt").write_bytes((tmp_path / "whole" / f"{name}.pt").read_bytes())
    part = make_calibration(network, Images(), tmp_path / "part", rows=200)
    part.prepare()
    for name in ("first", "second", "reader", "other"):
        assert torch.equal(whole.moments(name).gram, part.moments(name).gram), name


def folder_of(network: nn.Module, calibration: int = 60) -> Path:
    problem = NetworkProblem(
        network, random_splits(calibration=calibration), budget={"macs": "50%"}, settings=PruningSettings(round_to=1)
    )
    return problem.calibration._folder


def test_networks_and_data_that_differ_do_not_share_files() -> None:
    def make(activation: nn.Module, stride: int = 1) -> nn.Module:
        return randomised(chain(nn.Conv2d(6, 10, 3, stride, bias=False), activation, nn.AdaptiveAvgPool2d(1),
                                nn.Flatten(), nn.Linear(10, 10)))  # fmt: skip

    first = folder_of(make(nn.ReLU()))
    assert folder_of(make(nn.ReLU())) == first
    others = [
        folder_of(randomised(make(nn.ReLU()), seed=1)),
        folder_of(make(nn.ReLU()), calibration=50),
        folder_of(make(nn.ReLU6())),  # the same weights, another function
        folder_of(make(nn.ReLU(), stride=2)),
    ]
    assert len({first, *others}) == 5
