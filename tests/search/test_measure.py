"""The winner run on the processor: a job with a budget on sparse latency, and `amc measure`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from hw.host import Host
from hw.sparse.latency import SparseLatencyTable, SparseLayerTimes
from hw.sparse.replacement import Layer
from search.cli import main
from search.job import JobError, load_results, measure_job, run_job
from search.measure import SPARSE, MeasureOptions, measure_layers
from search.measure_report import break_even_text, layer_table, measured_verdict, whole_table
from search.progress import LatencyProgress
from search.results import MeasuredLayerRecord, MeasuredRecord
from search.spec import SpecError, load_spec
from tests.search.conftest import run_here

SPEC = """\
version: 1
name: digits-sparse
network: {kind: digits}
data: {kind: digits, calibration_images: 100, search_images: 100, test_images: 100}
budget: {sparse_latency_ms: 50%}
pruning: {granularity: fine_grained, criterion: l1}
evaluation: {fidelity: magnitude}
agents: [{kind: uniform}]
evaluations: 2
"""
TOY = """\
version: 1
network: {kind: toy}
budget: {macs: 50%}
agents: [{kind: uniform}]
evaluations: 1
"""


def made_up_table(
    network: nn.Module, example: torch.Tensor, variants: Mapping[str, Mapping[int, Layer]], *,
    threads: int, on_layer: Callable[[int, int], None],
) -> SparseLatencyTable:  # fmt: skip
    """1 ms for each dense layer, and sparse as much of it as weights stay: what is measured differs by the run."""
    layers = {}
    for done, (name, thinner) in enumerate(variants.items()):
        on_layer(done, len(variants))
        size = network.get_submodule(name).get_parameter("weight").numel()
        weights = tuple(sorted(thinner))
        layers[name] = SparseLayerTimes(1.0, weights, tuple(kept / size for kept in weights))
    return SparseLatencyTable(threads, len(example), 0.5, layers, Host())


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job")
    (folder / "spec.yaml").write_text(SPEC)
    said: list[object] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.job._search", run_here)
        patch.setattr("amc_env.fine_grained.measure_sparse_latency", made_up_table)
        run_job(load_spec(folder / "spec.yaml"), folder / "job", on_progress=said.append)
    layers = [progress for progress in said if isinstance(progress, LatencyProgress)]
    assert {progress.unit for progress in layers} == {"layers"}
    assert str(layers[0]).startswith("measuring latency: 0/")
    return folder / "job"


def test_a_budget_on_sparse_latency_is_held_by_its_table_and_the_winner_is_measured(job: Path) -> None:
    results = load_results(job)
    (budget,) = results.budgets
    assert (budget.cost, budget.unit) == ("sparse_latency_ms", "ms")
    assert budget.fraction == pytest.approx(0.5 * 0.99)  # less latency.margin
    best = results.trials[0].best
    assert best is not None
    assert best.costs["sparse_latency_ms"] <= budget.limit
    table = json.loads((job / "sparse_latency.json").read_text())
    assert set(table["layers"]) == {decision.name for decision in results.decisions}
    record = results.measured
    assert record is not None
    assert record.widths == best.widths
    assert SPARSE in record.pruned
    assert {"torch", "onnxruntime"} <= set(record.dense)
    assert {"onnxruntime int8", "torch CSR"} <= set(record.pruned)
    assert {layer.name for layer in record.layers} >= {decision.name for decision in results.decisions}
    assert all(record.differences[name] < 1e-4 for name in (SPARSE, "onnxruntime", "torch CSR", "torch"))


def test_the_report_shows_what_was_measured(job: Path) -> None:
    page = (job / "report.html").read_text()
    assert "The winner on this processor" in page
    assert "Where sparsity pays" in page
    assert "With sparse layers the search had predicted" in page


def test_measuring_again_replaces_the_record(job: Path) -> None:
    before = load_results(job)
    results = measure_job(job, MeasureOptions(batch=2), agent="uniform")
    record = results.measured
    assert record is not None
    assert (record.batch, record.layers) == (2, ())
    assert SPARSE not in record.pruned
    assert "torch CSR" not in record.pruned
    assert load_results(job) == results
    assert results.model_copy(update={"measured": before.measured}) == before
    assert "Where sparsity pays" not in (job / "report.html").read_text()
    headings, rows = whole_table(record)
    assert all(len(row) == len(headings) for row in rows)
    assert len(measured_verdict(results, record)) == 1


def test_the_verb_prints_the_tables(job: Path) -> None:
    said = CliRunner().invoke(main, ["measure", str(job), "--sparse"])
    assert said.exit_code == 0, said.output
    assert "pays below" in said.output
    assert "The pruned network is fastest by" in said.output
    assert said.output.rstrip().endswith(f"report: {job / 'report.html'}")


class WithAuxiliaryHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(6, 2)
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x)
        return logits + self.auxiliary(x) if self.training else logits


def test_layers_that_evaluation_never_calls_are_left_out() -> None:
    said: list[tuple[int, int]] = []
    network, example = WithAuxiliaryHead().eval(), torch.randn(2, 6)
    records = measure_layers(network, example, 1, lambda *done: said.append(done))
    assert [record.name for record in records] == ["head"]
    assert said == [(0, 1), (1, 1)]


def test_what_cannot_be_measured_is_refused(job: Path, tmp_path: Path) -> None:
    with pytest.raises(
        JobError, match=r"no feasible policy of agent ddpg, seed any; trials: uniform seed 0 \(finished\)"
    ):
        measure_job(job, MeasureOptions(), agent="ddpg")
    with pytest.raises(JobError, match="batch: expected at most the 100 images to search on, got 1000"):
        measure_job(job, MeasureOptions(batch=1000))
    with pytest.raises(JobError, match=r"no job folder, it has no spec\.yaml"):
        measure_job(tmp_path / "none", MeasureOptions())
    (tmp_path / "toy.yaml").write_text(TOY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("search.job._search", run_here)
        run_job(load_spec(tmp_path / "toy.yaml"), tmp_path / "toy")
    with pytest.raises(JobError, match="the job searched the toy problem, which has no network to measure"):
        measure_job(tmp_path / "toy", MeasureOptions())


def test_sparse_latency_is_of_single_weights(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(SPEC.replace("granularity: fine_grained, criterion: l1", ""))
    message = (
        "budget: sparse_latency_ms is of single weights; limit latency_ms, or set pruning.granularity: fine_grained"
    )
    with pytest.raises(SpecError, match=re.escape(message)):
        load_spec(tmp_path / "spec.yaml", ["evaluation.fidelity=sequential"])


def test_a_layer_says_below_which_density_sparsity_pays() -> None:
    layer = MeasuredLayerRecord(
        name="fc", described="linear 4 to 3", density=0.05, activation_density=0.5, kernel="lanes",
        milliseconds={"torch": 2.0, "onnxruntime": 1.0, "onnxruntime int8": 0.9, "lanes": 0.5, "panels": 0.7},
        sparse=((0.05, 0.5), (0.6, 3.0)), break_even=0.16,
    )  # fmt: skip
    assert break_even_text(layer) == "16 %"
    assert break_even_text(layer.model_copy(update={"break_even": 0.0})) == "never"
    assert break_even_text(layer.model_copy(update={"break_even": None})) == "over 60 %"
    record = MeasuredRecord(
        agent="a",
        seed=0,
        widths=(1,),
        threads=1,
        batch=1,
        host={},
        dense={},
        pruned={},
        differences={},
        layers=(layer,),
    )
    headings, rows = layer_table(record)
    assert dict(zip(headings, rows[0], strict=True)) == {
        "layer": "fc", "geometry": "linear 4 to 3", "density": "5.0 %", "input": "50 %", "best dense": "1 ms",
        "8 bits": "0.900 ms", "torch CSR": "-", "sparse": "0.500 ms", "pays below": "16 %", "runs": "lanes",
    }  # fmt: skip
