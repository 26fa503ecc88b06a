"""The spec of a job: what the file may say. Unknown keys are errors; the same spec gives the same results."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from agents.base import Agent
from agents.registry import AnyAgent
from amc_env.budget import parse_limit
from amc_env.objectives import find_objective
from amc_env.problem import RewardForm
from amc_env.pruning.criteria import CRITERIA, Criterion, needs_calibration
from amc_env.pruning.patterns import FINE_GRAINED, parse_pattern
from amc_env.pruning.saliency import SaliencySettings
from amc_env.settings import Dtype, EvaluationSettings, Fidelity, PruningSettings, ShortFineTuning, WeightSettings
from amc_env.storage import Codes, Format, StorageSettings
from hw.cost import COST_MODELS, SPARSE_LATENCY
from hw.host import RUNTIME_NAMES, Conditions
from hw.latency_table import LatencyTable
from search.errors import UserError
from search.spec_base import Count, Part, Seed, nearest
from search.spec_inputs import Data, Network
from search.spec_training import Finetune

#: the key beside the limits of a budget that names the file of a latency table
TABLE = "table"
_WHOLE = ("filter", "channel", "fine_grained")  # patterns that suit every layer


class SpecError(UserError):
    """The spec cannot be used as it is; the message says where and why."""


class SaliencyOptions(Part):
    """What else a criterion reads; see `amc_env.pruning.saliency.SaliencySettings`.

    Attributes:
        seed: of the criteria random and obd.
        snip_factors: of snip_momentum: of the score so far, and of the new one.
    """

    seed: Seed = 0
    snip_factors: tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0)]] = (1.0, 0.9)

    def settings(self) -> SaliencySettings:
        """The same for the problem."""
        return SaliencySettings(**self.model_dump())


class Pruning(Part):
    """What is removed; see `amc_env.settings.PruningSettings` for channels and `WeightSettings` for weights.

    Attributes:
        granularity: "channel": whole channels, for good; else weights become zero, for which the defaults are others:
            "fine_grained" (single ones), "vector", "kernel", "filter", NxM (such as "4x1") or N:M (such as "2:4",
            "n:4"); see `amc_env.pruning.patterns`.
        criterion: what goes first; see `amc_env.pruning.saliency`, and `amc_env.pruning.criteria` for channels alone.
    """

    younger: ClassVar[frozenset[str]] = frozenset({"saliency"})

    granularity: str = "channel"
    round_to: Count = 8
    max_ratio: float = Field(default=0.8, gt=0, lt=1)
    criterion: Criterion = "input_l1"
    saliency: SaliencyOptions = SaliencyOptions()
    keep: tuple[str, ...] = ()

    @field_validator("criterion", mode="before")
    @classmethod
    def _known_criterion(cls, criterion: Any) -> Any:
        if criterion not in CRITERIA:
            known = ", ".join(CRITERIA)
            raise ValueError(f"expected one of {known}, got {criterion!r}{nearest(str(criterion), CRITERIA)}")
        return criterion

    @field_validator("granularity", mode="before")
    @classmethod
    def _known_pattern(cls, granularity: Any) -> Any:
        if isinstance(granularity, int):  # YAML 1.1 reads 2:4 without quotes to base 60
            granularity = f"{granularity // 60}:{granularity % 60}"
        if isinstance(granularity, str):
            parse_pattern(granularity)
        return granularity

    @model_validator(mode="after")
    def _usable(self) -> Pruning:
        if self.of_weights:
            self.weight_settings()
            if self.round_to != 1:
                raise ValueError(f"round_to: how many weights stay follows from the pattern, got {self.round_to}")
        return self

    @property
    def of_weights(self) -> bool:
        """Whether weights become zero, and no channels go."""
        return self.granularity != "channel"

    def settings(self) -> PruningSettings:
        """The same for a problem of channels."""
        own = self.model_dump(exclude={"granularity", "saliency"})
        return PruningSettings(**own, saliency=self.saliency.settings())

    def weight_settings(self) -> WeightSettings:
        """The same for a problem of single weights.

        Raises:
            ValueError: the criterion does not suit the pattern.
        """
        own = self.model_dump(exclude={"round_to", "saliency"})
        return WeightSettings(**own, saliency=self.saliency.settings())


#: defaults of a spec that removes weights, where they differ from those for channels
_SINGLE_WEIGHTS = {"round_to": 1, "max_ratio": 0.98, "criterion": "obs"}


class Storage(Part):
    """How a network with weights removed is stored; see `amc_env.storage.StorageSettings`.

    Attributes:
        format: by default "eie" for single weights, "pattern" for units of them.
    """

    format: Format = "eie"
    elements: Count = 1
    codebook: Codes | None = None

    @model_validator(mode="after")
    def _usable(self) -> Storage:
        try:
            self.settings()
        except ValueError as error:
            raise ValueError(str(error).removeprefix("storage: ")) from error
        return self

    def settings(self) -> StorageSettings:
        """The same for the problem."""
        return StorageSettings(**self.model_dump())


class ShortFinetune(Part):
    """Training after each repair; see `amc_env.settings.ShortFineTuning`."""

    steps: int = Field(default=0, ge=0)
    learning_rate: float = Field(default=0.01, gt=0)
    batch: int = Field(default=128, ge=2)


class Evaluation(Part):
    """How a pruned network is evaluated; see `amc_env.settings.EvaluationSettings`.

    Attributes:
        objective: a name as of `amc_env.objectives`, or "module:function" of the user's own.
        folder: where that module is looked for first; by default the folder of the spec.
    """

    younger: ClassVar[frozenset[str]] = frozenset({"block_epochs"})
    fidelity: Fidelity = "sequential"
    recalibrate_batchnorm: bool | None = None
    images: Count = 250
    rows: Count = 5000
    objective: str = "top1"
    folder: Path | None = None
    hard_images: Count | None = None
    stop_early: bool = False
    dtype: Dtype = "float32"
    device: str = "auto"
    block_epochs: int = Field(default=0, ge=0)
    finetune: ShortFinetune = ShortFinetune()

    @model_validator(mode="after")
    def _usable(self) -> Evaluation:
        self.settings()
        if ":" not in self.objective:
            find_objective(self.objective)
        elif self.folder is None:
            raise ValueError(f"folder: expected the folder of the module of objective {self.objective!r}")
        return self

    def settings(self) -> EvaluationSettings:
        """The same for the problem.

        Raises:
            ValueError: the values do not go together.
        """
        short = ShortFineTuning(**self.finetune.model_dump())
        return EvaluationSettings(**{**self.model_dump(), "finetune": short})


class Latency(Part):
    """How latency is measured, for a budget on `latency_ms`; of `sparse_latency_ms` threads, batch and margin.

    Attributes:
        runtime: what executes the network: onnxruntime, torch, torch.compile or cuda. Sparse layers run in torch.
        threads: of one inference.
        batch: images per inference.
        levels: of a table that the job builds: widths of each decision that are met in every pair of one layer.
        random: of such a table: further networks of random widths.
        seconds: of such a table: time in which disturbed measurements are repeated.
        margin: share of the limit that the search keeps free, because predictions err by about so much.
        refine: how often a winner that misses the budget when it is measured may correct the table and let the
            search go on.
    """

    runtime: str = "onnxruntime"
    threads: Count = 1
    batch: Count = 1
    levels: int = Field(default=7, ge=3, le=13)
    random: int = Field(default=31, ge=0)
    seconds: float = Field(default=600.0, gt=0)
    margin: float = Field(default=0.01, ge=0, lt=0.5)
    refine: int = Field(default=1, ge=0)

    @field_validator("runtime")
    @classmethod
    def _known_runtime(cls, runtime: str) -> str:
        if runtime not in RUNTIME_NAMES:
            known = ", ".join(RUNTIME_NAMES)
            raise ValueError(f"expected one of {known}{nearest(runtime, RUNTIME_NAMES)}")
        return runtime

    @property
    def conditions(self) -> Conditions:
        return Conditions(self.runtime, self.threads, self.batch)


class Resources(Part):
    """What a job may use; it changes how long a job takes, and `threads_per_trial` perhaps the last digits.

    Attributes:
        trials_in_parallel: as many as there are CPUs for unless told.
        threads_per_trial: of each evaluation.
        evaluations_in_parallel: how many evaluations of one trial run at once, each in a process of its own, where the
            agent asks for several (`evaluates_many`); the results are the same.
        max_failures: how often a trial or an evaluation whose process died (killed, out of memory) is started again.
        address: of a Ray cluster that exists, such as head:6379, or by `amc serve` of its Ray Jobs, http://head:8265;
            without one a Ray is started on this machine for the job.
    """

    younger: ClassVar[frozenset[str]] = frozenset({"address"})

    trials_in_parallel: Count | None = None
    threads_per_trial: Count = 1
    evaluations_in_parallel: Count = 1
    max_failures: int = Field(default=2, ge=0)
    address: str | None = Field(default=None, min_length=1)

    def evaluations_at_once(self, agent: Agent) -> int:
        """How many evaluations of a trial of this agent run at once."""
        return self.evaluations_in_parallel if agent.evaluates_many else 1


class Spec(Part):
    """A whole job. `spec_id` is the SHA-256 of its canonical JSON.

    Attributes:
        budget: limits by cost; beside `latency_ms` perhaps `table`, the file of a latency table (without it, the job
            builds one).
        storage: only for single weights and units of them: how the network is stored, which `size` counts.
        features: what the eleven features count where the paper counts FLOPs; "auto": latency if that has a limit.
    """

    version: Literal[1]
    name: str = Field(default="search", pattern=r"^[A-Za-z0-9._-]+$")
    network: Network
    data: Data | None = None
    budget: dict[str, float | str] = {}
    latency: Latency = Latency()
    pruning: Pruning = Pruning()
    storage: Storage | None = None
    evaluation: Evaluation = Evaluation()
    reward: RewardForm = "error"
    features: Literal["auto", "macs", "latency_ms"] = "auto"
    agents: tuple[AnyAgent, ...]
    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    evaluations: Count
    finetune: Finetune | None = None
    resources: Resources = Resources()

    @model_validator(mode="before")
    @classmethod
    def _defaults_by_granularity(cls, raw: Any) -> Any:
        pruning, evaluation = (
            (raw.get(key, {}) for key in ("pruning", "evaluation")) if isinstance(raw, dict) else ({}, {})
        )
        if not (isinstance(pruning, dict) and isinstance(evaluation, dict)):
            return raw
        granularity = pruning.get("granularity", "channel")
        if granularity == "channel":
            return raw
        raw = raw | {"pruning": _SINGLE_WEIGHTS | pruning, "evaluation": {"fidelity": "prefix"} | evaluation}
        storage = raw.get("storage") or {}
        if granularity == FINE_GRAINED.name or not isinstance(storage, dict):
            return raw
        return raw | {"storage": {"format": "pattern"} | storage}

    @field_validator("budget")
    @classmethod
    def _known_limits(cls, budget: dict[str, float | str]) -> dict[str, float | str]:
        known = (*COST_MODELS, LatencyTable.name, SPARSE_LATENCY)
        for cost, limit in budget.items():
            if cost == TABLE:
                if not isinstance(limit, str):
                    raise ValueError(f"table: expected the path of a latency table, got {limit!r}")
                continue
            if cost not in known:
                raise ValueError(f"unknown cost {cost!r}{nearest(cost, known)} (known: {', '.join(known)})")
            parse_limit(cost, limit, 1.0)
        if TABLE in budget and LatencyTable.name not in budget:
            raise ValueError("table: needed for a limit on latency_ms only, of which there is none")
        return budget

    @field_validator("seeds")
    @classmethod
    def _unique_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"expected each seed once, got {list(seeds)}")
        return seeds

    @field_validator("agents")
    @classmethod
    def _unique_labels(cls, agents: tuple[AnyAgent, ...]) -> tuple[AnyAgent, ...]:
        if not agents:
            raise ValueError("expected at least one, such as {kind: random}")
        labels = [agent.label for agent in agents]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"two agents are called {twice!r}; give one of them another name")
        return agents

    @model_validator(mode="after")
    def _fits_together(self) -> Spec:
        if (self.data is None) != (self.network.kind == "toy"):
            raise ValueError("data: needed by every network but 'toy', which takes none")
        if self.network.kind == "toy" and self.evaluation != Evaluation():
            raise ValueError("evaluation: network 'toy' has a closed-form accuracy; leave the section out")
        if self.network.kind == "toy" and LatencyTable.name in self.budget:
            raise ValueError("budget: the toy problem has no latency, for it has no network")
        if self.network.kind == "toy" and self.finetune is not None:
            raise ValueError("finetune: the toy problem has no network to train; leave the section out")
        if self.features == "latency_ms" and LatencyTable.name not in self.budget:
            raise ValueError("features: latency_ms needs a budget on latency_ms")
        if self.reward == "error" and not self.limits:
            raise ValueError(
                "budget: expected at least one limit, such as {macs: 50%}; without one, reward 'error' removes nothing"
            )
        return self

    @model_validator(mode="after")
    def _fits_fine_tuning(self) -> Spec:
        if self.finetune is None:
            return self
        sparsify, regularizer = self.finetune.sparsify, self.finetune.regularizer
        if sparsify is not None and not self.pruning.of_weights:
            raise ValueError(
                "finetune.sparsify: removes weights while the network is trained; with granularity channel a winner's "
                "channels are removed before. Leave it out, or set pruning.granularity: fine_grained or a pattern"
            )
        if sparsify is not None and self.storage is not None and self.storage.codebook is not None:
            raise ValueError(
                "finetune.sparsify: trains weights that share no values; leave storage.codebook out, or sparsify"
            )
        if regularizer is not None and not self.pruning.of_weights and regularizer.pattern not in (None, *_WHOLE):
            raise ValueError(
                f"finetune.regularizer: pattern: channels change the shapes of layers; expected one of "
                f"{', '.join(_WHOLE)}, got {regularizer.pattern!r}"
            )
        return self

    @model_validator(mode="after")
    def _agents_have_budget(self) -> Spec:
        several = next((agent.label for agent in self.agents if agent.needs_budget), None)
        if several is not None and len(self.limits) != 1:
            raise ValueError(
                f"agents: {several} takes `budgets`, fractions of the cost that the job's one budget limits; expected "
                f"one limit in budget, got {', '.join(self.limits) or 'none'}"
            )
        return self

    @model_validator(mode="after")
    def _agents_have_scores(self) -> Spec:
        ranking = next((agent.label for agent in self.agents if agent.needs_scores), None)
        if ranking is not None and not self.pruning.of_weights and needs_calibration(self.pruning.criterion):
            raise ValueError(
                f"agents: {ranking} ranks the channels of all layers, of which criterion {self.pruning.criterion} "
                f"gives no scores that compare; take another criterion, or the agent reconstruction"
            )
        return self

    @model_validator(mode="after")
    def _fits_granularity(self) -> Spec:
        if not self.pruning.of_weights:
            if SPARSE_LATENCY in self.budget:
                raise ValueError(
                    "budget: sparse_latency_ms is of single weights; limit latency_ms, or set pruning.granularity: "
                    "fine_grained"
                )
            if self.storage is not None:
                raise ValueError(
                    "storage: only for single weights; leave it out, or set pruning.granularity: fine_grained"
                )
            return self
        if self.network.kind == "toy":
            raise ValueError("pruning: the toy problem has no weights; leave granularity out")
        if self.evaluation.fidelity == "sequential":
            raise ValueError(
                "evaluation.fidelity: sequential fits layers that lose channels; for single weights take prefix or "
                "magnitude"
            )
        if LatencyTable.name in self.budget:
            raise ValueError(
                "budget: latency_ms is of dense layers, which lose no time with single weights; limit "
                "sparse_latency_ms, size or macs"
            )
        return self

    @property
    def limits(self) -> dict[str, float | str]:
        """What the search must keep: the budget without the path of a table, and the latency less the margin."""
        return {
            cost: _less(limit, self.latency.margin) if cost in (LatencyTable.name, SPARSE_LATENCY) else limit
            for cost, limit in self.budget.items()
            if cost != TABLE
        }

    @property
    def table(self) -> Path | None:
        """The latency table that the budget names."""
        return Path(str(self.budget[TABLE])) if TABLE in self.budget else None

    @property
    def needs_table(self) -> bool:
        return LatencyTable.name in self.budget

    @property
    def needs_sparse_table(self) -> bool:
        return SPARSE_LATENCY in self.budget

    @property
    def evaluations_at_once(self) -> int:
        """How many evaluations run at once in the trial that runs most."""
        return max(self.resources.evaluations_at_once(agent) for agent in self.agents)

    @property
    def feature_cost(self) -> str:
        """The cost that the eleven features count."""
        if self.features == "auto":
            return LatencyTable.name if self.needs_table else "macs"
        return self.features

    @property
    def spec_id(self) -> str:
        canonical = json.dumps(self.content(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def content(self) -> dict[str, Any]:
        """The spec as plain values for JSON or YAML, defaults filled in."""
        return self.model_dump(mode="json")


def _less(limit: float | str, margin: float) -> float | str:
    """A number or a percentage, less a share of it."""
    if isinstance(limit, str) and limit.strip().endswith("%"):
        return f"{float(limit.strip()[:-1]) * (1 - margin)!r}%"
    return float(limit) * (1 - margin)


def spec_schema() -> dict[str, Any]:
    """The JSON schema of a spec."""
    return Spec.model_json_schema()
