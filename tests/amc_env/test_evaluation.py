"""The pruning problem of a real trained network: digits, trained on first use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from amc_env import InfeasibleBudgetError, PruningEnv, zoo
from amc_env.datasets import SplitSizes, load_splits
from amc_env.evaluation import NetworkProblem
from amc_env.problem import Widths
from amc_env.pruning.batchnorm import recalibrate_batchnorm
from amc_env.pruning.criteria import importance, removal_order
from amc_env.pruning.surgery import apply_plan
from amc_env.pruning.trace import trace_channels
from amc_env.settings import EvaluationSettings, Fidelity, PruningSettings, find_device
from amc_env.splits import DataSplits
from amc_env.weights import weights_digest


@pytest.fixture(scope="module")
def data() -> DataSplits:
    return load_splits("digits", SplitSizes(calibration=200, search=300, test=290), None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.digits_weights(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def network(weights: Path) -> nn.Module:
    network = zoo.digits_network()
    zoo.load_weights(network, weights)
    return network


def test_the_dense_policy_is_the_network_itself(network: nn.Module, data: DataSplits) -> None:
    problem = NetworkProblem(network, data, budget={}, reward="error_macs")
    images = data.preprocessing(data.search.images)
    with torch.no_grad():
        expected = float((network(images).argmax(1).numpy() == data.search.labels).mean())
    assert problem.evaluate_widths(problem.dense_widths).accuracy == pytest.approx(expected)
    assert expected > 0.95


def test_counted_costs_are_those_of_the_pruned_network(network: nn.Module, data: DataSplits) -> None:
    problem = NetworkProblem(network, data, budget={"macs": "50%"}, settings=PruningSettings(round_to=2))
    rng = np.random.default_rng(0)
    for _ in range(5):
        widths = problem.widths(problem.fit_to_budget(rng.uniform(0, 0.8, size=len(problem.decisions))))
        pruned = problem.prune(widths)
        costs = problem.costs(widths)
        assert costs["size"] == sum(parameter.numel() * 4 for parameter in pruned.parameters())
        again = trace_channels(pruned, data.preprocessing(data.search.images[:2]))
        assert costs["macs"] == sum(layer.macs for layer in again.layers)
        assert costs["macs"] <= problem.budgets[0].limit


def test_recalibration_repairs_what_pruning_breaks(network: nn.Module, data: DataSplits) -> None:
    accuracies = {}
    for recalibrate in (False, True):
        evaluation = EvaluationSettings(fidelity="magnitude", recalibrate_batchnorm=recalibrate)
        settings = PruningSettings(round_to=2, criterion="l1")
        problem = NetworkProblem(network, data, budget={"macs": "40%"}, settings=settings, evaluation=evaluation)
        plan = problem.fit_to_budget(np.full(len(problem.decisions), 0.5))
        accuracies[recalibrate] = problem.measure(problem.widths(plan), "search").accuracy or 0.0
    assert accuracies[True] > accuracies[False] + 0.1


def test_recalibrated_statistics_are_the_averages_over_the_batches() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3)).eval()
    batches = list(torch.randn(4, 5, 1, 6, 6, generator=torch.Generator().manual_seed(0)))
    features = [network[0](batch).detach() for batch in batches]
    recalibrate_batchnorm(network, batches)
    mean = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
    variance = torch.stack([f.transpose(0, 1).flatten(1).var(1) for f in features]).mean(0)
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, variance)
    assert (norm.training, norm.momentum) == (False, 0.1)


def test_two_problems_share_nothing_and_repeat_exactly(network: nn.Module, data: DataSplits) -> None:
    first = NetworkProblem(network, data, budget={"macs": "50%"}, settings=PruningSettings(round_to=2))
    second = NetworkProblem(network, data, budget={"macs": "50%"}, settings=PruningSettings(round_to=2))
    plan = first.fit_to_budget(np.full(len(first.decisions), 0.3))
    assert first.evaluate(plan) == second.evaluate(plan)
    assert len(first.memo) == 1
    assert first.evaluate(plan) == first.evaluate(plan)
    assert first.memo is not second.memo


def test_plays_an_episode(network: nn.Module, data: DataSplits) -> None:
    problem = NetworkProblem(network, data, budget={"macs": "50%", "size": "60%"}, settings=PruningSettings(round_to=4))
    env = PruningEnv(problem, constraint="clamp")
    env.reset(seed=0)
    env.action_space.seed(0)
    terminated = False
    while not terminated:
        observation, reward, terminated, _, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
    assert info["feasible"]
    assert -1 <= float(reward) <= 0


@pytest.mark.parametrize("round_to", [1, 4, 8])
def test_channel_counts_are_multiples_and_never_zero(network: nn.Module, data: DataSplits, round_to: int) -> None:
    settings = PruningSettings(round_to=round_to, max_ratio=0.99)
    problem = NetworkProblem(network, data, budget={}, reward="error_macs", settings=settings)
    for decision in problem.decisions:
        assert decision.choices[0] >= 1
        assert all(choice % round_to == 0 for choice in decision.choices[:-1])
        assert decision.choices[-1] == decision.size


def test_groups_can_be_kept_whole(network: nn.Module, data: DataSplits) -> None:
    settings = PruningSettings(round_to=1, keep=("conv1", "separable*"))
    problem = NetworkProblem(network, data, budget={"macs": "80%"}, settings=settings)
    assert problem.names == ("block1.conv1", "block2.conv1")
    pruned = problem.prune(problem.smallest_widths)
    assert pruned.get_submodule("conv1").weight.shape == network.get_submodule("conv1").weight.shape
    with pytest.raises(ValueError, match=r"keep: pattern 'layer9' matches none of the groups conv1, block1.conv1"):
        NetworkProblem(network, data, budget={}, reward="error_macs", settings=PruningSettings(keep=("layer9",)))


def test_refuses_settings_that_leave_nothing_to_decide(network: nn.Module, data: DataSplits) -> None:
    with pytest.raises(ValueError, match="no channels of the network can be removed with round_to 64"):
        NetworkProblem(network, data, budget={}, reward="error_macs", settings=PruningSettings(round_to=64))
    with pytest.raises(ValueError, match="round_to: expected at least 1, got 0"):
        PruningSettings(round_to=0)
    with pytest.raises(ValueError, match=r"max_ratio: expected a fraction in \(0, 1\), got 1.0"):
        PruningSettings(max_ratio=1.0)


def test_refuses_a_budget_out_of_reach_naming_the_smallest_cost(network: nn.Module, data: DataSplits) -> None:
    with pytest.raises(InfeasibleBudgetError, match=r"budget macs <= .* cannot be met: the smallest reachable macs is"):
        NetworkProblem(network, data, budget={"macs": "1%"}, settings=PruningSettings(round_to=8))


def test_magnitudes_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Flatten(), nn.Linear(3, 2)).eval()
    conv = network[0]
    assert isinstance(conv, nn.Conv2d)
    conv.weight.data = torch.tensor([-1.0, 3.0, 2.0]).reshape(3, 1, 1, 1)
    graph = trace_channels(network, torch.zeros(2, 1, 1, 1))
    assert importance(network, graph, "l1").tolist() == [1, 3, 2]
    assert importance(network, graph, "l2").tolist() == [1, 9, 4]
    reads = network.get_parameter("2.weight").detach().double().abs().sum(0)
    assert importance(network, graph, "input_l1").tolist() == reads.tolist()
    assert [order.tolist() for order in removal_order(network, graph)] == [[1, 2, 0]]
    with pytest.raises(ValueError, match=r"criterion: expected one of .*, got 'tailor'; did you mean 'taylor'\?"):
        importance(network, graph, "tailor")  # type: ignore[arg-type]


def test_resnet56_counts_as_published() -> None:
    """Dense ResNet-56: 0.85 M parameters ([ResNet] table 6) and 125 M MACs."""
    graph = trace_channels(zoo.cifar_resnet(56).eval(), torch.zeros(2, 3, 32, 32))
    assert sum(layer.macs for layer in graph.layers) == 125_485_696
    assert sum(layer.weights for layer in graph.layers) == 853_018


FIDELITIES: tuple[Fidelity, ...] = ("magnitude", "prefix", "sequential")


def half(network: nn.Module, data: DataSplits, **evaluation: Any) -> NetworkProblem:
    settings = PruningSettings(round_to=2, criterion=evaluation.pop("criterion", "l1"))
    evaluated = EvaluationSettings(**{"images": 60, "rows": 500, **evaluation})
    return NetworkProblem(network, data, budget={"macs": "50%"}, settings=settings, evaluation=evaluated)


def some_plans(problem: NetworkProblem, count: int) -> list[Widths]:
    rng = np.random.default_rng(0)
    size = len(problem.decisions)
    return [problem.widths(problem.fit_to_budget(rng.uniform(0.0, 0.8, size))) for _ in range(count)]


@pytest.mark.parametrize("criterion", ["l1", "energy", "obs"])
def test_interleaved_problems_score_as_alone(criterion: str, network: nn.Module, data: DataSplits) -> None:
    alone = {fidelity: half(network, data, fidelity=fidelity, criterion=criterion) for fidelity in FIDELITIES}
    together = {fidelity: half(network, data, fidelity=fidelity, criterion=criterion) for fidelity in FIDELITIES}
    plans = some_plans(alone["prefix"], 4)
    expected = {fidelity: [problem.evaluate_widths(plan) for plan in plans] for fidelity, problem in alone.items()}
    for index, plan in enumerate(plans):
        for fidelity, problem in together.items():
            assert problem.evaluate_widths(plan) == expected[fidelity][index]


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_the_dense_network_is_never_changed(fidelity: Fidelity, network: nn.Module, data: DataSplits) -> None:
    before = weights_digest(network)
    problem = half(network, data, fidelity=fidelity)
    problem.prepare()
    for plan in some_plans(problem, 3):
        problem.evaluate_widths(plan)
        problem.measure(plan, "test")
        problem.prune(plan)
    assert weights_digest(network) == before
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_the_final_network_repeats_and_replays(fidelity: Fidelity, network: nn.Module, data: DataSplits) -> None:
    problem, again = half(network, data, fidelity=fidelity), half(network, data, fidelity=fidelity)
    first, plan = some_plans(problem, 2)
    problem.evaluate_widths(first)  # what was evaluated before must not matter
    pruned = problem.prune(plan)
    assert weights_digest(pruned) == weights_digest(again.prune(plan)) == weights_digest(problem.prune(plan))
    rebuilt = apply_plan(zoo.digits_network(), problem.plan(plan)).eval()
    rebuilt.load_state_dict(pruned.state_dict())
    images = data.preprocessing(data.test.images)
    with torch.no_grad():
        expected = pruned(images)
        assert torch.equal(rebuilt.to(memory_format=torch.channels_last)(images), expected)
    accuracy = float((expected.argmax(1).numpy() == data.test.labels).mean())
    assert problem.measure(plan, "test").accuracy == pytest.approx(accuracy, abs=1.01 / len(data.test))


def test_the_search_fits_on_some_images_and_the_final_network_on_all(network: nn.Module, data: DataSplits) -> None:
    few, all_of_them = (
        half(network, data, fidelity="sequential"),
        half(network, data, fidelity="sequential", images=200),
    )
    (plan,) = some_plans(few, 1)
    assert few.score(plan) != few.measure(plan, "search")
    assert all_of_them.score(plan) == all_of_them.measure(plan, "search")
    proportional = half(network, data, fidelity="sequential", images=200, rows=500 * 200 // 60)
    expected = proportional.prune(plan).state_dict()  # not quite: the final fits are in float64
    for name, tensor in few.prune(plan).state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_the_memo_scores_nothing_twice(fidelity: Fidelity, network: nn.Module, data: DataSplits) -> None:
    problem = half(network, data, fidelity=fidelity)
    plans = some_plans(problem, 3)
    first = [problem.evaluate_widths(plan) for plan in plans]
    problem.score = lambda widths: pytest.fail("scored again")  # type: ignore[method-assign]
    assert [problem.evaluate_widths(plan) for plan in plans] == first


@pytest.mark.parametrize("fidelity", FIDELITIES)
def test_bfloat16_is_close(fidelity: Fidelity, network: nn.Module, data: DataSplits) -> None:
    exact, rounded = (half(network, data, fidelity=fidelity, dtype=dtype) for dtype in ("float32", "bfloat16"))
    for plan in some_plans(exact, 3):
        one, other = exact.evaluate_widths(plan), rounded.evaluate_widths(plan)
        assert one.accuracy is not None
        assert other.accuracy == pytest.approx(one.accuracy, abs=8 / len(data.search))
        assert {parameter.dtype for parameter in rounded.prune(plan).parameters()} == {torch.float32}


def test_reconstruction_is_worth_it(network: nn.Module, data: DataSplits) -> None:
    errors = {}
    for fidelity in FIDELITIES:
        problem = half(network, data, fidelity=fidelity, images=200, objective="agreement")
        errors[fidelity] = np.mean([problem.evaluate_widths(plan).error or 0.0 for plan in some_plans(problem, 4)])
    assert errors["sequential"] < errors["prefix"] < errors["magnitude"]


def test_error_curves_fall_to_nothing(network: nn.Module, data: DataSplits) -> None:
    problem = half(network, data)
    for decision, curve in zip(problem.decisions, problem.reconstruction_errors(), strict=True):
        assert curve.shape == (len(decision.choices),)
        assert (np.diff(curve) <= 0).all()
        assert curve[-1] == 0.0


@pytest.mark.parametrize("name", ["meta", "cuda:99", "tpu"])
def test_refuses_a_device_that_is_not_there(name: str, network: nn.Module, data: DataSplits) -> None:
    with pytest.raises(ValueError, match=f"^device: expected auto, cpu, or a cuda device that is there, got '{name}' "):
        half(network, data, device=name)
    assert find_device("cpu").type == "cpu"


class Kernel(nn.Module):
    """A convolution whose weights have another name."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 1, 3, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(images, self.kernel)


def test_refuses_to_fit_weights_of_another_name(data: DataSplits) -> None:
    network = nn.Sequential(
        Kernel(), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    )

    def build(fidelity: Fidelity) -> NetworkProblem:
        settings, evaluation = PruningSettings(round_to=1), EvaluationSettings(fidelity=fidelity)
        return NetworkProblem(network, data, budget={"macs": "50%"}, settings=settings, evaluation=evaluation)

    with pytest.raises(
        ValueError, match=r"layer '0\.kernel': a fit expects its weights in a module's parameter 'weight'"
    ):
        build("prefix")
    with pytest.raises(
        ValueError, match=r"layer '0\.kernel': a fit expects its weights in a module's parameter 'weight'"
    ):
        build("sequential")
    magnitude = build("magnitude")
    assert magnitude.evaluate_widths(magnitude.smallest_widths).feasible
