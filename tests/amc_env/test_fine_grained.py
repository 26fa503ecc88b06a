"""The problem of single weights on the digits network: costs, patterns, evaluations, and agents on it."""

from __future__ import annotations

import copy
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agents.base import Agent
from agents.ddpg import DDPG
from agents.local_search import LocalSearch
from agents.netadapt import NetAdapt
from agents.random_search import RandomSearch
from agents.reconstruction import Reconstruction
from agents.sensitivity import Sensitivity
from agents.surrogate import SurrogateSearch
from agents.uniform import Uniform
from amc_env import InfeasibleBudgetError, PruningEnv, zoo
from amc_env.datasets import SplitSizes, load_splits
from amc_env.fine_grained import WeightProblem
from amc_env.problem import Widths
from amc_env.pruning.batchnorm import correct_statistics
from amc_env.settings import EvaluationSettings, ShortFineTuning, WeightSettings
from amc_env.splits import DataSplits
from amc_env.storage import StorageSettings, load_compressed, save_compressed
from amc_env.weights import weights_digest

SMALL = WeightSettings(levels=8)


@pytest.fixture(scope="module")
def data() -> DataSplits:
    return load_splits("digits", SplitSizes(calibration=200, search=300, test=290), None)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, _own_cache: None) -> None:
    """What is computed for one of these problems serves the others."""
    monkeypatch.setenv("AMC_CACHE", str(cache))


def digits(cache: Path) -> nn.Module:
    network = zoo.digits_network()
    zoo.load_weights(network, zoo.digits_weights(cache))
    return network


@pytest.fixture
def network(cache: Path) -> nn.Module:
    return digits(cache)


def make(
    network: nn.Module, data: DataSplits, budget: dict[str, float | str] | None = None, **kinds: Any
) -> WeightProblem:
    evaluation = EvaluationSettings(**{"fidelity": "prefix", **kinds.pop("evaluation", {})})
    storage = StorageSettings(codebook=kinds.pop("codebook", None))
    options = {"settings": SMALL, **kinds}
    return WeightProblem(
        network, data, budget=budget or {"size": "20%"}, storage=storage, evaluation=evaluation, **options
    )


def some_plan(problem: WeightProblem, seed: int = 0) -> Widths:
    ratios = np.random.default_rng(seed).uniform(0.3, 0.98, len(problem.decisions))
    return problem.widths(problem.fit_to_budget(ratios))


def test_a_decision_is_a_layer_that_multiplies(network: nn.Module, data: DataSplits) -> None:
    problem = make(network, data)
    weights = {name.removesuffix(".weight"): p.numel() for name, p in network.named_parameters() if p.ndim > 1}
    assert dict(zip(problem.names, problem.dense_widths, strict=True)) == weights
    for decision in problem.decisions:
        assert decision.choices[0] == max(1, int(np.ceil(decision.size * 0.02 - 1e-9)))
        steps = np.diff(np.log(decision.choices[:-1]))
        assert steps.max() < 2 * np.log(50) / 7  # denser where few stay


def test_the_dense_policy_is_the_network_itself(network: nn.Module, data: DataSplits) -> None:
    problem = make(network, data, codebook=16)
    dense = problem.prune(problem.dense_widths)
    assert weights_digest(dense) == weights_digest(network)
    assert problem.dense_costs["size"] == sum(4 * parameter.numel() for parameter in network.parameters())
    assert problem.dense_costs["macs"] == sum(layer.macs for layer in problem.layers)


@pytest.mark.parametrize("codebook", [None, 16, 256])
def test_costs_are_those_of_what_is_stored_and_multiplied(
    codebook: int | None, network: nn.Module, data: DataSplits, tmp_path: Path
) -> None:
    problem = make(network, data, {"macs": "30%"}, codebook=codebook)
    for seed in range(3):
        widths = some_plan(problem, seed)
        costs, pruned = problem.costs(widths), problem.prune(widths)
        folder = tmp_path / str(seed)
        save_compressed(pruned, list(problem.masks(widths)), problem.storage, folder)
        total = 0
        for path in folder.glob("*.npz"):
            with np.load(path) as arrays:
                total += sum(array.nbytes for name, array in arrays.items() if name != "size")
        assert costs["size"] == total
        assert costs["size"] == problem.compression(pruned, widths)[1 if codebook is None else 2]["bytes"]
        macs = 0
        for layer in problem.layers:
            if layer.op in ("conv", "linear"):
                nonzero = torch.count_nonzero(pruned.get_parameter(f"{layer.name}.weight"))
                macs += int(nonzero) * layer.output_size[0] * layer.output_size[1]
        assert costs["macs"] == macs


def test_costs_never_fall_when_more_weights_stay(network: nn.Module, data: DataSplits) -> None:
    for codebook in (None, 16):
        problem = make(network, data, codebook=codebook)
        for index, decision in enumerate(problem.decisions):
            plans = [
                (*problem.smallest_widths[:index], kept, *problem.smallest_widths[index + 1 :])
                for kept in decision.choices
            ]
            for name in ("macs", "size"):
                assert all(a < b for a, b in itertools.pairwise(problem.cost(name, plan) for plan in plans))


@pytest.mark.parametrize("criterion", ["l1", "obs"])
def test_patterns_are_nested(criterion: str, network: nn.Module, data: DataSplits) -> None:
    problem = make(network, data, settings=WeightSettings(levels=8, criterion=criterion))  # type: ignore[arg-type]
    wider = problem.masks(tuple(decision.choices[-2] for decision in problem.decisions))
    narrower = problem.masks(problem.smallest_widths)
    for name, mask in narrower.items():
        assert (mask <= wider[name]).all()
        assert mask.shape == network.get_parameter(f"{name}.weight").shape


def test_the_fit_and_the_order_are_worth_it(network: nn.Module, data: DataSplits) -> None:
    """At the same widths: fitted weights in the order of OBS lose less than the largest weights as they are."""
    errors = {}
    for criterion, fidelity in (("l1", "magnitude"), ("obs", "prefix")):
        settings = WeightSettings(levels=8, criterion=criterion)  # type: ignore[arg-type]
        problem = make(network, data, settings=settings, evaluation={"fidelity": fidelity})
        widths = tuple(decision.kept(0.8) for decision in problem.decisions)
        errors[fidelity] = problem.measure(widths, "search").error
    assert errors["prefix"] < errors["magnitude"] - 0.05


def test_the_stored_network_scores_as_the_evaluation_said(network: nn.Module, data: DataSplits, tmp_path: Path) -> None:
    problem = make(network, data, codebook=16)
    widths = some_plan(problem)
    evaluation = problem.evaluate_widths(widths)
    save_compressed(problem.prune(widths), list(problem.masks(widths)), problem.storage, tmp_path / "compressed")
    loaded = zoo.digits_network()
    load_compressed(loaded, tmp_path / "compressed")
    assert problem.measure_network(loaded, "search").error == evaluation.error


def test_two_problems_repeat_exactly(cache: Path, data: DataSplits) -> None:
    first, second = (make(digits(cache), data, codebook=16) for _ in range(2))
    widths = some_plan(first)
    assert first.evaluate_widths(widths) == second.evaluate_widths(widths)
    assert weights_digest(first.prune(widths)) == weights_digest(second.prune(widths))


def test_error_curves_fall_to_zero(network: nn.Module, data: DataSplits) -> None:
    problem = make(network, data)
    for curve, decision in zip(problem.reconstruction_errors(), problem.decisions, strict=True):
        assert curve.shape == (len(decision.choices),)
        assert (np.diff(curve) < 0).all()
        assert curve[-1] == 0.0


@pytest.mark.parametrize(
    "training", [{"finetune": ShortFineTuning(steps=8, batch=20)}, {"block_epochs": 2}], ids=["short", "blocks"]
)
@pytest.mark.parametrize("codebook", [None, 16])
def test_training_keeps_zeros_and_shared_values(
    codebook: int | None, training: dict[str, Any], network: nn.Module, data: DataSplits
) -> None:
    plain, trained = (make(network, data, codebook=codebook, evaluation=evaluation) for evaluation in ({}, training))
    widths = some_plan(plain)
    if "block_epochs" in training:
        assert plain.evaluate_widths(widths).error == trained.evaluate_widths(widths).error
    before, after = plain.prune(widths), trained.prune(widths)
    for name in plain.masks(widths):
        weights = [one.get_parameter(f"{name}.weight").detach() for one in (before, after)]
        assert torch.equal(weights[0] != 0, weights[1] != 0)
        assert torch.equal(*weights) == ("block_epochs" in training and name in ("conv1", "linear"))  # of no block
        if codebook is not None:
            values = [np.unique(weight[weight != 0].numpy()) for weight in weights]
            assert 1 <= len(values[1]) <= len(values[0])


@pytest.mark.parametrize(
    "agent", [Uniform(), Reconstruction(), LocalSearch(), SurrogateSearch(), RandomSearch(), DDPG()]
)
def test_agents_work_on_single_weights(agent: Agent, network: nn.Module, data: DataSplits) -> None:
    """They report what they evaluate, the best of it is feasible, and the same seed gives the same."""
    histories = []
    for _ in range(2):
        problem = make(network, data, codebook=16)
        found: list[Any] = []
        best = agent.search(problem, max_evaluations=4, seed=0, on_evaluation=found.append)
        assert best is not None
        assert best.feasible
        assert best.reward == max(evaluation.reward for evaluation in found)
        assert best == problem.evaluate_widths(best.widths)
        histories.append([evaluation.widths for evaluation in found])
    assert histories[0] == histories[1]


@pytest.mark.parametrize("agent", [NetAdapt(), Sensitivity()])
def test_agents_that_probe_work_on_single_weights(agent: Agent, network: nn.Module, data: DataSplits) -> None:
    keep = tuple(name for name in make(network, data).names if name not in ("block2.conv1", "block2.conv2"))
    problem = make(network, data, {"size": "70%"}, settings=WeightSettings(levels=8, keep=keep))
    best = agent.search(problem, max_evaluations=10, seed=0, on_evaluation=lambda _: None)
    assert best is not None
    assert best.feasible


def test_plays_an_episode(network: nn.Module, data: DataSplits) -> None:
    env = PruningEnv(make(network, data, {"size": "20%", "macs": "30%"}), constraint="clamp")
    env.reset(seed=0)
    env.action_space.seed(0)
    terminated = False
    while not terminated:
        observation, reward, terminated, _, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
    assert info["feasible"]
    assert -1 <= float(reward) <= 0


def test_layers_may_stay_whole(network: nn.Module, data: DataSplits) -> None:
    problem = make(network, data, {"size": "50%"}, settings=WeightSettings(levels=8, keep=("conv1", "separable*")))
    assert not any(name == "conv1" or name.startswith("separable") for name in problem.names)
    pruned = problem.prune(problem.smallest_widths)
    assert torch.equal(pruned.get_parameter("conv1.weight"), network.get_parameter("conv1.weight"))
    with pytest.raises(ValueError, match=r"keep: pattern 'layer9' matches none of the layers conv1, block1\.conv1"):
        make(network, data, settings=WeightSettings(keep=("layer9",)))
    with pytest.raises(ValueError, match=r"keep: \['\*'\] keeps all layers whole; keep less"):
        make(network, data, settings=WeightSettings(keep=("*",)))


def test_what_does_not_apply_is_refused(network: nn.Module, data: DataSplits) -> None:
    with pytest.raises(ValueError, match="fidelity: sequential fits layers that lose channels; for single weights"):
        make(network, data, evaluation={"fidelity": "sequential"})
    with pytest.raises(ValueError, match="budget: no decision changes activations; limit one of macs, size"):
        make(network, data, {"activations": "50%"})
    with pytest.raises(InfeasibleBudgetError):
        make(network, data, {"size": "1%"})
    with pytest.raises(ValueError, match="criterion: energy is of channels, by the layers that read them; for weig"):
        WeightSettings(criterion="energy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="levels: expected at least 2, got 1"):
        WeightSettings(levels=1)
    with pytest.raises(ValueError, match=r"max_ratio: expected a fraction in \(0, 1\), got 1.0"):
        WeightSettings(max_ratio=1.0)


def test_zeros_of_the_dense_network_are_no_weights_to_keep(network: nn.Module, data: DataSplits) -> None:
    with torch.no_grad():
        network.get_parameter("linear.weight")[:, ::2] = 0.0
    problem = make(network, data)
    decision = problem.decisions[problem.names.index("linear")]
    assert decision.choices[-1] == decision.size
    assert decision.choices[-2] <= decision.size // 2


def test_a_layer_sparser_than_may_be_is_no_decision(network: nn.Module, data: DataSplits) -> None:
    names = make(network, data).names
    with torch.no_grad():
        network.get_parameter("linear.weight").flatten()[3:] = 0.0
    problem = make(network, data)
    assert problem.names == tuple(name for name in names if name != "linear")
    problem.calibrate(error_curves=True)
    assert len(problem.reconstruction_errors()) == len(problem.decisions)
    widths = some_plan(problem)
    pruned = problem.prune(widths)
    assert torch.equal(pruned.get_parameter("linear.weight"), network.get_parameter("linear.weight"))
    stages = problem.compression(pruned, widths)
    assert problem.costs(widths)["size"] == stages[1]["bytes"]


def test_a_single_filter_is_no_decision(data: DataSplits) -> None:
    torch.manual_seed(0)
    single = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 1, 1), nn.Flatten(), nn.Linear(36, 10))
    settings = WeightSettings(granularity="filter", criterion="l1")
    problem = WeightProblem(single, data, budget={"macs": "60%"}, settings=settings, storage=StorageSettings("pattern"))
    problem.calibrate()
    assert problem.names == ("0", "4")


def test_nothing_to_remove_at_all_is_refused(data: DataSplits) -> None:
    single = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten())
    with pytest.raises(ValueError, match=r"no weights of the network can be removed to any gain with max_ratio 0\.98"):
        make(single, data, settings=WeightSettings(granularity="filter", criterion="l1"))


def test_statistics_are_corrected_by_what_pruning_changed(network: nn.Module, data: DataSplits) -> None:
    """Nothing where nothing was removed, whatever the calibration images have otherwise than those of the training."""
    problem = make(network, data)
    renewed = problem._recalibrated
    assert not torch.allclose(renewed.get_buffer("bn1.running_mean"), network.get_buffer("bn1.running_mean"), atol=1e-4)
    again = copy.deepcopy(renewed)
    correct_statistics(again, network, renewed)
    for name, buffer in network.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(again.get_buffer(name), buffer, rtol=1e-2, atol=1e-3)


def test_hard_images_are_chosen_for_single_weights_too(network: nn.Module, data: DataSplits) -> None:
    some = make(network, data, evaluation={"objective": "agreement", "hard_images": 60})
    whole = make(network, data, evaluation={"objective": "agreement"})
    equal = whole.widths(whole.fit_to_budget(whole.ratios(whole.smallest_widths) / 2))
    assert some.score(equal).error == pytest.approx(whole.score(equal).error, abs=1e-6)
    assert some.score(some.dense_widths) == whole.score(whole.dense_widths)
    assert some.measure(equal, "search") == whole.measure(equal, "search")


@pytest.mark.parametrize("granularity", ["vector", "kernel", "filter", "2x1", "n:2"])
def test_units_go_whole_and_cost_what_is_stored(
    granularity: str, network: nn.Module, data: DataSplits, tmp_path: Path
) -> None:
    keep = ("conv1", "separable*.0", "linear")
    problem = WeightProblem(
        network,
        data,
        budget={"size": "70%"},
        settings=WeightSettings(granularity=granularity, criterion="l1", keep=keep, levels=8),
        storage=StorageSettings("pattern"),
        evaluation=EvaluationSettings(fidelity="magnitude"),
    )
    pattern = problem.settings.pattern
    for decision in problem.decisions:
        shape = network.get_parameter(f"{decision.name}.weight").shape
        assert set(decision.choices) <= set(pattern.sizes(shape).tolist())
        assert len(decision.choices) >= 2
    widths = some_plan(problem)
    pruned, masks = problem.prune(widths), problem.masks(widths)
    for name, mask in masks.items():
        assert pattern.holding(mask) == mask.sum()
        dense = network.get_parameter(f"{name}.weight").detach()
        assert torch.equal(pruned.get_parameter(f"{name}.weight"), dense * torch.from_numpy(mask))
    save_compressed(pruned, list(masks), problem.storage, tmp_path / "compressed", pattern)
    stored = 0
    for path in (tmp_path / "compressed").glob("*.npz"):
        with np.load(path) as arrays:
            stored += sum(array.nbytes for name, array in arrays.items() if name != "size")
    assert problem.costs(widths)["size"] == stored


def test_layers_that_a_pattern_does_not_divide_are_named_all_at_once(network: nn.Module, data: DataSplits) -> None:
    message = (
        "pruning: layer 'conv1': 2:4: expected inputs that 4 divides, got 1 inputs; layer 'separable1.0': 2:4: "
        "expected inputs that 4 divides, got 1 inputs; layer 'separable2.0': 2:4: expected inputs that 4 divides, got "
        "1 inputs. "
        "Let such layers stay whole, by keep: [linear, conv1, separable1.0, separable2.0]; or take another pattern"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(network, data, settings=WeightSettings(granularity="2:4", keep=("linear",)))
