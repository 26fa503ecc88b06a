"""The comparison of agents as rows, and the rows as text, CSV, JSON or Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, get_args

from hw.cost import COST_MODELS
from search.results import PolicyRecord, Results, TrialRecord

TableFormat = Literal["table", "csv", "json", "md"]

_NONE = "-"
_COST_NAMES = {"macs": "MACs"}


@dataclass(frozen=True)
class Row:
    """One agent of one job, or the job's dense network (`kind` "dense", the first row of its job).

    All figures are of the finished trials alone. The winner is the policy of the highest reward on the search
    split; the test split chooses nothing.

    Attributes:
        job, spec_id: name and identity of the job's spec.
        agent, kind: the agent's label and algorithm.
        seeds: trials the job asked for.
        finished, failed, interrupted: how they ended.
        feasible: finished trials that found a policy within all budgets.
        evaluations, distinct: sums over the finished trials.
        best_reward, best_seed: of the winner.
        search_accuracy, test_accuracy: of the winner, fractions.
        test_mean, test_std: over the best policies of the feasible trials; the sample deviation, if two or more.
        costs: of the winner, in the unit of each cost.
        relative_costs: the same as fractions of the dense network's.
        seconds: sum over the finished trials.
    """

    job: str
    spec_id: str
    agent: str
    kind: str
    seeds: int
    finished: int
    failed: int
    interrupted: int
    feasible: int
    evaluations: int
    distinct: int
    best_reward: float | None
    best_seed: int | None
    search_accuracy: float | None
    test_accuracy: float | None
    test_mean: float | None
    test_std: float | None
    costs: Mapping[str, float]
    relative_costs: Mapping[str, float]
    seconds: float

    @property
    def state(self) -> str:
        """How the trials ended, for people: "3 finished", "1 of 3 finished, 2 failed"."""
        if self.kind == "dense":
            return _NONE
        parts = [str(self.finished) if self.finished == self.seeds else f"{self.finished} of {self.seeds}"]
        parts[0] += " finished"
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [f"{self.interrupted} interrupted"] if self.interrupted else []
        if self.feasible < self.finished:
            parts.append(f"{self.finished - self.feasible} found no feasible policy")
        return ", ".join(parts)


def agents_of(results: Results) -> tuple[str, ...]:
    """The labels of a job's agents, in the order of its trials."""
    return tuple(dict.fromkeys(trial.agent for trial in results.trials))


def finished_trials(results: Results, agent: str) -> list[TrialRecord]:
    """The finished trials of an agent."""
    return [trial for trial in results.trials if trial.agent == agent and trial.status == "finished"]


def winner(trials: Sequence[TrialRecord]) -> tuple[TrialRecord, PolicyRecord] | None:
    """The policy of the highest reward (on the search split) of the finished trials, the first of equals."""
    found = [(trial, trial.best) for trial in trials if trial.status == "finished" and trial.best is not None]
    return max(found, key=lambda pair: pair[1].reward, default=None)


def unit_of(results: Results, cost: str) -> str:
    """The unit of a cost: the budget's, else the cost model's; "" if neither is known."""
    units = {budget.cost: budget.unit for budget in results.budgets}
    if cost in units:
        return units[cost]
    return COST_MODELS[cost]().unit if cost in COST_MODELS else ""


def budgeted_costs(results: Results) -> tuple[str, ...]:
    """The costs that have a budget; without any, the first that is counted."""
    return tuple(dict.fromkeys(budget.cost for budget in results.budgets)) or tuple(results.dense.costs)[:1]


def compare(results: Sequence[Results]) -> list[Row]:
    """Per job a row for the dense network and one for each agent, in the order of the job."""
    return [row for job in results for row in (_dense_row(job), *(_agent_row(job, agent) for agent in agents_of(job)))]


def format_rows(rows: Sequence[Row], format: TableFormat = "table") -> str:  # noqa: A002 - the option's name
    """The rows as aligned text, CSV or JSON (every field, full precision) or Markdown; ends with a newline.

    Raises:
        ValueError: unknown format.
    """
    if format not in get_args(TableFormat):
        raise ValueError(f"format: expected one of {', '.join(get_args(TableFormat))}, got {format!r}")
    return {"table": _text, "csv": _csv, "json": _json, "md": _markdown}[format](rows)


def display_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells for people. The job is named if there are several, the states if a trial is missing."""
    columns: dict[str, Callable[[Row], str]] = {
        "agent": lambda row: _line(row.agent),
        "seeds": lambda row: _NONE if row.kind == "dense" else str(row.finished),
        "evaluations": lambda row: _NONE if row.kind == "dense" else f"{row.evaluations:,}",
        "distinct": lambda row: _NONE if row.kind == "dense" else f"{row.distinct:,}",
        "best reward": lambda row: _NONE if row.best_reward is None else f"{row.best_reward:.4f}",
        "search": lambda row: percent(row.search_accuracy),
        "test": lambda row: percent(row.test_accuracy),
        "test mean ± std": _mean_and_std,
    }
    for cost in _cost_names(rows):
        columns[cost_label(cost)] = partial(_cost_of, cost)
    columns["time"] = lambda row: _NONE if row.kind == "dense" else duration(row.seconds)
    if len({(row.job, row.spec_id) for row in rows}) > 1:
        columns = {"job": lambda row: _line(row.job), **columns}
    if any(row.feasible < row.seeds for row in rows):
        columns["trials"] = lambda row: row.state
    return list(columns), [[cell(row) for cell in columns.values()] for row in rows]


def percent(fraction: float | None, digits: int = 2) -> str:
    """As "84.12 %", or a dash for None."""
    return _NONE if fraction is None else f"{100 * fraction:.{digits}f} %"


def human(value: float | None, unit: str = "") -> str:
    """Three significant digits with an SI prefix: "62.9 M", "1.70 MB" (unit "bytes"), "312 MACs"."""
    if value is None:
        return _NONE
    steps = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
    factor, prefix = next((step for step in steps if abs(value) >= 0.9995 * step[0]), (1.0, ""))
    scaled = value / factor
    digits = 0 if abs(scaled) >= 99.95 or (not prefix and scaled == round(scaled)) else 1 if abs(scaled) >= 9.995 else 2
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


def _dense_row(results: Results) -> Row:
    dense = results.dense
    return Row(
        job=results.name, spec_id=results.spec_id, agent="dense", kind="dense",
        seeds=0, finished=0, failed=0, interrupted=0, feasible=0, evaluations=0, distinct=0,
        best_reward=None, best_seed=None,
        search_accuracy=dense.search_accuracy, test_accuracy=dense.test_accuracy, test_mean=None, test_std=None,
        costs=dict(dense.costs), relative_costs=dict.fromkeys(dense.costs, 1.0), seconds=0.0,
    )  # fmt: skip


def _agent_row(results: Results, agent: str) -> Row:
    trials = [trial for trial in results.trials if trial.agent == agent]
    finished = finished_trials(results, agent)
    tests = [trial.best.test_accuracy for trial in finished if trial.best is not None]
    found = winner(finished)
    best = found[1] if found else None
    costs = dict(best.costs) if best else {}
    return Row(
        job=results.name,
        spec_id=results.spec_id,
        agent=agent,
        kind=trials[0].kind,
        seeds=len(trials),
        finished=len(finished),
        failed=sum(trial.status == "failed" for trial in trials),
        interrupted=sum(trial.status == "interrupted" for trial in trials),
        feasible=len(tests),
        evaluations=sum(trial.evaluations for trial in finished),
        distinct=sum(trial.distinct for trial in finished),
        best_reward=best.reward if best else None,
        best_seed=found[0].seed if found else None,
        search_accuracy=best.search_accuracy if best else None,
        test_accuracy=best.test_accuracy if best else None,
        test_mean=statistics.fmean(tests) if tests else None,
        test_std=statistics.stdev(tests) if len(tests) > 1 else None,
        costs=costs,
        relative_costs={name: cost / results.dense.costs[name] for name, cost in costs.items()},
        seconds=sum(trial.seconds for trial in finished),
    )


def _cost_names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.costs))


def _mean_and_std(row: Row) -> str:
    if row.test_mean is None:
        return _NONE
    spread = "" if row.test_std is None else f" ± {100 * row.test_std:.2f}"
    return f"{100 * row.test_mean:.2f}{spread} %"


def _cost_of(cost: str, row: Row) -> str:
    if cost not in row.costs:
        return _NONE
    unit = "bytes" if cost == "size" else ""
    return f"{human(row.costs[cost], unit)} ({percent(row.relative_costs[cost], 1)})"


def _line(text: str) -> str:
    return " ".join(text.split())


def _text(rows: Sequence[Row]) -> str:
    headings, cells = display_table(rows)
    table = [headings, *cells]
    widths = [max(len(line[column]) for line in table) for column in range(len(headings))]
    left = {"job", "agent", "trials"}
    lines = [
        "  ".join(
            cell.ljust(width) if heading in left else cell.rjust(width)
            for heading, cell, width in zip(headings, line, widths, strict=True)
        ).rstrip()
        for line in table
    ]
    rule = "  ".join("─" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _markdown(rows: Sequence[Row]) -> str:
    headings, cells = display_table(rows)
    marks = ["---" if heading in {"job", "agent", "trials"} else "---:" for heading in headings]
    lines = [headings, marks, *([cell.replace("|", "\\|") for cell in line] for line in cells)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _csv(rows: Sequence[Row]) -> str:
    output = io.StringIO()
    flat = [_flat(row, _cost_names(rows)) for row in rows]
    writer = csv.DictWriter(output, fieldnames=list(flat[0]) if flat else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return output.getvalue()


def _flat(row: Row, costs: Sequence[str]) -> dict[str, Any]:
    fields = asdict(row)
    absolute, relative = fields.pop("costs"), fields.pop("relative_costs")
    for cost in costs:
        fields[cost] = absolute.get(cost)
        fields[f"{cost}_of_dense"] = relative.get(cost)
    return fields


def _json(rows: Sequence[Row]) -> str:
    return json.dumps([_finite(asdict(row)) for row in rows], indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The same with null for infinities and NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
