"""The report of a job: one HTML page that needs no network."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import yaml

from hw.files import write_atomically
from search.figures import cost_label, duration, human, percent
from search.finetune_report import fine_tuning_caption, fine_tuning_table, fine_tuning_verdict
from search.interval_plot import interval_plot
from search.latency_report import prediction_plot, staircase_plot
from search.measure_report import conditions, density_plot, layer_table, measured_verdict, whole_table
from search.plots import Over, cost_plot, has_repeats, has_times, progress_plot, ratios_plot, score_name
from search.results import DecisionRecord, LatencyRecord, Results, TimingRecord, TrialRecord
from search.sensitivity_report import sensitivity_sections
from search.series_report import series_plot, series_table, with_series
from search.standing import standing
from search.svg import colour, marker
from search.tables import agents_of, budgeted_costs, compare, display_table, units_of, winner
from search.theme import CSS
from search.verdict import caveats, score_note, verdict

_TEXT_COLUMNS = {"agent", "trials", "layer", "network", "run by", "geometry"}
_TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_NARROW, _WIDE = 360, 960


def write_report(results: Results, path: Path) -> None:
    """Write the page whole or not at all."""
    write_atomically(path, render_report(results))


def render_report(results: Results) -> str:
    """The page as HTML; everything that a user, a network or an error message named is escaped."""
    sections = [_head(results), _comparison(results), _intervals(results), _progress(results), _ratios(results)]
    sections += [_cost(results, cost) for cost in budgeted_costs(results)]
    sections += [_series(results), _fine_tuning(results), _latency(results), _measured(results), _layers(results)]
    sections += [sensitivity_sections(results), _failures(results), _provenance(results)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_escape(results.name)}</title>\n<style>\n{CSS}\n</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(section for section in sections if section)
        + "\n</main>\n</body>\n</html>\n"
    )


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
    paragraphs = "".join(f'<p class="standing">{_prose(line)}</p>\n' for line in standing([results]))
    warnings = "".join(f"<p>{_prose(line)}</p>" for line in caveats(results))
    return (
        f'<header>\n<h1>{_escape(results.name)}</h1>\n<p class="verdict">{_prose(verdict(results))}</p>\n'
        + paragraphs
        + (f'<div class="caveats" role="note">{warnings}</div>\n' if warnings else "")
        + f'<p class="facts">{_prose(" · ".join(facts))}</p>\n</header>'
    )


def _comparison(results: Results) -> str:
    rows = compare([results])
    headings, cells = display_table(rows)
    best = winner(results.trials)
    body = []
    for row, line in zip(rows, cells, strict=True):
        css = "dense" if row.kind == "dense" else "best" if best and row.agent == best[0].agent else ""
        swatch = "" if row.kind == "dense" else _swatch(agents_of(results).index(row.agent))
        escaped = [swatch + _escape(line[0]), *(_stacked(cell) for cell in line[1:])]
        body.append(_row(headings, escaped, css))
    scores = "errors" if results.dense.search_accuracy is None else "top-1 accuracies"
    note = score_note(results)
    return _section(
        "Comparison",
        f"Each agent's policy of the highest reward on the search split; search and test are its {scores}. IQM: "
        "the interquartile mean over the best policies of the seeds on the test split, which no agent sees, with its "
        "95 % bootstrap interval. Beats best: the probability that a seed does better there than one of the best other "
        "agent.",
        _table(headings, body) + (f'<p class="caption">{_prose(note)}</p>' if note else ""),
    )


def _stacked(cell: str) -> str:
    """A cell with what stands in brackets at its end on a second line."""
    return re.sub(r" \(([^)]*)\)$", r"<br><small>\1</small>", _escape(cell))


def _intervals(results: Results) -> str:
    return _section(
        f"{score_name(results)} over the seeds",
        "On the test split, agents in the order of their rewards on the search split. The marker is the interquartile "
        "mean of the seeds, which are the dots; the bar is its 95 % bootstrap interval, over the seeds on the same "
        "test images. An agent to which the seed means nothing has one value.",
        _both(lambda width: interval_plot(results, width=width)),
    )


def _progress(results: Results) -> str:
    def plot(over: Over) -> str:
        return _both(lambda width: progress_plot(results, width=width, height=380 if width > 500 else 300, over=over))

    content = _legend(results) + plot("evaluations")
    if has_repeats(results):
        content += f"<h3>Without repeated evaluations</h3>{plot('distinct evaluations')}"
    if has_times(results):
        content += f"<h3>Over time</h3>{plot('time')}"
    return _section(
        "Best reward against evaluations",
        "Median over the seeds, the band from the worst seed to the best. Dashed: an agent of one evaluation. The axis "
        "leaves out the first, poor evaluations. Time is that of each trial, beside whatever ran with it.",
        content,
    )


def _ratios(results: Results) -> str:
    return _section(
        "Ratios per layer",
        f"The fraction of {units_of(results)} that the best policy of each agent removes, layers in forward order.",
        _both(lambda width: ratios_plot(results, width=width)),
    )


def _cost(results: Results, cost: str) -> str:
    return _section(
        f"{score_name(results)} against {cost_label(cost)}",
        "Every whole evaluation within the budgets, scored on the search split; the large markers are the best "
        "policies, the thin line is the Pareto front, dotted the budget.",
        _legend(results)
        + _both(lambda width: cost_plot(results, cost, width=width, height=420 if width > 500 else 340)),
    )


def _fine_tuning(results: Results) -> str:
    record = results.finetune
    if record is None:
        return ""
    headings, cells = fine_tuning_table(results, record)
    body = [_row(headings, [*map(_escape, line)], "dense" if line[0] == "dense" else "") for line in cells]
    said = "".join(f'<p class="caption">{_prose(line)}</p>' for line in fine_tuning_verdict(results, record))
    return _section("Fine-tuning", fine_tuning_caption(results, record), _table(headings, body) + said)


def _series(results: Results) -> str:
    trials = with_series(results)
    if not trials:
        return ""
    return _section(
        "Networks on the way",
        "Networks that a search kept beside its best policy, numbered from the largest to the smallest and scored on "
        "the search split. Hollow markers are over the budgets; dotted is the budget. Number N is exported with the "
        "command below the plot.",
        "".join(_series_of(results, trial) for trial in trials),
    )


def _series_of(results: Results, trial: TrialRecord) -> str:
    headings, cells = series_table(results, trial)
    rows = [_row(headings, [*map(_escape, line)]) for line in cells]
    command = f"amc export DIR --agent {trial.agent} --seed {trial.seed} --step N --out NEW"
    plots = (_both(partial(series_plot, results, trial, cost)) for cost in budgeted_costs(results))
    return (
        f"<h3>{_swatch(agents_of(results).index(trial.agent))}{_escape(f'{trial.agent}, seed {trial.seed}')}</h3>"
        f'{"".join(plots)}<pre class="command">{_escape(command)}</pre>'
        f"<details><summary>All {len(rows)} networks</summary>{_table(headings, rows)}</details>"
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
        body.append(_row(headings, [*map(_escape, dense)], "dense"))
    best = winner(results.trials)
    for timed in record.policies:
        cells = [
            str(timed.seed), human(timed.predicted_ms, "ms"), human(timed.measured_ms, "ms"),
            percent(timed.measured_ms / record.limit_ms, 1), _range(timed.timing),
            f"{timed.speedup:.3f} ({timed.speedup_low:.3f} to {timed.speedup_high:.3f})",
        ]  # fmt: skip
        name = _swatch(agents.index(timed.agent)) + _escape(timed.agent)
        css = "best" if best and timed.widths == best[1].widths else ""
        body.append(_row(headings, [name, *(_stacked(cell) for cell in cells)], css))
    marks = [
        (timed.predicted_ms, timed.measured_ms, agents.index(timed.agent), f"{timed.agent}, seed {timed.seed}")
        for timed in record.policies
    ]
    checked = _section(
        "Latency, predicted and measured",
        f"{record.conditions}, on {record.host.get('processor', 'unknown')}. Small dots: the {record.networks} "
        "networks behind the table, each predicted by a fit without it; large markers: the best policies. The thin "
        "lines are 5 % apart from the diagonal. Times are the 10th percentile of interleaved runs, at the speed at "
        "which the table was measured.",
        (_table(headings, body) if body else "")
        + _refinements(record)
        + _both(lambda width: prediction_plot(record.checks, marks, width=width)),
    )
    return checked + "".join(
        _section(
            f"Latency of {staircase.layer}",
            f"{staircase.described}; over its {staircase.axis} channels, the other width dense. Dots are entries of "
            "the table with their 10th to 90th percentile, the line is what the search saw.",
            _both(lambda width, staircase=staircase: staircase_plot(staircase, width=width)),  # type: ignore[misc]
        )
        for staircase in record.staircases
    )


def _measured(results: Results) -> str:
    record = results.measured
    if record is None:
        return ""
    headings, cells = whole_table(record)
    rows = [_row(headings, [*map(_escape, line)], "dense" if line[0] == "dense" else "") for line in cells]
    said = "".join(f'<p class="caption">{_prose(line)}</p>' for line in measured_verdict(results, record))
    whole = _section(
        "The winner on this processor",
        f"{conditions(record)}. Latency is the 10th percentile of runs that were interleaved with all others here. "
        "8 bits are dynamic quantisation: of activations in each run.",
        _table(headings, rows) + said,
    )
    if not record.layers:
        return whole
    headings, cells = layer_table(record)
    rows = [_row(headings, [*map(_escape, line)]) for line in cells]
    return whole + _section(
        "Where sparsity pays",
        "Each layer by itself, on the input that it gets. The bar ends at the density below which the fastest sparse "
        "kernel beats the best dense float32 of torch and onnxruntime, measured with random patterns; the marker is "
        "where the layer is: a circle where sparsity pays, a square where it does not.",
        _both(lambda width: density_plot(record, width=width))
        + f"<details><summary>All {len(rows)} layers</summary>{_table(headings, rows)}</details>",
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
    return "".join(f'<p class="caption">{_prose(line)}</p>' for line in lines)


def _layers(results: Results) -> str:
    best = winner(results.trials)
    if best is None:
        return ""
    trial, policy = best
    css = colour(agents_of(results).index(trial.agent))
    headings = ["layer", "kernel", "stride", units_of(results), "kept", "ratio", ""]
    body = []
    for decision, kept in zip(results.decisions, policy.widths, strict=True):
        ratio = policy.ratios[decision.name]
        cells = [decision.name, _kernel(decision), str(decision.stride), str(decision.channels), str(kept)]
        bar = f'<td class="bar {css}"><i style="width: {100 * ratio:.1f}%"></i></td>'
        row = _row(headings, [*map(_escape, cells), percent(ratio, 1)])
        body.append(row.replace("</tr>", f"{bar}</tr>"))
    return _section(
        "Best policy",
        f"Found by {trial.agent} with seed {trial.seed}; the ratio is the fraction removed.",
        _table(headings, body, "layers"),
    )


def _failures(results: Results) -> str:
    unfinished = [trial for trial in results.trials if trial.status != "finished"]
    if not unfinished:
        return ""
    return _section("Trials not finished", "", "".join(map(_failure, unfinished)))


def _failure(trial: TrialRecord) -> str:
    title = f"{trial.agent}, seed {trial.seed}: {trial.status} after {trial.evaluations} evaluations"
    error = f'<pre class="error">{_escape(trial.error.strip())}</pre>' if trial.error else ""
    return f"<h3>{_escape(title)}</h3>{error}"


def _provenance(results: Results) -> str:
    facts = {f"{name} split": f"{split.images:,} images, {split.source}" for name, split in results.splits.items()}
    facts |= {
        "data digest": results.data_digest,
        "weights digest": results.weights_digest,
        "spec id": results.spec_id,
        "versions": ", ".join(f"{name} {version}" for name, version in results.versions.items()),
        "seconds": f"{results.seconds:,.1f}",
        "created": results.created,
        "seeds": ", ".join(f"{agent}: {_seeds(results, agent)}" for agent in agents_of(results)),
    }
    listed = "".join(f"<dt>{_escape(name)}</dt><dd>{_escape(fact)}</dd>" for name, fact in facts.items())
    spec = yaml.safe_dump(results.spec, sort_keys=False, allow_unicode=True)
    return _section("Provenance", "", f"<dl>{listed}</dl><h3>Spec</h3><pre>{_escape(spec)}</pre>")


def _seeds(results: Results, agent: str) -> str:
    return " ".join(str(trial.seed) for trial in results.trials if trial.agent == agent)


def _kernel(decision: DecisionRecord) -> str:
    return f"{decision.kernel}×{decision.kernel}" if decision.op == "conv" else decision.op  # noqa: RUF001


def _legend(results: Results) -> str:
    items = (f"<li>{_swatch(index)}{_escape(agent)}</li>" for index, agent in enumerate(agents_of(results)))
    return f'<ul class="legend">{"".join(items)}</ul>'


def _swatch(index: int) -> str:
    return (
        '<svg class="swatch" viewBox="0 0 14 14" aria-hidden="true">'
        f"{marker(index, 7, 7, 5, f'swatch-mark {colour(index)}')}</svg>"
    )


def _both(draw: Callable[[int], str]) -> str:
    """The plot as it fits a desktop and as it fits a phone; the page shows one of them."""
    return "".join(
        f'<figure class="plot {css}">{draw(width)}</figure>' for css, width in (("wide", _WIDE), ("narrow", _NARROW))
    )


def _section(title: str, caption: str, content: str) -> str:
    said = f'<p class="caption">{_escape(caption)}</p>' if caption else ""
    return f"<section>\n<h2>{_escape(title)}</h2>{said}\n{content}\n</section>"


def _table(headings: Sequence[str], rows: Iterable[str], css: str = "") -> str:
    head = "".join(f"<th{_text_class(heading)}>{_escape(heading)}</th>" for heading in headings)
    return (
        f'<div class="scroll"><table class="{css}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(headings: Sequence[str], cells: Sequence[str], css: str = "") -> str:
    """A row of cells that are HTML already."""
    marked = (f"<td{_text_class(heading)}>{cell}</td>" for heading, cell in zip(headings, cells, strict=False))
    return f'<tr class="{css}">{"".join(marked)}</tr>'


def _text_class(heading: str) -> str:
    return f' class="text {heading}"' if heading in _TEXT_COLUMNS else ""


def _prose(text: str) -> str:
    """Escaped, with no line break between a number and its unit."""
    return re.sub(r"(?<=\d) (?=%|points|[kMGTsh]|min|images)", "&nbsp;", _escape(text))


def _escape(text: str) -> str:
    return html.escape(_TERMINAL_CODES.sub("", text))
