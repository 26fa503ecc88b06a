#!/usr/bin/env python3
r"""EIE's machine on the nine layers of its paper: times beside the paper's own, queue depths, numbers of elements.

The weights are synthetic: the layers' sizes and densities, non-zeros at random. With --weights also: what each layer of
a pruned network with shared weights (a state_dict) takes in EIE's form.

    python scripts/simulate_eie.py --plot eie.html
    python scripts/simulate_eie.py --out docs/results
    python scripts/simulate_eie.py --json
    python scripts/simulate_eie.py --weights imagenet_squeezenet1_0_deep_compressed.pt
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import _eie_page as page
import numpy as np
import torch

from hw.eie import Codebook, EIEMatrix, huffman_size, weight_matrix
from hw.eie.paper import PAPER_LAYERS, PAPER_TIMES_US
from hw.eie.simulator import CLOCK_MHZ, ELEMENTS, QUEUE_DEPTH, ColumnWork, LayerRun, sweep_elements, sweep_queue_depths
from hw.files import write_atomically
from search.figures import percent

DEPTHS = tuple(2**power for power in range(1, 9))
COUNTS = tuple(2**power for power in range(9))


@dataclass(frozen=True)
class SimulatedLayer:
    """One layer of the paper: times in microseconds at the paper's clock, and runs over queue depths and elements."""

    name: str
    inputs: int
    outputs: int
    simulated_us: float
    ideal_us: float
    paper_actual_us: float
    paper_theoretical_us: float
    by_depth: list[LayerRun]
    by_elements: list[LayerRun]


@dataclass(frozen=True)
class StoredLayer:
    """What one layer takes, in bytes; `huffman_bytes` with Huffman coded entries."""

    name: str
    rows: int
    columns: int
    nonzeros: int
    padding: int
    dense_bytes: int
    stored_bytes: int
    huffman_bytes: int


def simulate_paper(seed: int) -> Iterator[SimulatedLayer]:
    """All nine layers; each draws from a generator of its own."""
    for index, layer in enumerate(PAPER_LAYERS):
        rng = np.random.default_rng([seed, index])
        weights, activations = layer.weights(rng), layer.activations(rng)
        by_elements = sweep_elements(weights, activations, COUNTS)
        run = by_elements[COUNTS.index(ELEMENTS)]
        yield SimulatedLayer(
            layer.name,
            layer.inputs,
            layer.outputs,
            run.cycles / CLOCK_MHZ,
            run.ideal_cycles / CLOCK_MHZ,
            PAPER_TIMES_US["EIE, actual"][index],
            PAPER_TIMES_US["EIE, theoretical"][index],
            sweep_queue_depths(ColumnWork.of_csc(weights, ELEMENTS), activations, DEPTHS),
            by_elements,
        )


def stored_layers(path: Path, elements: int) -> Iterator[StoredLayer]:
    """Each layer of a state_dict whose weights are shared."""
    for name, tensor in torch.load(path, weights_only=True).items():
        if tensor.ndim not in (2, 4):
            continue
        weights = weight_matrix(tensor.numpy())
        matrix = EIEMatrix.encode(weights, Codebook.of_values(weights), elements)
        size = matrix.size
        coded = huffman_size(matrix).size_bytes + size.pointer_bytes + size.codebook_bytes
        yield StoredLayer(
            name, *weights.shape, size.nonzeros, size.padding, 4 * weights.size, size.total, coded
        )  # fmt: skip


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, help="write the plots as a page, e.g. eie.html")
    parser.add_argument("--out", type=Path, help="write eie.md there, and its plots as images beside it")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--weights", type=Path, help="sizes of this state_dict's layers instead of the simulation")
    parser.add_argument("--elements", type=int, default=1, help="over which --weights deals out rows (default: 1)")
    options = parser.parse_args()
    if options.weights is not None:
        stored = list(stored_layers(options.weights, options.elements))
        sys.stdout.write(json.dumps([asdict(layer) for layer in stored]) if options.json else _stored_text(stored))
        sys.stdout.write("\n")
        return
    layers = list(simulate_paper(options.seed))
    figures = {"seed": options.seed, "layers": [_figures(layer) for layer in layers]}
    sys.stdout.write(json.dumps(figures) if options.json else _paper_text(layers))
    sys.stdout.write("\n")
    if options.plot is not None:
        write_atomically(options.plot, page.render(_plots(layers)))
    if options.out is not None:
        _write_results(layers, options)


def _write_results(layers: Sequence[SimulatedLayer], options: argparse.Namespace) -> None:
    """The tables and plots as a Markdown page with images."""
    lines = ["# EIE's machine on the nine layers of its paper", ""]
    for title, head, rows in _tables(layers):
        cells = [head, ["---"] * len(head), *rows]
        lines += [f"{title}.", "", *(f"| {' | '.join(row)} |" for row in cells), ""]
    for number, plot in enumerate(_plots(layers), start=1):
        name = f"eie-{number}.svg"
        write_atomically(options.out / name, page.image(plot))
        lines += [f"![{plot.title}]({name})", "", f"*{plot.title}.*", ""]
    lines += [f"`python scripts/simulate_eie.py --seed {options.seed} --out docs/results`", ""]
    write_atomically(options.out / "eie.md", "\n".join(lines))


def _figures(layer: SimulatedLayer) -> dict[str, Any]:
    """All of a layer as plain values, with the shares that follow from its runs."""
    runs = {
        name: [
            asdict(run) | {"load_balance": run.load_balance, "real_work": run.real_work, "efficiency": run.efficiency}
            for run in getattr(layer, name)
        ]
        for name in ("by_depth", "by_elements")
    }
    return asdict(layer) | runs


def _paper_text(layers: Sequence[SimulatedLayer]) -> str:
    return "\n\n".join(f"{title}\n{_table(head, rows)}" for title, head, rows in _tables(layers))


def _tables(layers: Sequence[SimulatedLayer]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, headings and rows of each table."""
    head = ["layer", "inputs", "outputs", "simulated us", "ideal us", "paper: actual us", "theoretical us", "ratio"]
    rows = [
        [
            layer.name, f"{layer.inputs}", f"{layer.outputs}", f"{layer.simulated_us:.1f}", f"{layer.ideal_us:.1f}",
            f"{layer.paper_actual_us:.1f}", f"{layer.paper_theoretical_us:.1f}",
            f"{layer.simulated_us / layer.paper_actual_us:.2f}",
        ]
        for layer in layers
    ]  # fmt: skip
    yield (
        f"{ELEMENTS} elements, queue {QUEUE_DEPTH}, {CLOCK_MHZ:.0f} MHz; synthetic weights and activations of the "
        f"paper's densities; ratio = simulated / paper's actual time",
        head,
        rows,
    )
    names = [layer.name for layer in layers]
    sweeps = [
        (f"load balance over the depth of the queue, {ELEMENTS} elements", DEPTHS,
         [[percent(run.load_balance, 0) for run in layer.by_depth] for layer in layers]),
        (f"times as fast as one element, queue {QUEUE_DEPTH}", COUNTS,
         [[f"{layer.by_elements[0].cycles / run.cycles:.1f}" for run in layer.by_elements] for layer in layers]),
        (f"load balance over the number of elements, queue {QUEUE_DEPTH}", COUNTS,
         [[percent(run.load_balance, 0) for run in layer.by_elements] for layer in layers]),
        ("real work / total work over the number of elements", COUNTS,
         [[percent(run.real_work, 0) for run in layer.by_elements] for layer in layers]),
    ]  # fmt: skip
    for title, values, cells in sweeps:
        yield title, ["layer", *map(str, values)], [[name, *row] for name, row in zip(names, cells, strict=True)]


def _stored_text(layers: Sequence[StoredLayer]) -> str:
    head = ["layer", "rows", "columns", "density", "padding", "dense bytes", "stored bytes", "ratio", "Huffman bytes"]
    dense = sum(layer.dense_bytes for layer in layers)
    stored = sum(layer.stored_bytes for layer in layers)
    coded = sum(layer.huffman_bytes for layer in layers)
    rows = [
        [
            layer.name, f"{layer.rows}", f"{layer.columns}", percent(layer.nonzeros / (layer.rows * layer.columns), 1),
            f"{layer.padding:,}", f"{layer.dense_bytes:,}", f"{layer.stored_bytes:,}",
            f"{layer.dense_bytes / layer.stored_bytes:.1f}", f"{layer.huffman_bytes:,}",
        ]
        for layer in layers
    ]  # fmt: skip
    total = ["all", "", "", "", "", f"{dense:,}", f"{stored:,}", f"{dense / stored:.1f}", f"{coded:,}"]
    return _table(head, [*rows, total])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for first, *cells in [head, *rows]:
        right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *right]))
    return "\n".join(lines)


def _plots(layers: Sequence[SimulatedLayer]) -> list[page.Plot]:
    names = [layer.name for layer in layers]
    times = [
        ("simulated", [layer.simulated_us for layer in layers]),
        ("paper, actual", [layer.paper_actual_us for layer in layers]),
        ("paper, theoretical", [layer.paper_theoretical_us for layer in layers]),
    ]
    return [
        page.bars_plot("Time of a layer", "microseconds", names, times),
        page.curves_plot(
            f"Load balance over the depth of the queue, {ELEMENTS} elements", "places", "load balance", DEPTHS,
            [(layer.name, [run.load_balance for run in layer.by_depth]) for layer in layers], shares=True,
        ),
        page.curves_plot(
            f"Times as fast as one element, queue {QUEUE_DEPTH}", "elements", "speed-up", COUNTS,
            [(layer.name, [layer.by_elements[0].cycles / run.cycles for run in layer.by_elements]) for layer in layers],
        ),
        page.curves_plot(
            f"Load balance over the number of elements, queue {QUEUE_DEPTH}", "elements", "load balance", COUNTS,
            [(layer.name, [run.load_balance for run in layer.by_elements]) for layer in layers], shares=True,
        ),
        page.curves_plot(
            "Real work over total work: what padding leaves", "elements", "real work / total work", COUNTS,
            [(layer.name, [run.real_work for run in layer.by_elements]) for layer in layers], shares=True,
        ),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
