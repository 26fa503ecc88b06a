"""Latency by look-up: what each layer of a network takes at each width, measured in the network's own context.

A table predicts the latency of a network as the sum of its layers' entries. What a sum cannot know (the runtime's own
time per inference, one layer's buffers in another's cache) is a small correction, fitted on whole networks and kept
apart. Widths between two entries are interpolated: see `hw.surface`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hw.cost import CostFunction, IntArray
from hw.host import Conditions, Host
from hw.layers import LayerShape
from hw.surface import FloatArray, Surface
from hw.timing import Timing

#: what a layer is followed by in a table that does not tell, as one imported from elsewhere
ANYTHING = ("*",)


class MissingEntryError(ValueError):
    """The table does not know a layer, or not at these widths.

    Attributes:
        shape: the layer that was looked up.
        nearest: the widths (in, out) that the table knows of such layers; empty if it knows none.
    """

    def __init__(self, shape: LayerShape, nearest: Sequence[tuple[int, int]]) -> None:
        self.shape, self.nearest = shape, tuple(nearest)
        known = ", ".join(f"{ins}->{outs}" for ins, outs in self.nearest[:4])
        super().__init__(
            f"the latency table has no entry for layer {shape.name!r}: {describe(shape)} (it knows "
            f"{f'such layers at {known}' if known else 'no such layer'}). Measure it with: amc lut build SPEC --out "
            f"TABLE.json"
        )


@dataclass(frozen=True)
class Entry:
    """One layer at one pair of widths.

    Attributes:
        shape: of the layer; its name means nothing here.
        n: runs that the figures are taken from, undisturbed ones.
        mean: milliseconds; what the table answers with. Clocks of runtimes may be too coarse for the median.
        median, p10, p90: of these runs, in milliseconds.
    """

    shape: LayerShape
    n: int
    mean: float
    median: float
    p10: float
    p90: float

    def __post_init__(self) -> None:
        times = (self.mean, self.median, self.p10, self.p90)
        if self.n < 1 or not all(math.isfinite(ms) and ms >= 0 for ms in times) or self.mean == 0:
            raise ValueError(
                f"entry of {describe(self.shape)}: expected n >= 1, finite times >= 0 and a mean above 0, got n "
                f"{self.n}, mean {self.mean}, median {self.median}, p10 {self.p10}, p90 {self.p90}"
            )


@dataclass(frozen=True)
class MeasuredNetwork:
    """A whole network: channels of its layers, and its time.

    Attributes:
        kept_in, kept_out: channels of each convolution and linear layer.
        timing: end to end, milliseconds at the speed of the table's reference.
    """

    kept_in: tuple[int, ...]
    kept_out: tuple[int, ...]
    timing: Timing


@dataclass(frozen=True)
class Correction:
    """latency = scale * sum of the entries + offset, then refined.

    A refinement k moves a latency by the share k towards the dense network's, which itself stays: what a pruned network
    saved less than predicted, others will save less as well.

    Attributes:
        scale, offset: offset in milliseconds.
        networks: number of networks it was fitted on.
        before, after: median relative error over them without it, and with it when each is left out of its fit.
        refinements: the shares k, in the order in which measured winners showed them.
    """

    scale: float = 1.0
    offset: float = 0.0
    networks: int = 0
    before: float | None = None
    after: float | None = None
    refinements: tuple[float, ...] = ()

    @property
    def remaining(self) -> float:
        """What the refinements leave of a difference from the dense network."""
        return math.prod(1.0 - share for share in self.refinements)


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """A cost model: milliseconds of one inference under the table's conditions.

    Attributes:
        conditions: runtime, threads, batch and dtype; with a layer's shape they decide its time.
        host: where it was measured.
        entries: of single layers.
        layers: convolutions and linear layers of the network it was built for, dense; empty if imported.
        reference: that network's time end to end; the speed of the machine to which all times are brought.
        networks: whole networks, measured.
        correction: fitted on them; scale and offset hold for that network only.
    """

    conditions: Conditions
    host: Host
    entries: tuple[Entry, ...]
    layers: tuple[LayerShape, ...] = ()
    reference: Timing | None = None
    networks: tuple[MeasuredNetwork, ...] = ()
    correction: Correction = Correction()

    name = "latency_ms"
    unit = "ms"

    def bind(self, layers: Sequence[LayerShape]) -> CostFunction:
        """The latency of one network as a function of the channels of all its layers.

        Raises:
            MissingEntryError: a layer is not in the table; also by the function, for widths that are not.
        """
        return _TableCost(self, layers)

    def layer_costs(self, layers: Sequence[LayerShape]) -> FloatArray:
        """Milliseconds of each layer by itself, without the correction; 0 for what runs with the layer before it."""
        return np.array(
            [
                self.surface(layer)(layer.in_channels, layer.out_channels) if layer.op in ("conv", "linear") else 0.0
                for layer in layers
            ]
        )

    def predict(self, kept_in: Sequence[int], kept_out: Sequence[int]) -> float:
        """The latency of a member of the family it was built for, from the channels of `layers`."""
        return self.bind(self.layers)(np.array(kept_in), np.array(kept_out))

    def surface(self, layer: LayerShape) -> Surface:
        """Milliseconds of a layer over its two widths.

        Raises:
            MissingEntryError: there is no such layer at any width.
        """
        for kind in (_kind(layer), _kind(replace(layer, followed_by=ANYTHING))):
            if kind in self._surfaces:
                return self._surfaces[kind]
        raise MissingEntryError(layer, [])

    def entries_of(self, layer: LayerShape) -> list[Entry]:
        """All entries of layers that differ from this one in their widths only."""
        kinds = {_kind(layer), _kind(replace(layer, followed_by=ANYTHING))}
        return [entry for entry in self.entries if _kind(entry.shape) in kinds]

    def without_correction(self) -> LatencyTable:
        """The sum of the entries alone."""
        return replace(self, correction=Correction())

    def refined(self, predicted: float, measured: float, dense: float) -> LatencyTable:
        """The table that predicts `measured` where this one predicts `predicted`, and for the dense network the same.

        Args:
            predicted, measured, dense: milliseconds; `dense` as this table predicts it.

        Raises:
            ValueError: the network is not faster than the dense one, predicted or measured.
        """
        if max(predicted, measured) >= dense:
            raise ValueError(
                f"expected a network faster than the dense {dense} ms, got {predicted} ms predicted and {measured} ms "
                f"measured"
            )
        share = (measured - predicted) / (dense - predicted)
        refinements = (*self.correction.refinements, share)
        return replace(self, correction=replace(self.correction, refinements=refinements))

    @cached_property
    def _surfaces(self) -> dict[LayerShape, Surface]:
        kinds: dict[LayerShape, list[Entry]] = {}
        for entry in self.entries:
            kinds.setdefault(_kind(entry.shape), []).append(entry)
            if entry.shape.in_channels == entry.shape.out_channels == 1:  # one channel has one group, depthwise or not
                depthwise = replace(entry.shape, in_channels=2, out_channels=2, groups=2)
                kinds.setdefault(_kind(depthwise), []).append(entry)
        return {
            kind: Surface.fit(
                np.array([(entry.shape.in_channels, entry.shape.out_channels) for entry in entries]),
                np.array([entry.mean for entry in entries]),
            )
            for kind, entries in kinds.items()
        }


class _TableCost:
    """Looks all layers of one network up at once: every possible width has its place in the surfaces ready."""

    def __init__(self, table: LatencyTable, layers: Sequence[LayerShape]) -> None:
        self._rows = np.array([i for i, layer in enumerate(layers) if layer.op in ("conv", "linear")], dtype=np.int64)
        self._layers = [layers[row] for row in self._rows]
        self._table = table
        self._surfaces = [table.surface(layer) for layer in self._layers]
        self._largest = max(max(layer.in_channels, layer.out_channels) for layer in self._layers)
        self._in = _Places(self._surfaces, [surface.knots_in for surface in self._surfaces], self._largest)
        self._out = _Places(self._surfaces, [surface.knots_out for surface in self._surfaces], self._largest)
        columns = max(surface.values.shape[1] for surface in self._surfaces)
        sizes = [surface.values.shape[0] for surface in self._surfaces]
        values = np.zeros((sum(sizes) + 1, columns + 1))
        self._first = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) * (columns + 1)
        for start, surface in zip(np.cumsum([0, *sizes[:-1]]), self._surfaces, strict=True):
            values[start : start + len(surface.values), : surface.values.shape[1]] = surface.values
        self._values, self._stride = values.reshape(-1), columns + 1
        correction = table.correction
        same = tuple(map(_unnamed, self._layers)) == tuple(map(_unnamed, table.layers))
        self._scale, self._offset = (correction.scale, correction.offset) if same else (1.0, 0.0)
        ins, outs = np.array([(layer.in_channels, layer.out_channels) for layer in self._layers]).T
        dense, remaining = float(self._look_up(ins, outs)), correction.remaining
        self._scale, self._offset = remaining * self._scale, remaining * self._offset + (1.0 - remaining) * dense

    def __call__(self, kept_in: IntArray, kept_out: IntArray) -> float:
        return float(self.many(kept_in, kept_out))

    def many(self, kept_in: IntArray, kept_out: IntArray) -> FloatArray:
        """As `ManyCost` says."""
        return self._look_up(kept_in.take(self._rows, axis=-1), kept_out.take(self._rows, axis=-1))

    def _look_up(self, kept_in: IntArray, kept_out: IntArray) -> FloatArray:
        if max(kept_in.max(), kept_out.max()) > self._largest:
            self._refuse(kept_in, kept_out, np.maximum(kept_in, kept_out) > self._largest)
        place_in, rest_in = self._in(kept_in)
        place_out, rest_out = self._out(kept_out)
        if place_in.min() < 0 or place_out.min() < 0:
            self._refuse(kept_in, kept_out, (place_in < 0) | (place_out < 0))
        at = self._first + place_in * self._stride + place_out
        near, far = self._values[at], self._values[at + self._stride]
        near += rest_out * (self._values[at + 1] - near)
        far += rest_out * (self._values[at + self._stride + 1] - far)
        near += rest_in * (far - near)
        costs: FloatArray = self._scale * near.sum(axis=-1) + self._offset
        return costs

    def _refuse(self, kept_in: IntArray, kept_out: IntArray, outside: NDArray[np.bool_]) -> None:
        first = np.unravel_index(np.argmax(outside), outside.shape)
        layer, ins, outs = self._layers[first[-1]], int(kept_in[first]), int(kept_out[first])
        groups = 1 if layer.groups == 1 else layer.groups * outs // layer.out_channels
        known = [(e.shape.in_channels, e.shape.out_channels) for e in self._table.entries_of(layer)]
        nearest = sorted(set(known), key=lambda pair: (abs(pair[0] - ins) + abs(pair[1] - outs), pair))
        raise MissingEntryError(replace(layer, in_channels=ins, out_channels=outs, groups=max(groups, 1)), nearest)


class _Places:
    """For each layer and width the knot at or below it, and how far the width is towards the next, in [0, 1)."""

    def __init__(self, surfaces: Sequence[Surface], knots: Sequence[IntArray], largest: int) -> None:
        places = np.full((len(knots), largest + 1), -1, dtype=np.int64)
        rests = np.zeros((len(knots), largest + 1))
        widths = np.arange(1, largest + 1)
        for row, (surface, known) in enumerate(zip(surfaces, knots, strict=True)):
            counted = surface.counted(widths)
            inside = (counted >= known[0]) & (counted <= known[-1])
            place = np.searchsorted(known, counted[inside], side="right") - 1
            after = np.minimum(place + 1, len(known) - 1)
            places[row, widths[inside]] = place
            rests[row, widths[inside]] = (counted[inside] - known[place]) / np.maximum(known[after] - known[place], 1)
        self._layer = np.arange(len(knots)) * (largest + 1)
        self._place, self._rest = places.reshape(-1), rests.reshape(-1)

    def __call__(self, widths: IntArray) -> tuple[IntArray, FloatArray]:
        at = self._layer + widths
        return self._place[at], self._rest[at]


def describe(shape: LayerShape) -> str:
    """A layer in words: "conv 3x3 16->32, stride 2, 16 groups, input 56x56, then batch_norm+relu"."""
    kernel = f" {shape.kernel_size[0]}x{shape.kernel_size[1]}" if shape.op == "conv" else ""
    parts = [f"{shape.op}{kernel} {shape.in_channels}->{shape.out_channels}"]
    parts += [f"stride {max(shape.stride)}"] if max(shape.stride) > 1 else []
    parts += [f"{shape.groups} groups"] if shape.groups > 1 else []
    parts += [f"input {shape.input_size[0]}x{shape.input_size[1]}"] if shape.op == "conv" else []
    parts += [f"then {'+'.join(shape.followed_by)}"] if shape.followed_by else []
    return ", ".join(parts)


def _unnamed(layer: LayerShape) -> LayerShape:
    return replace(layer, name="", owns_weights=True)


def _kind(layer: LayerShape) -> LayerShape:
    """The layer without its name and widths; of a grouped one, with the channels of a group."""
    per_group_in, per_group_out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    if layer.groups == 1:
        per_group_in = per_group_out = 1
    groups = 1 if layer.groups == 1 else 2
    return replace(
        layer,
        name="",
        owns_weights=True,
        bias=False,  # one addition per output
        in_channels=per_group_in * groups,
        out_channels=per_group_out * groups,
        groups=groups,
    )
