"""Cost models against the layers' own counts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hw import COST_MODELS, ActivationSize, LayerShape, MacCount, WeightSize
from hw.cost import SPARSE_LATENCY, UNITS
from hw.latency_table import LatencyTable
from hw.sparse.latency import SparseLatencyTable


@st.composite
def pruned_layers(draw: st.DrawFn) -> tuple[LayerShape, LayerShape]:
    """A layer and the same layer with some of its channels."""
    op = draw(st.sampled_from(["conv", "grouped", "depthwise", "linear", "norm", "scale"]))
    size = draw(st.integers(1, 9))
    channels_in, channels_out = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    kept_in, kept_out = draw(st.integers(1, channels_in)), draw(st.integers(1, channels_out))
    groups, kernel = 1, draw(st.integers(1, 3))
    if op in ("depthwise", "norm", "scale"):
        channels_out, kept_out = channels_in, kept_in
        groups = channels_in if op == "depthwise" else 1
    if op == "grouped":
        groups, kept = channels_in, kept_in
        channels_in, channels_out, kept_in, kept_out = 3 * groups, 2 * groups, 3 * kept, 2 * kept
    kind = {"grouped": "conv", "depthwise": "conv"}.get(op, op)
    kernel_size = (kernel, kernel) if kind == "conv" else (1, 1)
    bias, owns = draw(st.booleans()) and kind in ("conv", "linear"), draw(st.booleans())
    layer = LayerShape(
        "l", kind, channels_in, channels_out, kernel_size,  # type: ignore[arg-type]
        groups=groups, output_size=(size, size), bias=bias, owns_weights=owns,
    )  # fmt: skip
    return layer, layer.pruned(kept_in, kept_out)


@given(st.lists(pruned_layers(), min_size=1, max_size=5))
def test_costs_equal_the_counts_of_the_pruned_layers(layers: list[tuple[LayerShape, LayerShape]]) -> None:
    kept_in = np.array([after.in_channels for _, after in layers])
    kept_out = np.array([after.out_channels for _, after in layers])
    dense = [before for before, _ in layers]
    assert MacCount().bind(dense)(kept_in, kept_out) == sum(after.macs for _, after in layers)
    assert WeightSize().bind(dense)(kept_in, kept_out) == 4 * sum(after.weights for _, after in layers)
    assert WeightSize(2).bind(dense)(kept_in, kept_out) == 2 * sum(after.weights for _, after in layers)


def test_names_are_the_keys_that_budgets_use() -> None:
    assert [make().name for make in COST_MODELS.values()] == list(COST_MODELS) == ["macs", "size", "activations"]


def test_every_cost_of_a_budget_has_the_unit_of_its_model() -> None:
    tables = {LatencyTable.name: LatencyTable.unit, SPARSE_LATENCY: SparseLatencyTable.unit}
    assert {name: make().unit for name, make in COST_MODELS.items()} | tables == UNITS


@given(st.lists(pruned_layers(), min_size=1, max_size=5))
def test_costs_of_single_layers_add_up_to_the_whole(layers: list[tuple[LayerShape, LayerShape]]) -> None:
    dense = [before for before, _ in layers]
    kept = (np.array([layer.in_channels for layer in dense]), np.array([layer.out_channels for layer in dense]))
    for model in (MacCount(), WeightSize(), WeightSize(1)):
        assert model.layer_costs(dense).sum() == model.bind(dense)(*kept)
    assert ActivationSize().layer_costs(dense).max() == ActivationSize().bind(dense)(*kept)


def test_activations_are_the_largest_input_and_output_of_a_layer() -> None:
    """A 3x3 layer 3 -> 8 on 10x10 in stride 2 (5x5), then 8 -> 2: counted by hand, in float32."""
    layers = [
        LayerShape("a", "conv", 3, 8, (3, 3), (2, 2), (1, 1), input_size=(10, 10), output_size=(5, 5)),
        LayerShape("norm", "norm", 100, 100, input_size=(5, 5), output_size=(5, 5)),
        LayerShape("b", "conv", 8, 2, input_size=(5, 5), output_size=(5, 5)),
    ]
    cost = ActivationSize().bind(layers)
    assert cost(np.array([3, 100, 8]), np.array([8, 100, 2])) == 4 * (3 * 100 + 8 * 25)
    assert cost(np.array([1, 1, 8]), np.array([1, 1, 2])) == 4 * (8 * 25 + 2 * 25)
    assert ActivationSize(1).bind(layers)(np.array([3, 1, 4]), np.array([4, 1, 2])) == 300 + 100
