"""Agents at several budgets as one SVG image, from the tables of result pages, so that both show the same numbers.

A panel for each page, a row for each agent that all pages have, a mark for each seed at its top-1 on the test split.
Rows are in the order of the mean place that agents take on the search split, by which the tables are sorted.

    python scripts/plot_agents.py docs/results/resnet56-{70-percent,half,30-percent}.md --out docs/results/agents.svg
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from hw.files import write_atomically
from search.svg import Frame, colour, line, marker, number, padded, text, tick_step, ticks, x_axis
from search.theme import CSS

_LETTER, _PANEL, _GAP = 8, 262, 26  # widths in pixels
_TOP, _ROW, _BOTTOM = 60, 27, 46
_TITLE = re.compile(r"^# .* at (.+): every agent$", re.MULTILINE)
_DENSE = re.compile(r"\(dense\s+([\d.]+)\s%\)")
# agent, evaluations, divergence on the search split and on the test split, top-1; of each seed, or once for all
_AGENT = re.compile(r"^\| `([\w-]+)` \| [\d, ]+ \| [\d., ]+ \| [\d., ]+ \| ([\d., ]+) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Page:
    """What a page says: of which budget, the dense network's top-1 and that of each agent's seeds, in percent."""

    budget: str
    dense: str
    agents: dict[str, list[float]]


def main() -> None:
    """Draw the pages of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path, help="Markdown, as docs/results/resnet56-half.md")
    parser.add_argument("--out", type=Path, required=True, help="the image")
    options = parser.parse_args()
    try:
        pages = [read_page(path) for path in options.pages]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    names = [name for name in pages[0].agents if all(name in page.agents for page in pages)]
    if not names:
        parser.error(f"no agent stands on all of {', '.join(map(str, options.pages))}")
    names.sort(key=lambda name: mean(list(page.agents).index(name) for page in pages))
    left = _LETTER * max(map(len, names)) + 10
    width, height = left + len(pages) * (_PANEL + _GAP), _TOP + _ROW * len(names) + _BOTTOM
    parts = [text(0, _TOP + (row + 0.5) * _ROW + 4, name, "panel") for row, name in enumerate(names)]
    for place, page in enumerate(pages):
        parts.append(f'<g transform="translate({left + place * (_PANEL + _GAP)} 0)">')
        parts += [*_panel(page, names, height), "</g>"]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="Test top-1 of {", ".join(names)}, by seed" '
        f'viewBox="-18 0 {width + 18} {height}" width="{width + 18}" height="{height}">\n<style>\n{CSS}\n'
        f"svg {{ font-family: system-ui, sans-serif; background: var(--card); }}\n</style>"
    )
    write_atomically(options.out, "\n".join([head, *parts, "</svg>\n"]))


def read_page(path: Path) -> Page:
    """The budget, the dense network and the agents of a page.

    Raises:
        OSError: there is no such file.
        ValueError: one of them does not stand there.
    """
    page = path.read_text(encoding="utf-8")
    title, dense, agents = _TITLE.search(page), _DENSE.search(page), _AGENT.findall(page)
    if not (title and dense and agents):
        raise ValueError(
            f"{path}: expected a title '# … at …: every agent', '(dense … %)' and rows '| `agent` | evaluations | "
            f"divergence, search | divergence, test | test top-1 |'"
        )
    return Page(title[1], dense[1], {name: [float(value) for value in seeds.split(",")] for name, seeds in agents})


def _panel(page: Page, names: Sequence[str], height: float) -> list[str]:
    frame = Frame(_PANEL, height, left=0, right=0, top=_TOP, bottom=_BOTTOM)
    x = frame.x(*padded([value for name in names for value in page.agents[name]], 0.07))
    values, step = ticks(x.low, x.high, 5), tick_step(x.low, x.high, 5)
    parts = [text(0, 22, page.budget, "panel"), text(0, 40, f"dense {page.dense} %", "note")]
    parts += [line(x(value), _TOP, x(value), height - _BOTTOM, "grid") for value in values]
    parts += x_axis(frame, x, values, [number(value, step) for value in values], "top-1, test split, %")
    for row, name in enumerate(names):
        middle = _TOP + (row + 0.5) * _ROW
        parts += [marker(row, x(value), middle, 5.5, f"winner {colour(row)}") for value in page.agents[name]]
    return parts


if __name__ == "__main__":
    main()
