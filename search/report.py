"""The report of a job: one HTML page that needs no network."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import yaml

from hw.files import write_atomically
from search.figures import cost_label, duration, human, percent
from search.finetune_report import fine_tuning_caption, fine_tuning_table, fine_tuning_verdict, training_plot
from search.latency_report import prediction_plot, staircase_plot
from search.measure_report import measured_sections
from search.page_parts import both, escape, legend, page, prose, row, section, stacked, swatch, table
from search.results import LatencyRecord, Results, TimingRecord, TrialRecord
from search.sections import (
    comparison_section,
    cost_section,
    intervals_section,
    layers_section,
    outcome,
    progress_section,
    ratios_section,
)
from search.sensitivity_report import sensitivity_sections
from search.series_report import series_plot, series_table, with_series
from search.tables import agents_of, budgeted_costs, winner

_PLOTTED = ("Loss", "Loss, and weights removed")  # whether there is sparsity to show


def write_report(results: Results, path: Path) -> None:
    """Write the page whole or not at all."""
    write_atomically(path, render_report(results))


def render_report(results: Results) -> str:
    """The page as HTML; everything that a user, a network or an error message named is escaped."""
    sections = [_head(results), comparison_section(results), intervals_section(results), progress_section(results)]
    sections += [ratios_section(results), *(cost_section(results, cost) for cost in budgeted_costs(results))]
    sections += [_series(results), _fine_tuning(results), _latency(results), measured_sections(results)]
    sections += [layers_section(results), sensitivity_sections(results), _failures(results), _provenance(results)]
    return page(results.name, sections)


def _head(results: Results) -> str:
    budgets = ", ".join(
        f"{cost_label(budget.cost)} ≤ {percent(budget.fraction, 1)} ({human(budget.limit, budget.unit)})"
        for budget in results.budgets
    )
    evaluations = sum(trial.evaluations for trial in results.trials)
    facts = [
        f"budget {budgets}" if budgets else "no budget",
        f"{len(results.trials)} trials",
        f"{evaluations:,} evaluations",
        duration(results.seconds),
        results.created[:16].replace("T", " "),
    ]
    return (
        f"<header>\n<h1>{escape(results.name)}</h1>\n{outcome(results)}"
        f'<p class="facts">{prose(" · ".join(facts))}</p>\n</header>'
    )


def _fine_tuning(results: Results) -> str:
    record = results.finetune
    if record is None:
        return ""
    headings, cells = fine_tuning_table(results, record)
    body = [row(headings, [*map(escape, line)], "dense" if line[0] == "dense" else "") for line in cells]
    said = "".join(f'<p class="caption">{prose(line)}</p>' for line in fine_tuning_verdict(results, record))
    drawn = both(partial(training_plot, results, record)) if training_plot(results, record) else ""
    plot = f"<h3>{_PLOTTED[any(network.sparsity for network in record.winners)]}</h3>{legend(results)}{drawn}"
    return section(
        "Fine-tuning", fine_tuning_caption(results, record), table(headings, body) + said + plot * bool(drawn)
    )


def _series(results: Results) -> str:
    trials = with_series(results)
    if not trials:
        return ""
    return section(
        "Networks on the way",
        "Networks that a search kept beside its best policy, numbered from the largest to the smallest and drawn as "
        "scored on the search split: those on its way, or the best for each budget of an agent with several. Hollow "
        "markers are over the budget; dotted is that of the job. Number N is exported with the command below the plot.",
        "".join(_series_of(results, trial) for trial in trials),
    )


def _series_of(results: Results, trial: TrialRecord) -> str:
    headings, cells = series_table(results, trial)
    rows = [row(headings, [*map(escape, line)]) for line in cells]
    command = f"amc export DIR --agent {trial.agent} --seed {trial.seed} --step N --out NEW"
    plots = (both(partial(series_plot, results, trial, cost)) for cost in budgeted_costs(results))
    return (
        f"<h3>{swatch(agents_of(results).index(trial.agent))}{escape(f'{trial.agent}, seed {trial.seed}')}</h3>"
        f'{"".join(plots)}<pre class="command">{escape(command)}</pre>'
        f"<details><summary>All {len(rows)} networks</summary>{table(headings, rows)}</details>"
    )


def _latency(results: Results) -> str:
    record = results.latency
    if record is None:
        return ""
    agents = agents_of(results)
    headings = ["agent", "seed", "predicted", "measured", "of budget", "10th to 90th percentile", "speed-up"]
    body = []
    if record.dense is not None and record.dense_again is not None and record.speed is not None:
        dense = [
            "dense", "-", human(record.predicted_dense_ms, "ms"), human(record.dense.p10 / record.speed, "ms"), "-",
            _range(record.dense), f"1 (the same network twice: {record.dense.p10 / record.dense_again.p10:.3f})",
        ]  # fmt: skip
        body.append(row(headings, [*map(escape, dense)], "dense"))
    best = winner(results.trials)
    for timed in record.policies:
        cells = [
            str(timed.seed), human(timed.predicted_ms, "ms"), human(timed.measured_ms, "ms"),
            percent(timed.measured_ms / record.limit_ms, 1), _range(timed.timing),
            f"{timed.speedup:.3f} ({timed.speedup_low:.3f} to {timed.speedup_high:.3f})",
        ]  # fmt: skip
        name = swatch(agents.index(timed.agent)) + escape(timed.agent)
        css = "best" if best and timed.widths == best[1].widths else ""
        body.append(row(headings, [name, *(stacked(cell) for cell in cells)], css))
    marks = [
        (timed.predicted_ms, timed.measured_ms, agents.index(timed.agent), f"{timed.agent}, seed {timed.seed}")
        for timed in record.policies
    ]
    checked = section(
        "Latency, predicted and measured",
        f"{record.conditions}, on {record.host.get('processor', 'unknown')}. Small dots: the {record.networks} "
        "networks behind the table, each predicted by a fit without it; large markers: the best policies. The thin "
        "lines are 5 % apart from the diagonal. Times are the 10th percentile of interleaved runs, at the speed at "
        "which the table was measured.",
        (table(headings, body) if body else "")
        + _refinements(record)
        + both(lambda width: prediction_plot(record.checks, marks, width=width)),
    )
    return checked + "".join(
        section(
            f"Latency of {staircase.layer}",
            f"{staircase.described}; over its {staircase.axis} channels, the other width dense. Dots are entries of "
            "the table with their 10th to 90th percentile, the line is what the search saw.",
            both(lambda width, staircase=staircase: staircase_plot(staircase, width=width)),  # type: ignore[misc]
        )
        for staircase in record.staircases
    )


def _range(timing: TimingRecord) -> str:
    return f"{human(timing.p10)} to {human(timing.p90)} ms"


def _refinements(record: LatencyRecord) -> str:
    lines = [
        f"Round {index}: the winner ({refinement.agent}, seed {refinement.seed}) was predicted at "
        f"{human(refinement.predicted_ms, 'ms')} and took {human(refinement.measured_ms, 'ms')}; the table was "
        "corrected by that, and the search went on."
        for index, refinement in enumerate(record.refinements, start=1)
    ]
    return "".join(f'<p class="caption">{prose(line)}</p>' for line in lines)


def _failures(results: Results) -> str:
    unfinished = [trial for trial in results.trials if trial.status != "finished"]
    if not unfinished:
        return ""
    return section("Trials not finished", "", "".join(map(_failure, unfinished)))


def _failure(trial: TrialRecord) -> str:
    title = f"{trial.agent}, seed {trial.seed}: {trial.status} after {trial.evaluations} evaluations"
    error = f'<pre class="error">{escape(trial.error.strip())}</pre>' if trial.error else ""
    return f"<h3>{escape(title)}</h3>{error}"


def _provenance(results: Results) -> str:
    facts = {
        f"{name} split": f"{split.images:,} {results.samples}, {split.source}" for name, split in results.splits.items()
    }
    facts |= {
        "data digest": results.data_digest,
        "weights digest": results.weights_digest,
        "spec id": results.spec_id,
        "versions": ", ".join(f"{name} {version}" for name, version in results.versions.items()),
        "seconds": f"{results.seconds:,.1f}",
        "created": results.created,
        "seeds": ", ".join(f"{agent}: {_seeds(results, agent)}" for agent in agents_of(results)),
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items())
    spec = yaml.safe_dump(results.spec, sort_keys=False, allow_unicode=True)
    return section("Provenance", "", f"<dl>{listed}</dl><h3>Spec</h3><pre>{escape(spec)}</pre>")


def _seeds(results: Results, agent: str) -> str:
    return " ".join(str(trial.seed) for trial in results.trials if trial.agent == agent)
