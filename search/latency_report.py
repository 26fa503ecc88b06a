"""What is said and drawn of latency: verification of a table, difference of two, winners against the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from hw.latency_table import Entry, LatencyTable, describe
from search.columns import aligned
from search.figures import human, percent
from search.latency import Verification
from search.page_parts import both, escape, page, section
from search.results import LatencyRecord, StaircaseRecord
from search.svg import (
    Frame,
    colour,
    dots,
    drawing,
    line,
    marker,
    number,
    padded,
    path,
    text,
    tick_step,
    ticks,
    x_axis,
    y_axis,
)

_RELIABLE = 0.03  # median error of a network left out of the fit


def verification_text(table: LatencyTable, checked: Verification) -> str:
    """The figures of a verification as lines for people."""
    errors, noise = np.abs(checked.errors), np.abs(checked.noise)
    speeds = f"{min(checked.speeds):.2f} to {max(checked.speeds):.2f}"
    headings = ("", "median", "95 %", "largest", "rank correlation")
    rows = [
        ("predicted / measured", *_spread(errors), f"{checked.rank_correlation:.4f}"),
        ("sum of entries alone", *_spread(np.abs(np.array(checked.sum_errors))), ""),
        ("same network, twice", *_spread(noise), f"{checked.noise_rank_correlation:.4f}"),
    ]
    head = f"{len(checked.networks)} random policies, {table.conditions}, bias {percent(float(checked.errors.mean()))}"
    tail = f"dense network in each batch, against the table's: {speeds} times; divided out of the times above"
    return f"{head}\n{aligned(headings, rows, left={''})}{tail}"


def verification_content(table: LatencyTable, checked: Verification) -> dict[str, Any]:
    """The same and every policy, as plain values for JSON."""
    errors, noise = np.abs(checked.errors), np.abs(checked.noise)
    return {
        "conditions": asdict(table.conditions),
        "policies": len(checked.networks),
        "median_error": float(np.median(errors)),
        "p95_error": float(np.percentile(errors, 95)),
        "largest_error": float(errors.max()),
        "bias": float(checked.errors.mean()),
        "rank_correlation": checked.rank_correlation,
        "sum_median_error": float(np.median(np.abs(checked.sum_errors))),
        "noise_median": float(np.median(noise)),
        "noise_p95": float(np.percentile(noise, 95)),
        "noise_rank_correlation": checked.noise_rank_correlation,
        "speeds": list(checked.speeds),
        "networks": [asdict(network) for network in checked.networks],
    }


def verification_page(table: LatencyTable, checked: Verification) -> str:
    """A page with the plot, that needs no network."""
    pairs = [(network.predicted_ms, network.measured_ms) for network in checked.networks]
    plot = both(lambda width: prediction_plot(pairs, [], width=width))
    content = f"<pre>{escape(verification_text(table, checked))}</pre>\n{plot}"
    return page("Latency", [section("Predicted against measured latency", "", content)])


def prediction_plot(
    checks: Sequence[tuple[float, float]], winners: Sequence[tuple[float, float, int, str]], *, width: int = 960
) -> str:
    """Predicted against measured milliseconds, with the diagonal and 5 % beside it.

    Args:
        checks: predicted and measured of each network.
        winners: predicted, measured, index of the agent, and a tip, of each best policy.
        width: of the drawing.
    """
    label = "Measured latency against predicted latency"
    points = [*checks, *((predicted, measured) for predicted, measured, _, _ in winners)]
    if not points:
        return drawing(width, 48, label, [text(width / 2, 28, "no network was timed", "axis", "middle")])
    height = min(width, 460)
    frame = Frame(width, height, left=64)
    low, high = padded([value for pair in points for value in pair], share=0.04)
    x, y = frame.x(low, high), frame.y(low, high)
    y_values, x_values = ticks(low, high, height // 45), ticks(low, high, width // 85)
    parts = y_axis(
        frame, y, y_values, [number(v, tick_step(low, high, height // 45)) for v in y_values], "measured, ms"
    )
    parts += x_axis(
        frame, x, x_values, [number(v, tick_step(low, high, width // 85)) for v in x_values], "predicted, ms"
    )
    for share in (0.95, 1.0, 1.05):
        start, end = max(low, low / share), min(high, high / share)
        css = "front" if share == 1.0 else "limit"
        parts.append(line(x(start), y(start * share), x(end), y(end * share), css))
    parts.append(dots([(x(predicted), y(measured)) for predicted, measured in checks], "cloud c0"))
    for predicted, measured, index, tip in winners:
        parts.append(marker(index, x(predicted), y(measured), 7, f"winner {colour(index)}", tip))
    return drawing(width, height, label, parts)


def staircase_plot(staircase: StaircaseRecord, *, width: int = 960, height: int = 300) -> str:
    """Latency of one layer over its channels: the table's curve, and its entries with their 10th to 90th percentile."""
    frame = Frame(width, height, left=64)
    widths = [channels for channels, _ in staircase.curve]
    top = max([ms for _, ms in staircase.curve] + [high for _, _, _, high in staircase.entries])
    x, y = frame.x(0, max(widths)), frame.y(0, top * 1.05)
    y_values, x_values = ticks(0, top * 1.05, height // 45), ticks(0, max(widths), width // 85)
    parts = y_axis(frame, y, y_values, [number(v, tick_step(0, top * 1.05, height // 45)) for v in y_values], "ms")
    parts += x_axis(frame, x, x_values, [f"{v:.0f}" for v in x_values], f"{staircase.axis} channels")
    curve = path([(x(channels), y(ms)) for channels, ms in staircase.curve], "curve c0")
    parts.append(curve)
    for channels, mean, low, high in staircase.entries:
        place = x(channels)
        parts.append(line(place, y(low), place, y(high), "base"))
        tip = f"{channels} channels: {mean:.4f} ms ({low:.4f} to {high:.4f})"
        parts.append(marker(0, place, y(mean), 4, "winner c0", tip))
    return drawing(width, height, f"Latency of {staircase.layer} over its {staircase.axis} channels", parts)


def latency_verdict(record: LatencyRecord, widths: tuple[int, ...]) -> str:
    """Whether the policy of these widths holds the budget when it is timed, in a sentence."""
    timed = next((policy for policy in record.policies if policy.widths == widths), None)
    if timed is None:
        return f"Its latency was not measured: {record.unmeasured}."
    over = timed.measured_ms / record.limit_ms - 1.0
    said = (
        f"holds the budget of {human(record.limit_ms, 'ms')}"
        if over <= 0
        else f"misses the budget of {human(record.limit_ms, 'ms')} by {percent(over, 1)}"
    )
    return (
        f"Measured end to end it takes {human(timed.measured_ms, 'ms')} (predicted {human(timed.predicted_ms, 'ms')}) "
        f"and {said}: {timed.speedup:.2f} times as fast as the dense network."
    )


def reliability_warning(error: float | None) -> str:
    """What a reader must know of a table whose predictions of networks left out err by so much; "" if nothing."""
    if error is None or error <= _RELIABLE:
        return ""
    return (
        f"The latency table predicts networks that it has seen no better than to {percent(error, 1)} (median): the "
        f"machine was busy when it was measured. Build it again on a quiet machine."
    )


@dataclass(frozen=True)
class TableDifference:
    """Entries that two tables share: time in the second / time in the first.

    Attributes:
        ratios: shape in words, and the ratio, largest first.
        only_first, only_second: numbers of entries that the other lacks.
        changed: conditions and host facts that differ: name, first, second.
    """

    ratios: tuple[tuple[str, float], ...]
    only_first: int
    only_second: int
    changed: tuple[tuple[str, str, str], ...]

    def content(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return asdict(self)

    def text(self) -> str:
        """As lines for people."""
        lines = [f"{name}: {first} -> {second}" for name, first, second in self.changed]
        lines.append(
            f"{len(self.ratios):,} entries in both, {self.only_first:,} only in the first, {self.only_second:,} only "
            f"in the second"
        )
        if self.ratios:
            values = [ratio for _, ratio in self.ratios]
            low, high = np.percentile(values, (5, 95))
            lines.append(f"second / first: median {median(values):.3f}, 5th to 95th percentile {low:.3f} to {high:.3f}")
            shown = [*self.ratios[:5], *self.ratios[5:][-5:]]
            lines += [f"  {ratio:7.3f}  {shape}" for shape, ratio in shown]
        return "\n".join(lines)


def table_difference(first: LatencyTable, second: LatencyTable) -> TableDifference:
    """Compare the entries of two tables, shape by shape."""
    one, other = ({entry.shape: entry for entry in table.entries} for table in (first, second))
    shared = [(describe(shape), _ratio(one[shape], other[shape])) for shape in one if shape in other]
    facts = [
        {**{key: str(value) for key, value in asdict(table.conditions).items()}, "processor": table.host.processor}
        | dict(table.host.versions)
        for table in (first, second)
    ]
    names = dict.fromkeys([*facts[0], *facts[1]])
    return TableDifference(
        tuple(sorted(shared, key=lambda pair: -pair[1])),
        len(one) - len(shared),
        len(other) - len(shared),
        tuple(
            (name, facts[0].get(name, "-"), facts[1].get(name, "-"))
            for name in names
            if facts[0].get(name) != facts[1].get(name)
        ),
    )


def _ratio(first: Entry, second: Entry) -> float:
    return second.mean / first.mean if first.mean > 0 else float("inf")


def _spread(values: np.ndarray[Any, Any]) -> tuple[str, str, str]:
    return percent(float(np.median(values))), percent(float(np.percentile(values, 95))), percent(float(values.max()))
