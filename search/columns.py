"""Tables as text. Needs nothing else, so that what only lists jobs loads no torch."""

from __future__ import annotations

from collections.abc import Container, Sequence

#: headings of the columns that hold words
LEFT = frozenset({"job", "agent", "trials"})


def aligned(headings: Sequence[str], cells: Sequence[Sequence[str]], left: Container[str] = LEFT) -> str:
    """A table as text in columns, with a rule below the headings; those with a heading in `left` begin at the left."""
    table = [headings, *cells]
    widths = [max(len(line[column]) for line in table) for column in range(len(headings))]
    lines = [
        "  ".join(
            cell.ljust(width) if heading in left else cell.rjust(width)
            for heading, cell, width in zip(headings, line, widths, strict=True)
        ).rstrip()
        for line in table
    ]
    rule = "  ".join("─" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"
