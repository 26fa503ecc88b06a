"""Agents at several budgets as one SVG image: a panel for each budget, a row for each agent, a mark for each seed.

Rows are in the order of the mean place that agents take on the search split; marks show top-1 on the test split.

    python scripts/plot_agents.py runs/70-percent runs/half runs/30-percent --out agents.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from hw.files import write_atomically
from search.figures import percent
from search.job import load_results
from search.ranking import Entrant, ranked
from search.results import Results
from search.standing import differences
from search.svg import Frame, colour, line, marker, number, padded, text, tick_step, ticks, x_axis
from search.theme import CSS

_LETTER, _PANEL, _GAP = 8, 262, 26  # widths in pixels
_TOP, _ROW, _BOTTOM = 60, 27, 46
_UNITS = {"macs": "MACs", "size": "bytes", "latency_ms": "latency"}


def main() -> None:
    """Draw the jobs of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "jobs", nargs="+", type=Path, help="folders of finished jobs; agents count that ran under each of their budgets"
    )
    parser.add_argument("--out", type=Path, required=True, help="the image")
    options = parser.parse_args()
    panels: dict[str, list[Results]] = {}
    for job in options.jobs:
        results = load_results(job)
        panels.setdefault(str(results.spec["budget"]), []).append(results)
    for budget, jobs in panels.items():
        if others := differences(jobs):
            parser.error(f"the jobs of budget {budget} are not of one problem, they differ in {', '.join(others)}")
    orders = [
        {entrant.name: entrant for entrant in ranked(trial for job in jobs for trial in job.trials)}
        for jobs in panels.values()
    ]
    names = [name for name in orders[0] if all(name in order for order in orders)]
    names.sort(key=lambda name: mean(list(order).index(name) for order in orders))
    left = _LETTER * max(map(len, names)) + 10
    width, height = left + len(panels) * (_PANEL + _GAP), _TOP + _ROW * len(names) + _BOTTOM
    parts = [text(0, _TOP + (row + 0.5) * _ROW + 4, name, "panel") for row, name in enumerate(names)]
    for place, (jobs, order) in enumerate(zip(panels.values(), orders, strict=True)):
        parts.append(f'<g transform="translate({left + place * (_PANEL + _GAP)} 0)">')
        parts += [*_panel(jobs[0], [order[name] for name in names], height), "</g>"]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="Test top-1 of {", ".join(names)}, by seed" '
        f'viewBox="-18 0 {width + 18} {height}" width="{width + 18}" height="{height}">\n<style>\n{CSS}\n'
        f"svg {{ font-family: system-ui, sans-serif; background: var(--card); }}\n</style>"
    )
    write_atomically(options.out, "\n".join([head, *parts, "</svg>\n"]))


def _panel(results: Results, entrants: Sequence[Entrant], height: float) -> list[str]:
    """One budget: each seed of each agent at its accuracy in percent."""
    frame = Frame(_PANEL, height, left=0, right=0, top=_TOP, bottom=_BOTTOM)
    x = frame.x(*padded([100 * value for entrant in entrants for value in entrant.scores.values], 0.07))
    values, step = ticks(x.low, x.high, 5), tick_step(x.low, x.high, 5)
    budget = " and ".join(f"{limit} of the {_UNITS[cost]}" for cost, limit in results.spec["budget"].items())
    parts = [text(0, 22, budget.replace("%", " %"), "panel")]
    parts.append(text(0, 40, f"dense {percent(results.dense.test_accuracy)}", "note"))
    parts += [line(x(value), _TOP, x(value), height - _BOTTOM, "grid") for value in values]
    parts += x_axis(frame, x, values, [number(value, step) for value in values], "top-1, test split, %")
    for row, entrant in enumerate(entrants):
        middle = _TOP + (row + 0.5) * _ROW
        parts += [marker(row, x(100 * value), middle, 5.5, f"winner {colour(row)}") for value in entrant.scores.values]
    return parts


if __name__ == "__main__":
    main()
