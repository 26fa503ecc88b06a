"""What a job leaves behind, as files: the journal of a trial, its result, and the results of the whole job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

TrialStatus = Literal["finished", "failed", "interrupted"]
JobStatus = Literal["finished", "failed", "interrupted"]


class Record(BaseModel):
    """Base of all records: unknown keys are refused, infinities and NaN never written."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class EvaluationRecord(Record):
    """One line of a trial's journal: one evaluation.

    `reward` is null if a budget is violated, `error` and `accuracy` then too unless the policy was a probe; `accuracy`
    also if the network does not classify.
    """

    index: int
    widths: tuple[int, ...]
    costs: dict[str, float]
    violation: float
    error: float | None
    accuracy: float | None
    reward: float | None
    fraction: float = 1.0
    repeated: bool
    seconds: float

    @property
    def stopped_early(self) -> bool:
        return self.fraction < 1.0


class HistoryPoint(Record):
    """An evaluation as the report plots it; `seconds` since the trial began, over all its attempts."""

    widths: tuple[int, ...] = ()
    reward: float | None
    error: float | None
    accuracy: float | None
    costs: dict[str, float]
    best_reward: float | None
    stopped_early: bool = False
    seconds: float | None = None


class PolicyRecord(Record):
    """A policy with all that is known of it; the test split is for winners only.

    Errors are the objective's; accuracies are top-1 as fractions, null if the network does not classify.
    `test_correct` is of each test image whether it is classified rightly, packed into bits, in base 64.
    """

    ratios: dict[str, float]
    widths: tuple[int, ...]
    costs: dict[str, float]
    reward: float
    search_error: float
    test_error: float
    search_accuracy: float | None
    test_accuracy: float | None
    test_correct: str | None = None


class SeriesRecord(Record):
    """A network that a search passed through and kept.

    Attributes:
        feasible: whether it holds the budgets of the job, or its own.
        budget: its own, a fraction of the dense cost, where each network of the series answers another one.
        test_error: of the final network, likewise.
        test_accuracy: likewise; null if the network does not classify.
    """

    widths: tuple[int, ...]
    costs: dict[str, float]
    search_error: float
    search_accuracy: float | None
    feasible: bool
    budget: float | None = None
    test_error: float | None = None
    test_accuracy: float | None = None


class TrialRecord(Record):
    """One agent with one seed.

    Attributes:
        distinct: evaluations of widths that the trial had not met before.
        series: networks of the way, by falling cost, of an agent that keeps them.
    """

    agent: str
    kind: str
    seed: int
    status: TrialStatus
    error: str | None
    evaluations: int
    distinct: int
    seconds: float
    best: PolicyRecord | None
    history: tuple[HistoryPoint, ...]
    series: tuple[SeriesRecord, ...] = ()


class DecisionRecord(Record):
    """A decision as tables name it: `channels` units, first produced by a layer of this kernel and stride."""

    name: str
    channels: int
    op: str
    kernel: int
    stride: int
    macs: int


class BudgetRecord(Record):
    """A budget in its unit and as a fraction of the dense cost."""

    cost: str
    limit: float
    fraction: float
    unit: str


class SplitRecord(Record):
    """How many images a split has and where they come from."""

    images: int
    source: str


class DenseRecord(Record):
    """The network before pruning."""

    costs: dict[str, float]
    search_error: float
    test_error: float
    search_accuracy: float | None
    test_accuracy: float | None


class TimingRecord(Record):
    """Milliseconds of so many runs, as the clock showed them."""

    n: int
    median: float
    p10: float
    p90: float


class TimedPolicyRecord(Record):
    """A trial's best policy timed end to end.

    `measured_ms` is at the speed of the table's reference, comparable with `predicted_ms` and the budget; `timing` is
    what the clock showed. The speed-up is over the dense network in the same run, with its 95 % range.
    """

    agent: str
    seed: int
    widths: tuple[int, ...]
    predicted_ms: float
    measured_ms: float
    timing: TimingRecord
    speedup: float
    speedup_low: float
    speedup_high: float


class RefinementRecord(Record):
    """A winner that missed the budget when it was measured, by which the table was corrected.

    Attributes:
        earlier: refinements that the table had before; one that another job refined may be given to a job.
    """

    agent: str
    seed: int
    predicted_ms: float
    measured_ms: float
    earlier: int = 0


class StaircaseRecord(Record):
    """Latency of one layer over one of its widths: entries (width, mean, p10, p90) and the table's curve, in ms."""

    layer: str
    described: str
    axis: Literal["input", "output"]
    entries: tuple[tuple[int, float, float, float], ...]
    curve: tuple[tuple[int, float], ...]


class LatencyRecord(Record):
    """How latency was predicted and measured.

    Attributes:
        limit_ms: the budget as the spec states it, before the margin.
        unmeasured: why no policy was timed; None if they were.
        dense, dense_again: the dense network, two copies in the run in which the policies were timed.
        speed: how much slower the machine ran in that run than when the table was measured.
        checks: predicted (by a fit without it) and measured latency of each network behind the table's correction.
    """

    conditions: str
    host: dict[str, str]
    measured: str
    entries: int
    networks: int
    error_before: float | None
    error_after: float | None
    limit_ms: float
    predicted_dense_ms: float
    unmeasured: str | None
    dense: TimingRecord | None
    dense_again: TimingRecord | None
    speed: float | None
    policies: tuple[TimedPolicyRecord, ...]
    refinements: tuple[RefinementRecord, ...]
    checks: tuple[tuple[float, float], ...]
    staircases: tuple[StaircaseRecord, ...]


class SplitScores(Record):
    """Of one network: the objective's error and top-1 on both splits, the latter null if it does not classify."""

    search_error: float
    test_error: float
    search_accuracy: float | None
    test_accuracy: float | None


class FineTunedRecord(Record):
    """A network before and after its fine-tuning.

    Attributes:
        agent, seed: of the trial whose best policy it is; "dense" and the recipe's seed for the dense network.
        widths: of the decisions.
        folder: in the job's folder `finetune`, with `weights.pt`; trials that found the same policy share it.
        after: null if the training diverged.
        steps: batches trained.
        losses: mean loss of each epoch.
        seconds: of training.
        error: why there is no network; null if there is.
        sparsity: steps done and fraction removed then of the weights that are pruned, at each change, if weights were
            removed during the training; `before` is then the winner as the search found it, and the training began from
            the dense network.
        size_bytes: in that case of the network as it is stored, for its own zeros take other runs than the winner's.
    """

    agent: str
    seed: int
    widths: tuple[int, ...]
    folder: str
    before: SplitScores
    after: SplitScores | None
    steps: int
    losses: tuple[float, ...]
    seconds: float
    error: str | None = None
    sparsity: tuple[tuple[int, float], ...] = ()
    size_bytes: float | None = None


class FineTuneRecord(Record):
    """What became of a job's winners when they were fine-tuned, all by the recipe of the spec.

    Attributes:
        images, digest: trained on in each epoch, from `source`; a SHA-256 of them and their labels.
        crop_padding, flip: pixels of random shift, and whether images were mirrored.
        threads: of the training.
        winners: in the order of the trials; there is none for an agent without a feasible policy.
        dense: the dense network by the same recipe, if the spec asks for it.
    """

    images: int
    source: str
    digest: str
    crop_padding: int
    flip: bool
    threads: int
    winners: tuple[FineTunedRecord, ...]
    dense: FineTunedRecord | None


class MeasuredLayerRecord(Record):
    """A layer of the winner by itself, on the input that it gets in the network.

    Attributes:
        described: its kind and geometry.
        density, activation_density: shares of its weights and of its input that are not zero.
        kernel: what runs it in the network with sparse layers; "dense" if no sparse kernel gains.
        milliseconds: the 10th percentile of each way to run it, by name.
        sparse: density and milliseconds of the fastest sparse kernel, by rising density; the layer's own among them.
        break_even: density below which that is faster than the best dense float32; 0 if it never is; null if it is at
            all densities tried.
    """

    name: str
    described: str
    density: float
    activation_density: float
    kernel: str
    milliseconds: dict[str, float]
    sparse: tuple[tuple[float, float], ...]
    break_even: float | None


class MeasuredRecord(Record):
    """The winner run on the processor, beside the dense network and what else could run it.

    Attributes:
        threads, batch: of one run.
        host: the processor and the versions of what was timed.
        dense: the network before pruning, by what ran it.
        pruned: the winner likewise.
        differences: largest difference of its outputs from torch's in float32, of the largest output, likewise.
        layers: empty if they were not measured.
    """

    agent: str
    seed: int
    widths: tuple[int, ...]
    threads: int
    batch: int
    host: dict[str, str]
    dense: dict[str, TimingRecord]
    pruned: dict[str, TimingRecord]
    differences: dict[str, float]
    layers: tuple[MeasuredLayerRecord, ...]


class Results(Record):
    """`results.json` of a job: all that the report shows, replayable from `spec`, seeds and versions.

    Attributes:
        known: so many evaluations the job was given from others, and did not make itself where it came to them.
        narrowest: of each decision the width that `pruning.max_ratio` does not let it fall below; null where nothing
            narrower exists. Empty if no channels go, and in older results.
    """

    version: Literal[1] = 1
    name: str
    status: JobStatus
    spec: dict[str, Any]
    spec_id: str
    created: str
    seconds: float
    dense: DenseRecord
    budgets: tuple[BudgetRecord, ...]
    decisions: tuple[DecisionRecord, ...]
    splits: dict[str, SplitRecord]
    data_digest: str
    weights_digest: str
    trials: tuple[TrialRecord, ...]
    versions: dict[str, str]
    latency: LatencyRecord | None = None
    finetune: FineTuneRecord | None = None
    measured: MeasuredRecord | None = None
    known: int = 0
    narrowest: tuple[int | None, ...] = ()

    @property
    def samples(self) -> str:
        """What the splits hold, in a word."""
        kind = (self.spec.get("data") or {}).get("kind")
        return "texts" if kind in ("stdlib_docs", "npz_tokens") else "images"


def steps_left(spec: Mapping[str, Any], results: Mapping[str, Any], found: bool) -> list[str]:
    """Which parts of a job's results are still to come once all its trials are finished.

    Args:
        spec: the job's.
        results: what there is, by the names of `Results`; a part that is missing is to come.
        found: whether any trial found a feasible policy.
    """
    budget = spec.get("budget") or {}
    wanted = {
        "latency": "latency_ms" in budget,
        "finetune": spec.get("finetune") is not None,
        "measured": "sparse_latency_ms" in budget and found,
    }
    return [part for part, needed in wanted.items() if needed and results.get(part) is None]
