"""From a spec to the live problem: network, weights, data. The same spec builds the same problem in every process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from torch import nn

from amc_env import zoo
from amc_env.datasets import SplitSizes, load_splits, load_training
from amc_env.evaluation import NetworkProblem
from amc_env.fine_grained import WeightProblem
from amc_env.image_problem import ImageProblem
from amc_env.problem import PruningProblem, Score, Widths
from amc_env.pruning.calibration import OnProgress
from amc_env.splits import DataSplits, Preprocessing, Split
from amc_env.toy import ToyProblem
from amc_env.training.finetune import check_trainable
from amc_env.training.recipe import FineTuneSettings
from hw.latency_table import LatencyTable
from hw.sparse.latency import SparseLatencyTable
from search.spec_inputs import (
    Architecture,
    CifarResnetArchitecture,
    Data,
    Digits,
    LenetArchitecture,
    MobileNetV1Architecture,
    Network,
    TextClassifier,
    TorchvisionArchitecture,
    Toy,
    UserFunction,
)
from search.spec_models import Spec, Storage


class SlowToyProblem(ToyProblem):
    """The toy problem, each evaluation of which takes a while."""

    seconds_per_evaluation = 0.0

    def score(self, widths: Widths) -> Score:
        time.sleep(self.seconds_per_evaluation)
        return super().score(widths)


def load_data(spec: Spec) -> DataSplits | None:
    """The spec's images; None for the toy problem.

    Raises:
        ValueError: the data are not as the spec says.
        OSError: there are none.
    """
    data = spec.data
    if data is None:
        return None
    return splits_of(data)


def splits_of(data: Data) -> DataSplits:
    """The splits of a spec's section `data`. Raises as `load_data`."""
    preprocessing = data.preprocessing
    normalisation = None if preprocessing is None else Preprocessing(**preprocessing.model_dump())
    return load_splits(data.kind, _sizes(data), normalisation, **_options(data))


def load_training_images(spec: Spec) -> Split | None:
    """The images on which the spec's winners are fine-tuned; None if they are not.

    Raises:
        ValueError: the data are not as the spec says, or have no labels to train by.
        OSError: there are none.
    """
    if spec.finetune is None or spec.data is None:
        return None
    return training_of(spec.data, spec.finetune.images, spec.finetune.settings(), "finetune")


def training_of(data: Data, images: int | None, recipe: FineTuneSettings, section: str) -> Split:
    """So many training images, or all, for this section of a spec. Raises as `load_training_images`."""
    training = load_training(data.kind, _sizes(data), images, **_options(data), asked_by=section)
    check_trainable(training, recipe)
    return training


def _sizes(data: Data) -> SplitSizes:
    return SplitSizes(data.calibration_images, data.search_images, data.test_images, data.seed)


def _options(data: Data) -> dict[str, Any]:
    """Where the images are, as far as the kind has such options."""
    names = ("path", "labels", "resize", "crop", "download")
    return {name: getattr(data, name) for name in names if hasattr(data, name)}


def build_problem(
    spec: Spec,
    data: DataSplits | None = None,
    table: LatencyTable | SparseLatencyTable | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> PruningProblem:
    """The problem that the spec states, on these data; they are loaded if not given.

    Args:
        spec: what to build.
        data: as of `load_data`.
        table: for a budget on latency, of single weights a sparse one; without it that budget is left out.
        on_progress: called with what is done and all of it, where building takes long: the order of single weights.

    Raises:
        InfeasibleBudgetError: no policy meets a budget.
        MissingEntryError: the table does not know the network.
        ValueError: the network cannot be built, traced or pruned, or the weights do not fit.
        OSError: there are no such weights or data.
    """
    if isinstance(spec.network, Toy):
        return _toy(spec, spec.network)
    if data is None:
        data = load_data(spec)
    if data is None:
        raise ValueError(f"network {spec.network.kind!r} needs data")
    if spec.pruning.of_weights:
        return WeightProblem(
            _network(spec),
            data,
            budget={cost: limit for cost, limit in spec.limits.items() if table or cost != SparseLatencyTable.name},
            reward=spec.reward,
            settings=spec.pruning.weight_settings(),
            storage=(spec.storage or Storage()).settings(),
            evaluation=spec.evaluation.settings(),
            latency=table if isinstance(table, SparseLatencyTable) else None,
            on_progress=on_progress,
        )
    return NetworkProblem(
        _network(spec),
        data,
        budget={cost: limit for cost, limit in spec.limits.items() if table or cost != LatencyTable.name},
        reward=spec.reward,
        settings=spec.pruning.settings(),
        evaluation=spec.evaluation.settings(),
        cost_models=[table] if table else [],
        feature_cost=spec.feature_cost if table else "macs",
    )


def calibrate(problem: PruningProblem, spec: Spec, on_progress: OnProgress) -> None:
    """Measure what the trials would each measure first; they then find it in the cache."""
    if isinstance(problem, ImageProblem):
        problem.calibrate(on_progress, error_curves=any(agent.needs_error_curves for agent in spec.agents))


def measure_test(problem: PruningProblem, widths: Widths) -> Score:
    """The score on the test split; the toy problem has one score only."""
    return problem.measure(widths, "test") if isinstance(problem, ImageProblem) else problem.score(widths)


def _toy(spec: Spec, toy: Toy) -> ToyProblem:
    problem = SlowToyProblem(
        toy.decisions, channels=toy.channels, budget=spec.limits, reward=spec.reward, seed=toy.seed
    )
    problem.seconds_per_evaluation = toy.seconds_per_evaluation
    return problem


def build_untrained(spec: Spec) -> nn.Module:
    """The network of the spec without its weights (a user's function may return a trained one).

    Raises:
        ValueError: there is no such network.
    """
    return build_architecture(spec.network)


def build_architecture(network: Architecture | Network) -> nn.Module:
    """An untrained network (a user's function may return a trained one).

    Raises:
        ValueError: there is no such network.
    """
    match network:
        case CifarResnetArchitecture(depth=depth, classes=classes):
            return zoo.cifar_resnet(depth, classes)
        case LenetArchitecture(name=name, classes=classes):
            return zoo.lenet(name, classes)
        case MobileNetV1Architecture(width=width, classes=classes):
            return zoo.mobilenet_v1(width, classes)
        case TorchvisionArchitecture(name=name, classes=classes):
            return zoo.torchvision_network(name, classes)
        case UserFunction(target=target, folder=folder):
            return zoo.user_network(target, folder)
        case Digits():
            return zoo.digits_network()
        case TextClassifier():
            return zoo.TextClassifier()
        case Toy():
            raise ValueError("the toy problem has no network")


def _network(spec: Spec) -> nn.Module:
    """The network with its weights."""
    network = build_untrained(spec)
    weights: Path | None = getattr(spec.network, "weights", None)
    match spec.network:
        case Digits():
            weights = zoo.digits_weights()
        case TextClassifier():
            weights = zoo.text_classifier_weights()
    if weights is not None:
        zoo.load_weights(network, weights)
    return network
