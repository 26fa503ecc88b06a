"""Tracing and surgery: removing channels equals masking them, on every network that is promised to work."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning
from torch import nn

from amc_env import zoo
from amc_env.evaluation import channel_map
from amc_env.pruning.batchnorm import fold_batchnorm
from amc_env.pruning.graph import ChannelGraph, IntArray
from amc_env.pruning.surgery import apply_plan, check_surgery, make_plan, mask_network, prune_network
from amc_env.pruning.trace import UntraceableNetworkError, trace_channels
from hw import MacCount, WeightSize
from tests.amc_env.pruning.small_networks import SMALL_KNOWN

TORCHVISION = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "vgg16_bn", "densenet121",
    "regnet_y_400mf", "convnext_tiny", "googlenet", "squeezenet1_1", "mnasnet1_0",
)  # fmt: skip


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, scales, shifts and statistics that make every channel of every layer count."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict(keep_vars=True).items():
        with torch.no_grad():
            if tensor.ndim > 1 and not name.endswith("layer_scale"):
                fan_in = tensor[0].numel()
                tensor.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            elif name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.2, generator=generator)
            elif tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def example(channels: int = 3, size: int = 64) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def random_units(graph: ChannelGraph, seed: int) -> list[IntArray]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(group.size)[: rng.integers(1, group.size + 1)] for group in graph.groups]


def relative_difference(network: nn.Module, graph: ChannelGraph, kept: list[IntArray], images: torch.Tensor) -> float:
    with torch.no_grad():
        masked = mask_network(network, graph, kept)(images)
        pruned = prune_network(network, graph, kept)(images)
        dense = network(images)
    assert (masked - dense).abs().max() > 1e-3 * dense.abs().max()  # what is removed does matter
    return float((pruned - masked).abs().max() / masked.abs().max())


def own_network(name: str) -> tuple[nn.Module, torch.Tensor]:
    make: dict[str, Callable[[], tuple[nn.Module, torch.Tensor]]] = {
        "cifar_resnet20": lambda: (zoo.cifar_resnet(20), example(size=32)),
        "mobilenet_v1": lambda: (zoo.mobilenet_v1(0.25), example()),
        "digits": lambda: (zoo.digits_network(), example(channels=1, size=8)),
    }
    if name.startswith("small "):
        return SMALL_KNOWN[name.removeprefix("small ")](), example(size=32)
    return make[name]() if name in make else (zoo.torchvision_network(name), example())


@pytest.mark.parametrize(
    "name",
    [*TORCHVISION, "resnext50_32x4d", "cifar_resnet20", "mobilenet_v1", "digits", *(f"small {n}" for n in SMALL_KNOWN)],
)
def test_removing_equals_masking_and_costs_are_recounted_exactly(name: str) -> None:
    network, images = own_network(name)
    randomised(network)
    graph = trace_channels(network, images)
    kept = random_units(graph, seed=2)
    assert relative_difference(network, graph, kept, images) < 1e-5
    # the costs predicted from the widths are those of a trace of the really pruned network
    pruned = prune_network(network, graph, kept)
    again = trace_channels(pruned.eval(), images)
    channels = channel_map(graph, graph.groups).channels([len(units) for units in kept])
    assert MacCount().bind(graph.layers)(*channels) == sum(layer.macs for layer in again.layers)
    size = WeightSize().bind(graph.layers)(*channels)
    assert size == 4 * sum(layer.weights for layer in again.layers)
    assert size == sum(parameter.numel() * 4 for parameter in pruned.parameters())
    assert [layer.pruned(int(i), int(o)) for layer, i, o in zip(graph.layers, *channels, strict=True)] == list(
        again.layers
    )


def outputs_of_modules(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    outputs: dict[str, torch.Tensor] = {}
    for name, module in network.named_modules():
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output.clone()}))
    with torch.no_grad():
        network(images)
    return outputs


@pytest.mark.parametrize(
    ("name", "blocks", "narrower"),
    # resnet18: 8 blocks, 4 stages, 3 shortcuts; mobilenet_v2: 19 features, of 17 their sequences with 33 convolutions,
    # and both ends; densenet121: 58 layers, 4 blocks, 3 transitions, and all
    [("resnet18", 15, 15), ("mobilenet_v2", 71, 70), ("densenet121", 66, 65), ("cifar_resnet20", 12, 12)],
)
def test_blocks_return_the_channels_that_the_graph_says(name: str, blocks: int, narrower: int) -> None:
    network, images = own_network(name)
    randomised(network)
    graph = trace_channels(network, images)
    kept = random_units(graph, seed=2)
    masked = outputs_of_modules(mask_network(network, graph, kept), images)
    pruned = outputs_of_modules(prune_network(network, graph, kept), images)
    left = graph.kept_of_blocks(kept)
    assert (len(graph.blocks), len(left)) == (blocks, narrower)
    for block in graph.blocks:
        dim, indices = left.get(block.module, (block.dim, list(range(len(block.units)))))
        expected = masked[block.module].index_select(dim, torch.tensor(indices))
        torch.testing.assert_close(pruned[block.module], expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "googlenet", "densenet121", "squeezenet1_1"])
def test_groups_are_those_of_torch_pruning(name: str) -> None:
    """An oracle: the layers whose outputs go together, where both tools decide per channel."""
    network, images = own_network(name)
    network.eval()
    graph = trace_channels(network, images)
    ours = {
        frozenset(layer.name for layer, out in zip(graph.layers, graph.outputs, strict=True)
                  if layer.op in ("conv", "linear") and group.first_unit in out)
        for group in graph.groups
    }  # fmt: skip
    oracle = torch_pruning.DependencyGraph().build_dependency(network, example_inputs=images)
    names = {module: name for name, module in network.named_modules()}
    classifier = graph.layers[-1].name if graph.layers[-1].op == "linear" else "classifier.1"
    theirs = set()
    for group in oracle.get_all_groups(ignored_layers=[network.get_submodule(classifier)]):
        theirs.add(
            frozenset(
                names[dep.target.module]
                for dep, _ in group
                if isinstance(dep.target.module, (nn.Conv2d, nn.Linear))
                and dep.handler in (torch_pruning.prune_conv_out_channels, torch_pruning.prune_linear_out_channels,
                                    torch_pruning.prune_depthwise_conv_out_channels)
            )
        )  # fmt: skip
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "shufflenet_v2_x1_0",
            r"in module 'stage2.0' \(InvertedResidual\), a reshape of .* splits or mixes the channels",
        ),
        (
            "swin_t",
            r"in module 'features.1.0.attn' \(ShiftedWindowAttention\), a reshape of .* splits or mixes the channels",
        ),
    ],
)
def test_refuses_with_the_reason_what_it_cannot_trace(name: str, reason: str) -> None:
    network = zoo.torchvision_network(name).eval()
    with pytest.raises(UntraceableNetworkError, match=reason):
        trace_channels(network, example())


class Functional(nn.Module):
    """A convolution followed by a function."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.function = function
        self.last = nn.LazyConv2d(4, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(self.function(self.conv(images))).mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x[:, :4], "a slice takes some of the channels"),
        (lambda x: x.chunk(2, 1)[0], "a split divides the channels"),
        (lambda x: x.mean(1, keepdim=True), "a reduction over the channels"),
        (lambda x: F.pad(x, (0, 0, 0, 0, 2, 2)), r"attribute channel_padding = \(2, 2\)"),
        (lambda x: x.flip(1), "operation 'flip' on channels is not supported"),
        (lambda x: x.softmax(1), "operation '_softmax' on channels is not supported"),
        (lambda x: x * torch.arange(8.0).reshape(1, 8, 1, 1), "a tensor of shape .* that is no per-channel parameter"),
        (lambda x: x.transpose(1, 2), "whose channels are not in dimension 1"),
    ],
)
def test_refuses_operations_on_channels(function: Callable[[torch.Tensor], torch.Tensor], reason: str) -> None:
    network = Functional(function).eval()
    network(example(size=6))
    with pytest.raises(UntraceableNetworkError, match=reason):
        trace_channels(network, example(size=6))


def test_refuses_code_that_counts_on_channel_numbers() -> None:
    network = Functional(lambda x: x + 0 * torch.zeros(2, 8, 1, 1).sum() if x.shape[1] == 8 else x * 2).eval()
    network(example(size=6))
    graph = trace_channels(network, example(size=6))
    with pytest.raises(UntraceableNetworkError, match="removing channels does not equal masking them"):
        check_surgery(network, graph, example(size=6))


class Shared(nn.Module):
    """One convolution called twice: its inputs and outputs are the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.shared = nn.Conv2d(8, 8, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.last = nn.Linear(8 * 36, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.shared(F.relu(self.shared(F.relu(self.stem(images))))) * self.scale
        return self.last(torch.flatten(features, 1))  # type: ignore[no-any-return]


def test_shared_layers_raw_parameters_and_flattened_features() -> None:
    network, images = randomised(Shared()), example(size=6)
    graph = trace_channels(network, images)
    assert [(group.name, group.size) for group in graph.groups] == [("stem", 8)]
    assert [layer.owns_weights for layer in graph.layers if layer.name == "shared"] == [True, False]
    assert sum(layer.weights for layer in graph.layers) == sum(p.numel() for p in network.parameters())
    assert relative_difference(network, graph, [np.array([1, 4, 6])], images) < 1e-5


def test_option_a_shortcuts_share_the_middle_channels() -> None:
    graph = trace_channels(zoo.cifar_resnet(20).eval(), example(size=32))
    sizes = {group.name: group.size for group in graph.groups}
    assert len(sizes) == 9 + 3  # the inner layer of each block, and one group per stage for what the stage adds
    assert [sizes[name] for name in ("conv1", "layer2.0.conv2", "layer3.0.conv2")] == [16, 16, 32]
    assert [graph.layers[group.layer].name for group in graph.groups] == list(sizes)


def test_a_plan_replays_from_json_on_a_fresh_network() -> None:
    network, images = randomised(zoo.cifar_resnet(20)), example(size=32)
    graph = trace_channels(network, images)
    kept = random_units(graph, seed=3)
    pruned = prune_network(network, graph, kept)
    plan = json.loads(json.dumps(make_plan(graph, kept)))
    rebuilt = apply_plan(zoo.cifar_resnet(20), plan).eval()
    rebuilt.load_state_dict(pruned.state_dict())
    with torch.no_grad():
        assert torch.equal(rebuilt(images), pruned(images))


def test_surgery_leaves_the_network_as_it_was() -> None:
    network, images = randomised(zoo.digits_network()), example(channels=1, size=8)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    graph = trace_channels(network, images)
    pruned = prune_network(network, graph, random_units(graph, seed=4))
    for parameter in pruned.parameters():
        nn.init.zeros_(parameter)
    pruned.train()(images)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network.training


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        ({"version": 2}, "expected a pruning plan of version 1, got 2"),
        (
            {"version": 1, "tensors": {"nowhere": {"0": [0]}}, "paddings": {}},
            "'nowhere', which the network does not have",
        ),
        (
            {"version": 1, "tensors": {"conv1.weight": {"0": [99]}}, "paddings": {}},
            "the plan does not fit 'conv1.weight'",
        ),
        (
            {"version": 1, "tensors": {"conv1.weight": {"7": [0]}}, "paddings": {}},
            "the plan does not fit 'conv1.weight'",
        ),
    ],
)
def test_refuses_a_plan_of_another_network(plan: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        apply_plan(zoo.digits_network(), plan)


def test_wants_the_network_in_evaluation_mode() -> None:
    with pytest.raises(ValueError, match="expected the network in evaluation mode"):
        trace_channels(zoo.digits_network().train(), example(channels=1, size=8))


@pytest.mark.parametrize(
    ("name", "norms"), [("digits", 9), ("cifar_resnet20", 19), ("mobilenet_v1", 27), ("densenet121", 59)]
)
def test_folding_batch_norms_leaves_the_function(name: str, norms: int) -> None:
    """In densenet121 a norm after a concatenation has no one convolution before it: 59 of its 121 can be folded."""
    network, images = own_network(name)
    randomised(network)
    graph = trace_channels(network, images)
    pruned = prune_network(network, graph, random_units(graph, seed=5)).eval()
    with torch.no_grad():
        expected = pruned(images)
        fold_batchnorm(pruned, graph.foldable)
        actual = pruned(images)
    assert len(graph.foldable) == norms
    assert not any(isinstance(pruned.get_submodule(norm), nn.BatchNorm2d) for _, norm in graph.foldable)
    assert (actual - expected).abs().max() < 1e-5 * expected.abs().max()


class UsedTwice(nn.Module):
    """What a batch norm sees is also used without it, or the same norm is called twice."""

    def __init__(self, *, twice: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.other = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.twice = twice

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.conv(images)
        second = self.norm(self.other(images)) if self.twice else features
        return (self.norm(features) + second).mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize("twice", [False, True])
def test_what_is_used_twice_is_not_folded(*, twice: bool) -> None:
    assert trace_channels(UsedTwice(twice=twice).eval(), example(size=4)).foldable == ()


def test_a_norm_that_keeps_no_statistics_is_not_folded() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 2, 1))
    assert trace_channels(network.eval(), example(size=4)).foldable == ()
