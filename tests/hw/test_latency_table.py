"""A latency table's answers against the surfaces of its layers, its correction, and its refusals."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hw.cost import ManyCost
from hw.host import Conditions, Host
from hw.latency_table import ANYTHING, Correction, Entry, LatencyTable, MissingEntryError, describe
from hw.layers import LayerShape

SIZE = (8, 8)
STEM = LayerShape("stem", "conv", 3, 16, (3, 3), (2, 2), input_size=(16, 16), output_size=SIZE, followed_by=("relu",))
CONV = LayerShape("conv", "conv", 16, 32, (3, 3), followed_by=("relu",), input_size=SIZE, output_size=SIZE)
DEPTHWISE = LayerShape("dw", "conv", 32, 32, (3, 3), groups=32, input_size=SIZE, output_size=SIZE)
HEAD = LayerShape("head", "linear", 32, 10, bias=True)
LAYERS = (STEM, CONV, DEPTHWISE, HEAD)
NORM = LayerShape("bn", "norm", 16, 16, input_size=SIZE, output_size=SIZE)
DENSE = ((3, 16, 32, 32), (16, 32, 32, 10))
SMALL = ((3, 8, 12, 12), (8, 12, 12, 10))


def entry(layer: LayerShape, kept_in: int, kept_out: int, milliseconds: float) -> Entry:
    shape = replace(layer.pruned(kept_in, kept_out), name="", owns_weights=True)
    return Entry(shape, 5, milliseconds, milliseconds, milliseconds, milliseconds)


def table_of(entries: Sequence[Entry], layers: Sequence[LayerShape] = ()) -> LatencyTable:
    return LatencyTable(Conditions(), Host(), tuple(entries), tuple(layers))


def measured(layer: LayerShape, function: Callable[[int, int], float] = lambda i, o: 1.0 + 0.01 * i * o) -> list[Entry]:
    """Entries of a layer on a grid of widths, as far as it can be pruned."""
    ins = [3] if layer is STEM else [4, 8, 16, 32]
    outs = [10] if layer is HEAD else [4, 8, 16, 32]
    return [
        entry(layer, i, o, function(i, o))
        for i in ins
        for o in outs
        if i <= layer.in_channels and o <= layer.out_channels and (layer.groups == 1 or i == o)
    ]


@functools.cache
def hand_made(seed: int | None = None, layers: tuple[LayerShape, ...] = LAYERS) -> LatencyTable:
    """A table of four layers; with a seed, of random times that rise and in part jump."""
    if seed is None:
        return table_of([entry for layer in LAYERS for entry in measured(layer)], layers)
    rng = np.random.default_rng(seed)
    entries = []
    for layer in LAYERS:
        a, b, c = rng.uniform(0.01, 1.0, 3)
        step = rng.choice([1, 8, 16])
        entries += measured(layer, lambda i, o, a=a, b=b, c=c, step=step: a + b * i + c * i * math.ceil(o / step))  # type: ignore[misc]
    return table_of(entries, layers)


@functools.cache
def corrected(table: LatencyTable) -> LatencyTable:
    return replace(table, correction=Correction(scale=1.25, offset=0.5, networks=9))


def plain_sum(table: LatencyTable, kept_in: Sequence[int], kept_out: Sequence[int]) -> float:
    """What the table should answer, layer by layer."""
    rows = zip(LAYERS, kept_in, kept_out, strict=True)
    return sum(table.surface(layer)(ins, outs) for layer, ins, outs in rows)


@st.composite
def widths(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels of a member of the family, within what is measured."""
    first, second = draw(st.integers(4, 16)), draw(st.integers(4, 32))
    return (3, first, second, second), (first, second, second, 10)


@settings(max_examples=30)
@given(st.none() | st.integers(0, 2**32 - 1), widths())
def test_a_network_costs_the_sum_of_its_layers(seed: int | None, kept: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    table = hand_made(seed)
    expected = plain_sum(table, *kept)
    assert table.bind(LAYERS)(np.array(kept[0]), np.array(kept[1])) == pytest.approx(expected, rel=1e-9)
    assert table.predict(*kept) == pytest.approx(expected, rel=1e-9)


def test_a_network_by_hand() -> None:
    # 1 + 0.01 * in * out each: 1.24 + 1.96 + (between 8 -> 1.64 and 16 -> 3.56) + 2.2, widths halfway between knots
    assert hand_made().predict(*SMALL) == pytest.approx(1.24 + 1.96 + 2.6 + 2.2)


def test_norms_run_with_the_layer_before_them() -> None:
    table = hand_made()
    cost = table.bind((STEM, NORM, CONV, DEPTHWISE, HEAD))
    assert cost(np.array([3, 8, 8, 12, 12]), np.array([8, 8, 12, 12, 10])) == pytest.approx(table.predict(*SMALL))


def test_asking_changes_neither_the_widths_nor_the_answer() -> None:
    cost = hand_made().bind(LAYERS)
    kept_in, kept_out = np.array(SMALL[0]), np.array(SMALL[1])
    assert cost(kept_in, kept_out) == cost(kept_in, kept_out)
    assert (tuple(kept_in.tolist()), tuple(kept_out.tolist())) == SMALL


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.lists(widths(), min_size=1, max_size=5))
def test_many_networks_at_once_cost_what_each_does(
    seed: int, plans: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    cost = corrected(hand_made(seed)).bind((*LAYERS, NORM))  # a norm has no entry: its column is left out
    assert isinstance(cost, ManyCost)
    kept_in, kept_out = (np.array([[*kept[side], 8] for kept in plans]) for side in (0, 1))
    assert cost.many(kept_in, kept_out).tolist() == [cost(*kept) for kept in zip(kept_in, kept_out, strict=True)]


def test_the_one_of_many_networks_that_is_not_known_is_named() -> None:
    cost = hand_made().bind(LAYERS)
    assert isinstance(cost, ManyCost)
    kept_in, kept_out = (np.array([kept, kept, kept]) for kept in SMALL)
    kept_out[1, 1] = kept_in[1, 2] = kept_out[1, 2] = kept_in[1, 3] = 33
    with pytest.raises(MissingEntryError) as caught:
        cost.many(kept_in, kept_out)
    assert caught.value.shape == replace(LAYERS[1], in_channels=SMALL[0][1], out_channels=33)
    assert cost.many(kept_in[::2], kept_out[::2]).shape == (2,)


@settings(max_examples=50)
@given(widths())
def test_the_correction_is_scale_and_offset(kept: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    table = hand_made()
    assert corrected(table).predict(*kept) == pytest.approx(1.25 * plain_sum(table, *kept) + 0.5)
    assert corrected(table).without_correction().predict(*kept) == pytest.approx(plain_sum(table, *kept))


def test_the_correction_holds_for_its_own_network_only() -> None:
    table = corrected(hand_made())
    kept_in, kept_out = (np.array(side) for side in SMALL)
    renamed = [replace(layer, name=f"other.{layer.name}", owns_weights=False) for layer in LAYERS]
    assert table.bind(renamed)(kept_in, kept_out) == table.predict(*SMALL)
    norms = table.bind((*LAYERS, NORM))
    assert norms(np.array([*SMALL[0], 8]), np.array([*SMALL[1], 8])) == table.predict(*SMALL)
    bare = table.without_correction()
    for other in (LAYERS[:3], (*LAYERS, HEAD), (STEM, replace(CONV, out_channels=31), DEPTHWISE, HEAD)):
        ins, outs = np.resize(kept_in, len(other)), np.resize(kept_out, len(other))
        ins[4:], outs[4:] = 12, 10
        assert table.bind(other)(ins, outs) == bare.bind(other)(ins, outs) != table.predict(*SMALL)


@settings(max_examples=25)
@given(widths(), st.lists(st.floats(0.1, 20), min_size=1, max_size=3), st.booleans())
def test_a_refined_table_answers_with_the_measurement(
    kept: tuple[tuple[int, ...], tuple[int, ...]], times: list[float], imported: bool
) -> None:
    table = hand_made(layers=()) if imported else corrected(hand_made())

    def predict(table: LatencyTable, kept: tuple[tuple[int, ...], tuple[int, ...]]) -> float:
        return table.bind(LAYERS)(np.array(kept[0]), np.array(kept[1]))

    dense = predict(table, DENSE)
    for milliseconds in times:
        predicted = predict(table, kept)
        if predicted >= dense - 1e-3:
            return
        table = table.refined(predicted, milliseconds, dense)
        assert predict(table, kept) == pytest.approx(milliseconds, rel=1e-6)
        assert predict(table, DENSE) == pytest.approx(dense)
    assert len(table.correction.refinements) == len(times)


def test_what_one_network_saved_less_others_save_less_as_well() -> None:
    table = hand_made()
    dense, other = table.predict(*DENSE), table.predict((3, 16, 16, 16), (16, 16, 16, 10))
    predicted = table.predict(*SMALL)
    refined = table.refined(predicted, predicted + 0.25 * (dense - predicted), dense)
    expected = other + 0.25 * (dense - other)
    assert refined.predict((3, 16, 16, 16), (16, 16, 16, 10)) == pytest.approx(expected)
    assert refined.correction.remaining == pytest.approx(0.75)
    assert refined.without_correction().predict(*SMALL) == predicted


@pytest.mark.parametrize(("predicted", "measured_ms"), [(4.0, 3.0), (4.5, 3.0), (3.0, 4.0), (3.0, 5.5)])
def test_refined_refuses_a_network_that_is_no_faster(predicted: float, measured_ms: float) -> None:
    fault = (
        f"^expected a network faster than the dense 4.0 ms, got {predicted} ms predicted and {measured_ms} ms measured$"
    )
    with pytest.raises(ValueError, match=fault):
        hand_made().refined(predicted, measured_ms, 4.0)


def test_an_unknown_layer_is_named_with_the_command_that_measures_it() -> None:
    other = replace(CONV, name="body.3", stride=(2, 2))
    with pytest.raises(MissingEntryError) as caught:
        hand_made().bind((STEM, other))
    assert str(caught.value) == (
        "the latency table has no entry for layer 'body.3': conv 3x3 16->32, stride 2, input 8x8, then relu "
        "(it knows no such layer). Measure it with: amc lut build SPEC --out TABLE.json"
    )
    assert (caught.value.shape, caught.value.nearest) == (other, ())


@pytest.mark.parametrize(
    "change", [{"kernel_size": (1, 1)}, {"input_size": (4, 4)}, {"groups": 2}, {"dilation": (2, 2)}]
)
def test_geometry_matters(change: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(MissingEntryError, match="it knows no such layer"):
        hand_made().surface(replace(CONV, **change))  # type: ignore[arg-type]


def test_a_width_that_was_not_measured_is_named_with_those_that_were() -> None:
    cost = hand_made().bind(LAYERS)
    with pytest.raises(MissingEntryError) as caught:
        cost(np.array([3, 8, 3, 3]), np.array([8, 3, 3, 10]))
    assert str(caught.value) == (
        "the latency table has no entry for layer 'conv': conv 3x3 8->3, input 8x8, then relu "
        "(it knows such layers at 8->4, 4->4, 8->8, 4->8). Measure it with: amc lut build SPEC --out TABLE.json"
    )
    assert caught.value.shape == CONV.pruned(8, 3)
    assert set(caught.value.nearest) == {(i, o) for i in (4, 8, 16) for o in (4, 8, 16, 32)}


def test_a_depthwise_layer_that_was_not_measured_keeps_whole_groups() -> None:
    cost = table_of(measured(DEPTHWISE)).bind([DEPTHWISE])
    with pytest.raises(MissingEntryError, match=r"layer 'dw': conv 3x3 2->2, 2 groups, input 8x8 \(it knows such"):
        cost(np.array([2]), np.array([2]))


def test_only_widths_that_can_be_are_offered_for_a_depthwise_layer() -> None:
    cost = table_of(measured(DEPTHWISE)).bind([DEPTHWISE])
    with pytest.raises(MissingEntryError) as caught:
        cost(np.array([2]), np.array([2]))
    assert set(caught.value.nearest) == {(4, 4), (8, 8), (16, 16), (32, 32)}


def test_a_width_beyond_the_largest_is_refused() -> None:
    layers = (replace(CONV, in_channels=16, out_channels=16), replace(CONV, in_channels=16, out_channels=16))
    cost = table_of(measured(CONV)).bind(layers)
    with pytest.raises(MissingEntryError):
        cost(np.array([16, 16]), np.array([28, 16]))


def test_a_depthwise_layer_of_one_channel_is_known() -> None:
    table = table_of([entry(DEPTHWISE, width, width, 0.5 * width) for width in (1, 8, 32)])
    assert table.bind([DEPTHWISE])(np.array([1]), np.array([1])) == pytest.approx(0.5)


def test_an_entry_that_does_not_tell_what_follows_answers_for_any() -> None:
    anything = [replace(e, shape=replace(e.shape, followed_by=ANYTHING)) for e in measured(CONV, lambda i, o: 7.0)]
    table = table_of(anything)
    for followers in ((), ("relu",), ("batch_norm", "relu", "max_pool"), ANYTHING):
        assert table.surface(replace(CONV, followed_by=followers))(8, 8) == pytest.approx(7.0)


def test_an_entry_with_the_same_follower_goes_first() -> None:
    anything = [replace(e, shape=replace(e.shape, followed_by=ANYTHING)) for e in measured(CONV, lambda i, o: 7.0)]
    table = table_of([*anything, *measured(CONV, lambda i, o: 5.0)])
    assert table.surface(CONV)(8, 8) == pytest.approx(5.0)
    assert table.surface(replace(CONV, followed_by=("add",)))(8, 8) == pytest.approx(7.0)


def test_another_follower_does_not_answer() -> None:
    with pytest.raises(MissingEntryError, match=re.escape("conv 3x3 16->32, input 8x8 (it knows no such layer)")):
        table_of(measured(CONV)).surface(replace(CONV, followed_by=()))


def test_name_bias_and_shared_weights_do_not_matter() -> None:
    table = hand_made()
    twin = replace(CONV, name="twin", bias=True, owns_weights=False)
    assert table.surface(twin) is table.surface(CONV)
    assert table.entries_of(twin) == table.entries_of(CONV) == measured(CONV)


def test_a_grouped_layer_is_known_by_the_channels_of_a_group() -> None:
    grouped = LayerShape("g", "conv", 16, 16, (3, 3), groups=4, input_size=SIZE, output_size=SIZE)
    table = table_of([entry(grouped, 4 * groups, 4 * groups, float(groups)) for groups in (2, 3, 4)])
    assert table.bind([grouped])(np.array([12]), np.array([12])) == pytest.approx(3.0)
    wider = LayerShape("g", "conv", 32, 16, (3, 3), groups=4, input_size=SIZE, output_size=SIZE)
    with pytest.raises(MissingEntryError, match="conv 3x3 32->16, 4 groups, input 8x8"):
        table.surface(wider)


def test_costs_of_single_layers_know_no_correction() -> None:
    costs = corrected(hand_made()).layer_costs((STEM, NORM, CONV, DEPTHWISE, HEAD))
    assert costs.tolist() == pytest.approx([1.48, 0.0, 6.12, 11.24, 4.2])


@pytest.mark.parametrize("fault", [float("nan"), float("inf"), -0.001])
@pytest.mark.parametrize("field", ["mean", "median", "p10", "p90"])
def test_an_entry_refuses_times_that_cannot_be(field: str, fault: float) -> None:
    with pytest.raises(ValueError, match=r"^entry of conv 3x3 8->8, input 8x8, then relu: expected n >= 1, finite"):
        replace(entry(CONV, 8, 8, 1.0), **{field: fault})  # type: ignore[arg-type]


def test_an_entry_refuses_to_come_from_nothing() -> None:
    with pytest.raises(ValueError, match=r"expected n >= 1, finite times >= 0 and a mean above 0, got n 0, mean 1\.0"):
        replace(entry(CONV, 8, 8, 1.0), n=0)


def test_an_entry_refuses_to_take_no_time_at_all() -> None:
    with pytest.raises(ValueError, match=r"a mean above 0, got n 5, mean 0.0"):
        entry(CONV, 8, 8, 0.0)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        (
            LayerShape("x", "conv", 16, 32, (3, 5), (2, 1), groups=16, input_size=(56, 28), followed_by=("bn", "relu")),
            "conv 3x5 16->32, stride 2, 16 groups, input 56x28, then bn+relu",
        ),
        (LayerShape("x", "conv", 3, 8, (1, 1), input_size=(7, 7)), "conv 1x1 3->8, input 7x7"),
        (HEAD, "linear 32->10"),
    ],
)
def test_layers_in_words(shape: LayerShape, words: str) -> None:
    assert describe(shape) == words
