"""The spec of a job: what the file may say. Unknown keys are errors; the same spec gives the same results."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from agents.base import Agent
from agents.registry import AnyAgent
from amc_env.budget import parse_limit
from amc_env.objectives import find_objective
from amc_env.problem import RewardForm
from amc_env.pruning.criteria import Criterion
from amc_env.settings import Dtype, EvaluationSettings, Fidelity, PruningSettings, ShortFineTuning, WeightSettings
from amc_env.storage import Codes, StorageSettings
from amc_env.training.recipe import FineTuneSettings, Schedule
from hw.cost import COST_MODELS, SPARSE_LATENCY
from hw.host import RUNTIME_NAMES, Conditions
from hw.latency_table import LatencyTable
from search.errors import UserError

#: the key beside the limits of a budget that names the file of a latency table
TABLE = "table"
Seed = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class SpecError(UserError):
    """The spec cannot be used as it is; the message says where and why."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CifarResnet(_Part):
    """A ResNet of 6n + 2 layers for 32x32 images, with option-A shortcuts."""

    kind: Literal["cifar_resnet"]
    depth: Count
    classes: Count = 10
    weights: Path


class Lenet(_Part):
    """One of the two networks for MNIST of LeCun et al., in the sizes that the papers on pruning take."""

    kind: Literal["lenet"]
    name: Literal["lenet-300-100", "lenet-5"]
    classes: Count = 10
    weights: Path


class MobileNetV1(_Part):
    """MobileNet-V1 with all channel counts times `width`."""

    kind: Literal["mobilenet_v1"]
    width: float = Field(default=1.0, gt=0)
    classes: Count = 1000
    weights: Path


class Torchvision(_Part):
    """A classification model of torchvision by its name."""

    kind: Literal["torchvision"]
    name: str
    classes: Count = 1000
    weights: Path


class Digits(_Part):
    """The small embedded network for scikit-learn's digits, trained on first use."""

    kind: Literal["digits"]


class UserFunction(_Part):
    """A function of the user's, without arguments, that returns a network; without `weights` it returns a trained one.

    Attributes:
        target: "module:function".
        folder: where the module is looked for first; by default the folder of the spec.
    """

    kind: Literal["function"]
    target: str
    folder: Path
    weights: Path | None = None


class Toy(_Part):
    """The toy problem: no network and no data, a closed-form accuracy.

    Attributes:
        seconds_per_evaluation: each evaluation takes this long, for trying out the service.
    """

    kind: Literal["toy"]
    decisions: Count = 6
    channels: int = Field(default=16, ge=2)
    seed: Seed = 0
    seconds_per_evaluation: float = Field(default=0.0, ge=0.0)


Network = Annotated[
    CifarResnet | Lenet | MobileNetV1 | Torchvision | Digits | UserFunction | Toy, Field(discriminator="kind")
]


class Normalisation(_Part):
    """Images to network input: divide by `scale`, subtract `mean`, divide by `std`. Replaces all of the kind's own."""

    mean: tuple[float, ...] = (0.0,)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    scale: float = Field(default=255.0, gt=0)
    rotate_180: bool = False


class _Images(_Part):
    calibration_images: Count = 500
    search_images: Count
    test_images: Count
    seed: Seed = 0
    preprocessing: Normalisation | None = None


class DigitsImages(_Images):
    """Scikit-learn's digits."""

    kind: Literal["digits"]
    search_images: Count = 450
    test_images: Count = 450


class Npz(_Images):
    """Arrays test_images and test_labels, and perhaps train_images and train_labels, in one .npz file."""

    kind: Literal["npz"]
    path: Path


class TorchvisionImages(_Images):
    """A data set of torchvision, in its layout under `path`."""

    kind: Literal["cifar10", "cifar100", "mnist", "fashion_mnist"]
    path: Path
    download: bool = False


class ImageFolder(_Images):
    """One sub-folder per class, or any files named by a CSV `labels` (file, class_index)."""

    kind: Literal["image_folder"]
    path: Path
    labels: Path | None = None
    resize: Count | None = None
    crop: Count | None = None


Data = Annotated[DigitsImages | Npz | TorchvisionImages | ImageFolder, Field(discriminator="kind")]


class Pruning(_Part):
    """What is removed; see `amc_env.settings.PruningSettings` for channels and `WeightSettings` for single weights.

    Attributes:
        granularity: channels, or single weights ("fine_grained"), for which the defaults are others.
    """

    granularity: Literal["channel", "fine_grained"] = "channel"
    round_to: Count = 8
    max_ratio: float = Field(default=0.8, gt=0, lt=1)
    criterion: Criterion = "input_l1"
    keep: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _usable(self) -> Pruning:
        if self.granularity == "fine_grained":
            self.weight_settings()
            if self.round_to != 1:
                raise ValueError(
                    f"round_to: weights are removed one by one, expected 1 or nothing, got {self.round_to}"
                )
        return self

    def settings(self) -> PruningSettings:
        """The same for a problem of channels."""
        return PruningSettings(**self.model_dump(exclude={"granularity"}))

    def weight_settings(self) -> WeightSettings:
        """The same for a problem of single weights.

        Raises:
            ValueError: the criterion is one of channels.
        """
        return WeightSettings(**self.model_dump(exclude={"granularity", "round_to"}))


#: defaults of a spec that removes single weights, where they differ from those for channels
_SINGLE_WEIGHTS = {"round_to": 1, "max_ratio": 0.98, "criterion": "obs"}


class Storage(_Part):
    """How a network with single weights removed is stored; see `amc_env.storage.StorageSettings`."""

    format: Literal["eie"] = "eie"
    elements: Count = 1
    codebook: Codes | None = None

    def settings(self) -> StorageSettings:
        """The same for the problem."""
        return StorageSettings(**self.model_dump())


class ShortFinetune(_Part):
    """Training after each repair; see `amc_env.settings.ShortFineTuning`."""

    steps: int = Field(default=0, ge=0)
    learning_rate: float = Field(default=0.01, gt=0)
    batch: int = Field(default=128, ge=2)


class Evaluation(_Part):
    """How a pruned network is evaluated; see `amc_env.settings.EvaluationSettings`.

    Attributes:
        objective: a name as of `amc_env.objectives`, or "module:function" of the user's own.
        folder: where that module is looked for first; by default the folder of the spec.
    """

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


class Latency(_Part):
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


class Finetune(_Part):
    """Training of the winners when all trials are finished, all by one recipe.

    The recipe is that of `amc_env.training.recipe.FineTuneSettings`, with the keys of that class. Beside it:

    Attributes:
        images: of the training images, how many; by default all, or where a data set has no training images all that
            are in neither search nor test split.
        per: "agent": the best policy of each agent on the search split; "trial": that of each trial.
        dense: train the dense network by the same recipe too, to tell what it gains by the training alone.
        threads: by default as many as there are CPUs. Another number changes the last digits.
    """

    epochs: Count | None = None
    steps: Count | None = None
    batch: int = Field(default=128, ge=2)
    learning_rate: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Schedule = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    distillation: float = Field(default=0.0, ge=0, le=1)
    temperature: float = Field(default=4.0, gt=0)
    crop_padding: int | None = Field(default=None, ge=0)
    flip: bool | None = None
    seed: Seed = 0
    images: Count | None = None
    per: Literal["agent", "trial"] = "agent"
    dense: bool = False
    threads: Count | None = None

    @model_validator(mode="after")
    def _usable(self) -> Finetune:
        self.settings()
        return self

    def settings(self) -> FineTuneSettings:
        """The recipe.

        Raises:
            ValueError: the values do not go together.
        """
        return FineTuneSettings(**self.model_dump(exclude={"images", "per", "dense", "threads"}))


class Resources(_Part):
    """What a job may use; it changes how long a job takes, and `threads_per_trial` perhaps the last digits.

    Attributes:
        trials_in_parallel: as many as there are CPUs for unless told.
        threads_per_trial: of each evaluation.
        evaluations_in_parallel: how many evaluations of one trial run at once, each in a process of its own, where the
            agent asks for several (`evaluates_many`); the results are the same.
        max_failures: how often a trial or an evaluation whose process died (killed, out of memory) is started again.
    """

    trials_in_parallel: Count | None = None
    threads_per_trial: Count = 1
    evaluations_in_parallel: Count = 1
    max_failures: int = Field(default=2, ge=0)

    def evaluations_at_once(self, agent: Agent) -> int:
        """How many evaluations of a trial of this agent run at once."""
        return self.evaluations_in_parallel if agent.evaluates_many else 1


class Spec(_Part):
    """A whole job. `spec_id` is the SHA-256 of its canonical JSON.

    Attributes:
        budget: limits by cost; beside `latency_ms` perhaps `table`, the file of a latency table (without it, the job
            builds one).
        storage: only for single weights: how the network is stored, which `size` counts.
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
        if pruning.get("granularity") != "fine_grained":
            return raw
        return raw | {"pruning": _SINGLE_WEIGHTS | pruning, "evaluation": {"fidelity": "prefix"} | evaluation}

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
    def _fits_granularity(self) -> Spec:
        if self.pruning.granularity == "channel":
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


def nearest(name: str, known: Any) -> str:
    """A hint for people: "; did you mean 'seeds'?", or nothing if no known name is near."""
    close = difflib.get_close_matches(name, [str(entry) for entry in known], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
