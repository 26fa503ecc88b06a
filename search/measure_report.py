"""What is said of a winner that was run on the processor: a table of the whole network, one of its layers, a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hw.cost import SPARSE_LATENCY
from hw.sparse.choice import DENSE as LEFT_DENSE
from hw.sparse.peers import CSR, DENSE, INT8, best_of
from search.columns import aligned
from search.figures import NONE, human, percent
from search.measure import KERNELS, SPARSE
from search.page_parts import both, escape, prose, row, section, table
from search.results import MeasuredLayerRecord, MeasuredRecord, Results, TimingRecord
from search.svg import Frame, Scale, colour, drawing, line, marker, rectangle, text, x_axis

_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_ROW = 22


def measured_text(results: Results) -> str:
    """For a terminal: the tables and the verdict."""
    record = results.measured
    if record is None:
        return "not measured"
    parts = [conditions(record), aligned(*whole_table(record)).rstrip()]
    if record.layers:
        parts.append(aligned(*layer_table(record)).rstrip())
    return "\n\n".join([*parts, *measured_verdict(results, record)]) + "\n"


def conditions(record: MeasuredRecord) -> str:
    """Which network it is, and how it was run."""
    images = "one image" if record.batch == 1 else f"{record.batch} images"
    threads = "one thread" if record.threads == 1 else f"{record.threads} threads"
    return f"{record.agent}, seed {record.seed}: {images}, {threads} of {record.host.get('processor', 'unknown')}"


def whole_table(record: MeasuredRecord) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: the dense network, then the winner, each by what ran it."""
    headings = ["network", "run by", "latency", "10th to 90th percentile", "of the best dense", "outputs differ by"]
    best = min(timing.p10 for timing in record.dense.values())
    rows = [_whole("dense", name, timing, best, NONE) for name, timing in record.dense.items()]
    for name, timing in record.pruned.items():
        difference = record.differences.get(name)
        rows.append(_whole("pruned", name, timing, best, NONE if difference is None else f"{difference:.1e}"))
    return headings, rows


def _whole(network: str, name: str, timing: TimingRecord, best: float, difference: str) -> list[str]:
    spread = f"{human(timing.p10)} to {human(timing.p90)} ms"
    return [network, name, human(timing.p10, "ms"), spread, f"{timing.p10 / best:.2f}", difference]


def layer_table(record: MeasuredRecord) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: each layer's fastest of every sort, and below which density sparsity pays."""
    headings = [
        "layer", "geometry", "density", "input", "best dense", "8 bits", "torch CSR", "sparse", "pays below", "runs",
    ]  # fmt: skip
    return headings, [_layer(layer) for layer in record.layers]


def _layer(layer: MeasuredLayerRecord) -> list[str]:
    times = layer.milliseconds
    found = [best_of(times, names) for names in (DENSE, (INT8,), (CSR,), KERNELS)]
    return [
        layer.name,
        layer.described,
        percent(layer.density, 1),
        percent(layer.activation_density, 0),
        *(NONE if name is None else human(times[name], "ms") for name in found),
        break_even_text(layer),
        layer.kernel,
    ]


def break_even_text(layer: MeasuredLayerRecord) -> str:
    """The density below which its sparse kernel is faster than the best dense one."""
    if layer.break_even is None:
        return f"over {percent(layer.sparse[-1][0], 0)}"
    return "never" if layer.break_even == 0.0 else percent(layer.break_even, 0)


def measured_verdict(results: Results, record: MeasuredRecord) -> list[str]:
    """Sentences: what runs the winner fastest, what the sparse layers gain, and what the search had predicted."""
    fastest = min(record.pruned, key=lambda name: record.pruned[name].p10)
    name, best = min(((name, timing.p10) for name, timing in record.dense.items()), key=lambda entry: entry[1])
    lines = [
        f"The pruned network is fastest by {fastest}, {human(record.pruned[fastest].p10, 'ms')}: "
        f"{best / record.pruned[fastest].p10:.2f} times the speed of the dense network by {name}."
    ]
    if record.layers:
        lines.append(_layers_verdict(record, best))
    predicted = _predicted(results, record)
    if predicted is not None and SPARSE in record.pruned:
        measured = record.pruned[SPARSE].p10
        lines.append(
            f"With sparse layers the search had predicted {human(predicted, 'ms')}; measured were "
            f"{human(measured, 'ms')}, {percent(measured / predicted - 1, 1)} off."
        )
    return lines


def _layers_verdict(record: MeasuredRecord, best: float) -> str:
    sparse = [layer for layer in record.layers if layer.kernel != LEFT_DENSE]
    pays = [layer for layer in record.layers if layer.break_even is None or layer.density < layer.break_even]
    return (
        f"With sparse layers where they gain in torch, {len(sparse)} of {len(record.layers)}, it has "
        f"{best / record.pruned[SPARSE].p10:.2f} times the speed of the best dense network; in {len(pays)} of all "
        f"layers the sparse kernel is faster than the best dense one of torch and onnxruntime."
    )


def _predicted(results: Results, record: MeasuredRecord) -> float | None:
    for trial in results.trials:
        if trial.best is not None and (trial.agent, trial.seed) == (record.agent, record.seed):
            return trial.best.costs.get(SPARSE_LATENCY)
    return None


def measured_sections(results: Results) -> str:
    """For the report: the whole network, and where sparsity pays in its layers; empty if nothing was measured."""
    record = results.measured
    if record is None:
        return ""
    headings, cells = whole_table(record)
    rows = [row(headings, [*map(escape, cell)], "dense" if cell[0] == "dense" else "") for cell in cells]
    verdict = "".join(f'<p class="caption">{prose(said)}</p>' for said in measured_verdict(results, record))
    whole = section(
        "The winner on this processor",
        f"{conditions(record)}. Latency is the 10th percentile of runs that were interleaved with all others here. "
        "8 bits are dynamic quantisation: of activations in each run.",
        table(headings, rows) + verdict,
    )
    if not record.layers:
        return whole
    headings, cells = layer_table(record)
    rows = [row(headings, [*map(escape, cell)]) for cell in cells]
    return whole + section(
        "Where sparsity pays",
        "Each layer by itself, on the input that it gets. The bar ends at the density below which the fastest sparse "
        "kernel beats the best dense float32 of torch and onnxruntime, measured with random patterns; the marker is "
        "where the layer is: a circle where sparsity pays, a square where it does not.",
        both(lambda width: density_plot(record, width=width))
        + f"<details><summary>All {len(rows)} layers</summary>{table(headings, rows)}</details>",
    )


def density_plot(record: MeasuredRecord, *, width: int = 960) -> str:
    """A line for each layer: a bar up to the density below which sparsity pays, a marker where the layer is."""
    beside = width > 500
    side, row = (210, _ROW) if beside else (12, 2 * _ROW - 6)
    frame = Frame(width, 16 + row * len(record.layers) + 46, left=side, right=20, top=16)
    x = Scale(math.log10(_lowest(record.layers)), 0.0, frame.left, frame.width - frame.right)
    shown = [tick for tick in _TICKS if tick >= _lowest(record.layers)]
    parts = x_axis(frame, x, [math.log10(tick) for tick in shown], [f"{100 * tick:g} %" for tick in shown], "density")
    for place, layer in enumerate(record.layers):
        middle = frame.top + (place + (0.5 if beside else 0.72)) * row
        parts += _layer_marks(x, middle, layer, frame)
        if beside:
            parts.append(text(side - 12, middle + 4, layer.name, "note", "end"))
        else:
            parts.append(text(side, middle - 12, f"{layer.name}, {layer.described}", "note"))
    return drawing(width, frame.height, "Density of each layer and the density below which sparsity pays", parts)


def _layer_marks(x: Scale, middle: float, layer: MeasuredLayerRecord, frame: Frame) -> list[str]:
    until = 1.0 if layer.break_even is None else layer.break_even
    pays = layer.density < until
    parts = [line(frame.left, middle, frame.width - frame.right, middle, "grid")]
    if until > 0.0:
        parts.append(rectangle(frame.left, middle - 4, x(math.log10(until)) - frame.left, 8, f"interval {colour(0)}"))
    tip = f"{layer.name}, {layer.described}: density {percent(layer.density, 1)}, pays below {break_even_text(layer)}"
    index = 0 if pays else 1
    return [*parts, marker(index, x(math.log10(layer.density)), middle, 5, f"winner {colour(index)}", tip)]


def _lowest(layers: Sequence[MeasuredLayerRecord]) -> float:
    return min(0.02, *(layer.density for layer in layers)) / 1.3
