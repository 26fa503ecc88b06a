"""Small parts of which the plots are drawn: scales, ticks, markers, text. Colours are classes of `theme.CSS`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape, quoteattr

SHAPES = ("circle", "square", "triangle", "diamond", "cross")
COLOURS = 12

Point = tuple[float, float]


@dataclass(frozen=True)
class Scale:
    """Values low..high onto pixels start..end; values outside are moved to the nearer end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


@dataclass(frozen=True)
class Frame:
    """A plot area within a drawing of this width and height, in pixels."""

    width: float
    height: float
    left: float = 56
    right: float = 14
    top: float = 14
    bottom: float = 46

    def x(self, low: float, high: float) -> Scale:
        return Scale(low, high, self.left, self.width - self.right)

    def y(self, low: float, high: float) -> Scale:
        return Scale(low, high, self.height - self.bottom, self.top)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) within low..high, about `count` of them."""
    step = tick_step(low, high, count)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_step(low: float, high: float, count: int) -> float:
    """The distance of `ticks`."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))


def padded(values: Iterable[float], share: float = 0.05, least: float = 1e-6) -> tuple[float, float]:
    """The range of the values, at least `least` wide and `share` of its width wider at each end."""
    present = list(values)
    low, high = min(present), max(present)
    missing = max(least - (high - low), 0.0) / 2
    pad = (high - low + 2 * missing) * share + missing
    return low - pad, high + pad


def number(value: float, step: float) -> str:
    """A tick's value with as many decimals as its step needs; a true minus sign."""
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{digits}f}".replace("-", "\u2212")


def text(x: float, y: float, content: str, css: str = "label", anchor: str = "start", turn: float = 0) -> str:
    """A text; `turn` degrees around its anchor."""
    rotation = f' transform="rotate({turn:g} {x:g} {y:g})"' if turn else ""
    return f'<text class="{css}" x="{x:g}" y="{y:g}" text-anchor="{anchor}"{rotation}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """A straight line."""
    return f'<line class="{css}" x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}"/>'


def path(points: Sequence[Point], css: str, closed: bool = False) -> str:
    """A polygon line through the points."""
    steps = "L".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path class="{css}" d="M{steps}{"Z" if closed else ""}"/>'


def shortened(name: str, longest: int = 26) -> str:
    """The name, or its beginning and its end."""
    return name if len(name) <= longest else f"{name[: longest // 2 - 1]}…{name[-(longest - longest // 2) :]}"


def rectangle(x: float, y: float, width: float, height: float, css: str) -> str:
    """A rectangle from its upper left corner."""
    return f'<rect class="{css}" x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"/>'


def dots(points: Iterable[Point], css: str) -> str:
    """Many round dots as one short path: each a line of no length with round ends."""
    return f'<path class="{css}" d="{"".join(f"M{x:g} {y:g}h0" for x, y in points)}"/>'


def steps(points: Sequence[Point]) -> list[Point]:
    """The corners of the staircase that keeps each y until the next x."""
    corners = list(points[:1])
    for x, y in points[1:]:
        corners += [(x, corners[-1][1]), (x, y)]
    return corners


def marker(index: int, x: float, y: float, radius: float, css: str, tip: str = "") -> str:
    """The marker of the agent of this index, with a tooltip."""
    title = f"<title>{escape(tip)}</title>" if tip else ""
    shape = SHAPES[index % len(SHAPES)]
    if shape == "circle":
        return f'<circle class="{css}" cx="{x:g}" cy="{y:g}" r="{radius:g}">{title}</circle>'
    outline = {
        "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
        "triangle": [(0, -1.2), (1.1, 0.8), (-1.1, 0.8)],
        "diamond": [(0, -1.3), (1.2, 0), (0, 1.3), (-1.2, 0)],
        "cross": [(-0.4, -1.1), (0.4, -1.1), (0.4, -0.4), (1.1, -0.4), (1.1, 0.4), (0.4, 0.4),
                  (0.4, 1.1), (-0.4, 1.1), (-0.4, 0.4), (-1.1, 0.4), (-1.1, -0.4), (-0.4, -0.4)],
    }[shape]  # fmt: skip
    corners = " ".join(f"{x + radius * dx:.2f},{y + radius * dy:.2f}" for dx, dy in outline)
    return f'<polygon class="{css}" points="{corners}">{title}</polygon>'


def colour(index: int) -> str:
    """The class that sets the colour of the agent of this index."""
    return f"c{index % COLOURS}"


def y_axis(frame: Frame, scale: Scale, values: Sequence[float], labels: Sequence[str], title: str) -> list[str]:
    """Horizontal grid lines with labels, and the axis title along the left edge."""
    middle = (frame.top + frame.height - frame.bottom) / 2
    parts = [text(13, middle, title, "axis", "middle", turn=-90)] if title else []
    for value, label in zip(values, labels, strict=True):
        y = scale(value)
        parts.append(line(frame.left, y, frame.width - frame.right, y, "grid"))
        parts.append(text(frame.left - 8, y + 4, label, "label", "end"))
    return parts


def x_axis(frame: Frame, scale: Scale, values: Sequence[float], labels: Sequence[str], title: str) -> list[str]:
    """The base line with tick labels and the axis title below; a line break in a label starts a fainter second line."""
    base = frame.height - frame.bottom
    parts = [line(frame.left, base, frame.width - frame.right, base, "base")]
    for value, label in zip(values, labels, strict=True):
        x = scale(value)
        first, _, second = label.partition("\n")
        parts.append(line(x, base, x, base + 4, "base"))
        parts.append(text(x, base + 18, first, "label", "middle"))
        if second:
            parts.append(text(x, base + 32, second, "faint", "middle"))
    middle = (frame.left + frame.width - frame.right) / 2
    return [*parts, text(middle, frame.height - 6, title, "axis", "middle")]


def drawing(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    """The whole drawing, with the text that a screen reader says."""
    head = f'<svg role="img" viewBox="0 0 {width:g} {height:g}" aria-label={quoteattr(label)}>'
    return "\n".join([head, *parts, "</svg>"])


def empty(width: float, label: str, reason: str) -> str:
    """A drawing of nothing but the reason why."""
    return drawing(width, 48, label, [text(width / 2, 28, reason, "axis", "middle")])


def listed(names: Iterable[str]) -> str:
    """The agents that a drawing shows, for its label."""
    return ", ".join(names) or "no agent"
