"""Figures as people read them: percentages, amounts, durations, costs, and errors of an objective."""

from __future__ import annotations

import math

from amc_env.objectives import find_objective

#: stands for a figure that there is not
NONE = "-"
_COST_NAMES = {"macs": "MACs", "latency_ms": "latency"}


def percent(fraction: float | None, digits: int = 2) -> str:
    """As "84.12 %", or a dash for None."""
    return NONE if fraction is None else f"{100 * fraction:.{digits}f} %"


def human(value: float | None, unit: str = "") -> str:
    """Three significant digits with an SI prefix: "62.9 M", "1.70 MB" (unit "bytes"), "312 MACs"."""
    if value is None:
        return NONE
    steps = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    factor, prefix = next((step for step in steps if abs(value) >= 0.9995 * step[0]), (1.0, ""))
    scaled = value / factor
    digits = 0 if abs(scaled) >= 99.95 or (not prefix and scaled == round(scaled)) else 1 if abs(scaled) >= 9.995 else 2
    if 0 < abs(scaled) < 0.9995:
        digits = 2 - math.floor(math.log10(abs(scaled)))
    unit = "B" if unit == "bytes" and prefix else unit
    separator = "" if unit == "B" else " "
    return f"{scaled:.{digits}f} {prefix}{separator if prefix else ''}{unit}".strip()


def duration(seconds: float) -> str:
    """As "41 s", "12 min 5 s" or "3 h 20 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def cost_label(cost: str) -> str:
    """How tables name a cost."""
    return _COST_NAMES.get(cost, cost)


def objective_label(objective: str) -> str:
    """How tables name the error of an objective: "top5 error", "agreement (nats)", "module:function"."""
    if ":" in objective:
        return objective
    if is_top_k(objective):
        return f"{objective} error"
    return f"{objective} ({find_objective(objective).unit})"


def error_text(objective: str, error: float | None) -> str:
    """An error of the objective for people: of top-k a percentage, else four significant digits."""
    if error is None:
        return NONE
    return percent(error) if is_top_k(objective) else f"{error:.4g}"


def is_top_k(objective: str) -> bool:
    """Whether its errors are fractions of the images."""
    return objective.startswith("top") and ":" not in objective
