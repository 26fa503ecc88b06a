"""The table of sparse latency: what it says between its entries, and its file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hw.host import Host
from hw.layers import LayerShape
from hw.sparse.latency import SparseLatencyError, SparseLatencyTable, SparseLayerTimes, measure_sparse_latency
from hw.sparse.replacement import Layer
from hw.timing import Timing

TIMES = SparseLayerTimes(dense_ms=5.0, weights=(10, 30, 50), milliseconds=(2.0, 1.0, 6.0))
TABLE = SparseLatencyTable(1, 2, 0.5, {"fc": TIMES}, Host(processor="some", cpus=2))


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (1, 2.0),  # no less than was ever measured
        (10, 2.0),
        (20, 2.0),  # 30 weights took less by chance: the time does not fall when weights are added
        (40, 4.0),  # half of the way from 2 to 6
        (50, 5.0),  # then it stays dense
        (100, 5.0),
    ],
)
def test_between_entries_the_time_rises_in_a_line_up_to_the_dense_layer(kept: int, expected: float) -> None:
    assert TIMES.at(kept) == pytest.approx(expected)


def test_with_more_weights_than_were_tried_a_layer_is_dense() -> None:
    assert SparseLayerTimes(5.0, (10,), (2.0,)).at(11) == 5.0
    assert SparseLayerTimes(5.0, (), ()).at(11) == 5.0


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "table.json")
    assert SparseLatencyTable.load(tmp_path / "table.json") == TABLE


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected a table of sparse latency, got JSONDecodeError"),
        ("{}", "expected a table of sparse latency, got KeyError('sparse_latency')"),
        ("[]", "expected a table of sparse latency, got TypeError"),
        ('{"sparse_latency": 1, "layers": {"fc": {}}}', "expected a table of sparse latency, got KeyError('dense_ms')"),
        (None, "expected version 1, got 2; delete it to measure anew"),
    ],
)
def test_a_damaged_file_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    TABLE.save(path)
    if content is None:
        content = json.dumps(json.loads(path.read_text()) | {"sparse_latency": 2})
    path.write_text(content)
    with pytest.raises(SparseLatencyError, match=re.escape(f"{path}: {message}")):
        SparseLatencyTable.load(path)


def test_it_does_not_follow_from_channels() -> None:
    layer = LayerShape("fc", "linear", 4, 3, (1, 1), (1, 1), (1, 1), (1, 1))
    assert TABLE.layer_costs([layer]).tolist() == [5.0]
    with pytest.raises(
        ValueError,
        match=re.escape("sparse_latency_ms follows from single weights, not from channels; limit latency_ms"),
    ):
        TABLE.bind([layer])


class Plus(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 9.0


def constant(layer: Layer, value: float) -> Layer:
    """The layer, giving the value everywhere."""
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(value)  # type: ignore[union-attr]
    return layer.eval()


def made_up_times(calls: Mapping[str, Callable[[], Any]], *, seed: int) -> dict[str, Timing]:
    """A call takes as many milliseconds as it gives; channels last, and two of three kernels, one more."""
    times = {
        name: float(call().max()) + name.startswith(("torch, channels last", "lanes", "panels"))
        for name, call in calls.items()
    }
    return {name: Timing(1, time, time, time) for name, time in times.items()}


def test_a_network_is_measured_layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hw.sparse.latency.time_calls", made_up_times)
    conv, linear = constant(nn.Conv2d(3, 8, 3), 5.0), constant(nn.Linear(8 * 36, 4), 3.0)
    variants: dict[str, dict[int, Layer]] = {
        "0": {20: constant(nn.Conv2d(3, 8, 3), 1.0), 60: constant(nn.Conv2d(3, 8, 3), 2.0)},
        "3": {30: constant(nn.Linear(8 * 36, 4), 0.5), 10: constant(nn.Linear(8 * 36, 4), 0.25)},
    }
    said: list[tuple[int, int]] = []
    table = measure_sparse_latency(
        nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear, Plus()).eval(),
        torch.randn(2, 3, 8, 8),
        variants,
        threads=1,
        on_layer=lambda *done: said.append(done),
    )
    assert said == [(0, 2), (1, 2), (2, 2)]
    assert (table.threads, table.batch) == (1, 2)
    assert table.layers == {
        "0": SparseLayerTimes(5.0, (20, 60), (1.0, 2.0)),
        "3": SparseLayerTimes(3.0, (10, 30), (0.25, 0.5)),
    }
    assert table.rest_ms == 12.0 - 5.0 - 3.0


@pytest.mark.parametrize("padding", [{"padding": 1, "padding_mode": "reflect"}, {"padding": "same"}], ids=str)
def test_a_layer_that_no_sparse_kernel_takes_is_measured_dense(padding: dict[str, Any]) -> None:
    conv, thin = nn.Conv2d(3, 4, 3, **padding), nn.Conv2d(3, 4, 3, **padding)
    table = measure_sparse_latency(nn.Sequential(conv).eval(), torch.randn(2, 3, 8, 8), {"0": {20: thin}}, threads=1)
    assert (table.layers["0"].weights, table.layers["0"].milliseconds) == ((), ())
    assert table.layers["0"].at(20) == table.layers["0"].dense_ms > 0.0
