"""Pages and their parts, as HTML: sections, tables, legends, drawings; whatever comes in is escaped here."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence

from search.results import Results
from search.svg import colour, marker
from search.tables import agents_of
from search.theme import CSS

_TEXT_COLUMNS = {"job", "agent", "trials", "layer", "network", "run by", "geometry"}
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_NARROW, _WIDE = 360, 960


def page(title: str, sections: Iterable[str]) -> str:
    """A whole page that needs no network, of sections that are HTML already; empty ones are left out."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{CSS}\n</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """As HTML, without what is meant for a terminal."""
    return html.escape(_TERMINAL_CODES.sub("", text))


def prose(text: str) -> str:
    """Escaped, with no line break between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|points|[kMGTsh]|min|images)", "&nbsp;", escape(text))


def stacked(cell: str) -> str:
    """A cell, escaped, with what stands in brackets at its end on a second line."""
    return re.sub(r" \(([^)]*)\)$", r"<br><small>\1</small>", escape(cell))


def section(title: str, caption: str, content: str) -> str:
    """A card of the page; `content` is HTML already."""
    said = f'<p class="caption">{escape(caption)}</p>' if caption else ""
    return f"<section>\n<h2>{escape(title)}</h2>{said}\n{content}\n</section>"


def table(headings: Sequence[str], rows: Iterable[str], css: str = "") -> str:
    """A table of the rows that `row` made."""
    head = "".join(f"<th{_text_class(heading)}>{escape(heading)}</th>" for heading in headings)
    return (
        f'<div class="scroll"><table class="{css}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def row(headings: Sequence[str], cells: Sequence[str], css: str = "") -> str:
    """A row of cells that are HTML already."""
    marked = (f"<td{_text_class(heading)}>{cell}</td>" for heading, cell in zip(headings, cells, strict=False))
    return f'<tr class="{css}">{"".join(marked)}</tr>'


def legend(results: Results) -> str:
    """The agents with their markers."""
    items = (f"<li>{swatch(index)}{escape(agent)}</li>" for index, agent in enumerate(agents_of(results)))
    return f'<ul class="legend">{"".join(items)}</ul>'


def swatch(index: int) -> str:
    """The marker of the agent of this index, as it stands beside its name."""
    return (
        '<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true">'
        f"{marker(index, 7, 7, 5, f'swatch-mark {colour(index)}')}</svg>"
    )


def share_bar(share: float, css: str) -> str:
    """A cell with a bar of this share of its width, in [0, 1]."""
    return (
        f'<td class="bar {css}"><svg viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="bar" width="{100 * share:.1f}" height="1"/></svg></td>'
    )


def both(draw: Callable[[int], str]) -> str:
    """The drawing as it fits a desktop and as it fits a phone; the page shows one of them."""
    return "".join(
        f'<figure class="plot {css}">{draw(width)}</figure>' for css, width in (("wide", _WIDE), ("narrow", _NARROW))
    )


def _text_class(heading: str) -> str:
    return f' class="text {heading}"' if heading in _TEXT_COLUMNS else ""
