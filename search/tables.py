"""The comparison of agents as rows, and the rows as text, CSV, JSON or Markdown."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from hw.cost import UNITS
from search.columns import LEFT, aligned
from search.figures import NONE, cost_label, duration, error_text, human, objective_label, percent
from search.ranking import Entrant, ranked
from search.results import PolicyRecord, Results, TimedPolicyRecord, TrialRecord
from search.statistics import Estimate, estimate_improvement, estimate_mean

TableFormat = Literal["table", "csv", "json", "md"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One agent of one job, or the job's dense network (`kind` "dense", the first row of its job).

    All figures are of the finished trials alone. The winner is the policy of the highest reward on the search
    split; the test split chooses nothing.

    Attributes:
        job, spec_id: name and identity of the job's spec; equal names are numbered.
        agent, kind: the agent's label and algorithm.
        seeds: trials the job asked for.
        finished, failed, interrupted: how they ended.
        feasible: finished trials that found a policy within all budgets.
        evaluations, distinct, stopped: sums over the finished trials; those stopped early are among the evaluations.
        best_reward, best_seed: of the winner.
        search_accuracy, test_accuracy: top-1 of the winner, fractions; None if the network does not classify.
        test_mean, test_std: over the best policies of the feasible trials; the sample deviation, if two or more.
        test_iqm, test_iqm_low, test_iqm_high: interquartile mean over the same, and its 95 % bootstrap interval.
        objective: what the errors are, as in the spec.
        search_error, test_error, ..., test_error_iqm_high: the same of the objective's error.
        improvement, improvement_low, improvement_high: probability that a seed does better on the test split than a
            seed of the best other agent, and its interval; None if there is no interval.
        improvement_over: that other agent: of all others it has the highest reward on the search split by its seeds.
        costs: of the winner, in the unit of each cost.
        relative_costs: the same as fractions of the dense network's.
        seconds: sum over the finished trials.
        fine_tuned_accuracy, fine_tuned_error: of the winner on the test split after its fine-tuning; of the dense
            network, if it was trained too.
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
    stopped: int
    best_reward: float | None
    best_seed: int | None
    search_accuracy: float | None
    test_accuracy: float | None
    test_mean: float | None
    test_std: float | None
    test_iqm: float | None = None
    test_iqm_low: float | None = None
    test_iqm_high: float | None = None
    objective: str
    search_error: float | None
    test_error: float | None
    test_error_mean: float | None
    test_error_std: float | None
    test_error_iqm: float | None = None
    test_error_iqm_low: float | None = None
    test_error_iqm_high: float | None = None
    improvement: float | None = None
    improvement_low: float | None = None
    improvement_high: float | None = None
    improvement_over: str | None = None
    costs: Mapping[str, float]
    relative_costs: Mapping[str, float]
    seconds: float
    fine_tuned_accuracy: float | None = None
    fine_tuned_error: float | None = None

    @property
    def state(self) -> str:
        """How the trials ended, for people: "3 finished", "1 of 3 finished, 2 failed"."""
        if self.kind == "dense":
            return NONE
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


def timed_winner(results: Results) -> TimedPolicyRecord | None:
    """How long the winner took when it was timed; None if it was not."""
    best = winner(results.trials)
    if best is None or results.latency is None:
        return None
    return next((timed for timed in results.latency.policies if timed.widths == best[1].widths), None)


def missed_winner(results: Results) -> TimedPolicyRecord | None:
    """The winner as it was timed, if it takes longer than the budget."""
    timed = timed_winner(results)
    return timed if timed and results.latency and timed.measured_ms > results.latency.limit_ms else None


def unit_of(results: Results, cost: str) -> str:
    """The unit of a cost: the budget's, else the cost model's; "" if neither is known."""
    units = {budget.cost: budget.unit for budget in results.budgets}
    return units[cost] if cost in units else UNITS.get(cost, "")


def units_of(results: Results) -> Literal["channels", "weights"]:
    """What the job removes: "channels" or "weights"."""
    granularity = results.spec.get("pruning", {}).get("granularity", "channel")
    return "channels" if granularity == "channel" else "weights"


def objective_of(results: Results) -> str:
    """The job's objective as its spec names it."""
    return str(results.spec.get("evaluation", {}).get("objective", "top1"))


def budgeted_costs(results: Results) -> tuple[str, ...]:
    """The costs that have a budget; without any, the first that is counted."""
    return tuple(dict.fromkeys(budget.cost for budget in results.budgets)) or tuple(results.dense.costs)[:1]


def told_apart(jobs: Sequence[Results]) -> list[Results]:
    """The jobs, those whose name others before them have with a number after it: "half (2)"."""
    met: Counter[str] = Counter()
    apart = []
    for job in jobs:
        met[job.name] += 1
        count = met[job.name]
        apart.append(job if count == 1 else job.model_copy(update={"name": f"{job.name} ({count})"}))
    return apart


def compare(results: Sequence[Results]) -> list[Row]:
    """Per job a row for the dense network and one for each agent, in the order of the job."""
    rows = []
    for job in told_apart(results):
        order = ranked(job.trials)
        jobs = [_dense_row(job), *(_agent_row(job, agent, order) for agent in agents_of(job))]
        rows += [_with_fine_tuned(job, row) for row in jobs]
    return rows


def format_rows(rows: Sequence[Row], format: TableFormat = "table") -> str:  # noqa: A002 - the option's name
    """The rows as aligned text, CSV or JSON (every field, full precision) or Markdown; ends with a newline.

    Raises:
        ValueError: unknown format.
    """
    if format not in get_args(TableFormat):
        raise ValueError(f"format: expected one of {', '.join(get_args(TableFormat))}, got {format!r}")
    return {"table": _text, "csv": _csv, "json": _json, "md": _markdown}[format](rows)


def _text(rows: Sequence[Row]) -> str:
    return aligned(*display_table(rows))


def display_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells for people.

    The job is named if there are several, the states if a trial is missing, the reward if it is not minus the error.
    """
    columns: dict[str, Callable[[Row], str]] = {
        "agent": lambda row: _line(row.agent),
        "seeds": lambda row: NONE if row.kind == "dense" else str(row.finished),
        "evaluations": lambda row: NONE if row.kind == "dense" else f"{row.evaluations:,}",
        "distinct": lambda row: NONE if row.kind == "dense" else f"{row.distinct:,}",
    }
    if any(row.stopped for row in rows):
        columns["stopped"] = lambda row: NONE if row.kind == "dense" else f"{row.stopped:,}"
    if not all(map(_reward_is_error, rows)):
        columns["best reward"] = lambda row: NONE if row.best_reward is None else f"{row.best_reward:.4f}"
    columns |= _score_columns(rows)
    if any(row.improvement is not None for row in rows):
        columns["beats best"] = _improvement
    if any(row.fine_tuned_error is not None for row in rows):
        columns["fine-tuned"] = _fine_tuned_text
    for cost in _cost_names(rows):
        columns[cost_label(cost)] = partial(_cost_of, cost)
    columns["time"] = lambda row: NONE if row.kind == "dense" else duration(row.seconds)
    if len({(row.job, row.spec_id) for row in rows}) > 1:
        columns = {"job": lambda row: _line(row.job), **columns}
    if any(row.feasible < row.seeds for row in rows):
        columns["trials"] = lambda row: row.state
    return list(columns), [[cell(row) for cell in columns.values()] for row in rows]


def _dense_row(results: Results) -> Row:
    dense = results.dense
    return Row(
        job=results.name, spec_id=results.spec_id, agent="dense", kind="dense",
        seeds=0, finished=0, failed=0, interrupted=0, feasible=0, evaluations=0, distinct=0, stopped=0,
        best_reward=None, best_seed=None,
        search_accuracy=dense.search_accuracy, test_accuracy=dense.test_accuracy, test_mean=None, test_std=None,
        objective=objective_of(results), search_error=dense.search_error, test_error=dense.test_error,
        test_error_mean=None, test_error_std=None,
        costs=dict(dense.costs), relative_costs=dict.fromkeys(dense.costs, 1.0), seconds=0.0,
    )  # fmt: skip


def _agent_row(results: Results, agent: str, order: Sequence[Entrant]) -> Row:
    trials = [trial for trial in results.trials if trial.agent == agent]
    finished = finished_trials(results, agent)
    policies = [trial.best for trial in finished if trial.best is not None]
    test_mean, test_std = _spread([policy.test_accuracy for policy in policies])
    error_mean, error_std = _spread([policy.test_error for policy in policies])
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
        feasible=len(policies),
        evaluations=sum(trial.evaluations for trial in finished),
        distinct=sum(trial.distinct for trial in finished),
        stopped=sum(point.stopped_early for trial in finished for point in trial.history),
        best_reward=best.reward if best else None,
        best_seed=found[0].seed if found else None,
        search_accuracy=best.search_accuracy if best else None,
        test_accuracy=best.test_accuracy if best else None,
        test_mean=test_mean,
        test_std=test_std,
        objective=objective_of(results),
        search_error=best.search_error if best else None,
        test_error=best.test_error if best else None,
        test_error_mean=error_mean,
        test_error_std=error_std,
        costs=costs,
        relative_costs={name: cost / results.dense.costs[name] for name, cost in costs.items()},
        seconds=sum(trial.seconds for trial in finished),
        **_estimates(agent, order),
    )


def _estimates(agent: str, order: Sequence[Entrant]) -> dict[str, Any]:
    """The fields that are estimated over the seeds."""
    entrant = next((entrant for entrant in order if entrant.name == agent), None)
    if entrant is None:
        return {}
    fields = _named("test_error_iqm", estimate_mean(entrant.errors))
    if entrant.accuracies is not None:
        fields |= _named("test_iqm", estimate_mean(entrant.accuracies))
    other = next((other for other in order if other is not entrant), None)
    if other is not None:
        better = estimate_improvement(entrant.gains, other.gains)
        if better.interval is not None:
            fields |= {**_named("improvement", better), "improvement_over": other.name}
    return fields


def _named(name: str, estimate: Estimate) -> dict[str, Any]:
    low, high = estimate.interval or (None, None)
    return {name: estimate.value, f"{name}_low": low, f"{name}_high": high}


def _with_fine_tuned(results: Results, row: Row) -> Row:
    """The row with what fine-tuning made of its network."""
    record = results.finetune
    if record is None:
        return row
    if row.kind == "dense":
        tuned = record.dense
    else:
        tuned = next((each for each in record.winners if (each.agent, each.seed) == (row.agent, row.best_seed)), None)
    after = None if tuned is None else tuned.after
    if after is None:
        return row
    return replace(row, fine_tuned_accuracy=after.test_accuracy, fine_tuned_error=after.test_error)


def _spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample deviation of what is known."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None, statistics.stdev(known) if len(known) > 1 else None


def _score_columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    """The search error of each objective but top-1, and top-1 accuracies; without these, the errors of both splits."""
    columns: dict[str, Callable[[Row], str]] = {}
    for objective in dict.fromkeys(row.objective for row in rows if row.objective != "top1"):
        label = objective_label(objective)
        if all(row.search_accuracy is not None for row in rows if row.kind == "dense" and row.objective == objective):
            columns[label] = partial(_search_error, objective)
        else:
            columns[f"search {label}"] = partial(_search_error, objective)
            columns[f"test {label}"] = partial(_test_error, objective)
            columns[f"test {label} IQM (95 %)"] = partial(_error_interval, objective)
    if any(row.search_accuracy is not None for row in rows):
        columns["search"] = lambda row: percent(row.search_accuracy)
        columns["test"] = lambda row: percent(row.test_accuracy)
        columns["test IQM (95 %)"] = _accuracy_interval
    return columns


def _reward_is_error(row: Row) -> bool:
    """Whether the reward, if there is one, is just minus the error that stands beside it."""
    return row.best_reward is None or row.search_error is None or row.best_reward == -row.search_error


def _search_error(objective: str, row: Row) -> str:
    return error_text(objective, row.search_error if row.objective == objective else None)


def _test_error(objective: str, row: Row) -> str:
    return error_text(objective, row.test_error if row.objective == objective else None)


def _fine_tuned_text(row: Row) -> str:
    if row.fine_tuned_accuracy is not None:
        return percent(row.fine_tuned_accuracy)
    return error_text(row.objective, row.fine_tuned_error)


def _error_interval(objective: str, row: Row) -> str:
    if row.objective != objective:
        return NONE
    low, high = error_text(objective, row.test_error_iqm_low), error_text(objective, row.test_error_iqm_high)
    return error_text(objective, row.test_error_iqm) + _range(low, high)


def _cost_names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.costs))


def _accuracy_interval(row: Row) -> str:
    return percent(row.test_iqm) + _range(percent(row.test_iqm_low), percent(row.test_iqm_high))


def _improvement(row: Row) -> str:
    return NONE if row.improvement is None else f"{row.improvement:.2f}"


def _range(low: str, high: str) -> str:
    """An interval in brackets after its figure, without the unit; nothing if there is none."""
    unit = " %"
    return "" if NONE in (low, high) else f" ({low.removesuffix(unit)} to {high.removesuffix(unit)})"


def _cost_of(cost: str, row: Row) -> str:
    if cost not in row.costs:
        return NONE
    unit = UNITS.get(cost, "")
    amount = human(row.costs[cost], "" if unit == cost_label(cost) else unit)  # the heading says MACs already
    return amount if row.kind == "dense" else f"{amount} ({percent(row.relative_costs[cost], 1)})"


def _line(text: str) -> str:
    return " ".join(text.split())


def _markdown(rows: Sequence[Row]) -> str:
    headings, cells = display_table(rows)
    marks = ["---" if heading in LEFT else "---:" for heading in headings]
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
