"""The sections that the report of a job and the page of the service have in common: what the agents found."""

from __future__ import annotations

from collections.abc import Sequence

from search.figures import cost_label, percent
from search.interval_plot import interval_plot
from search.page_parts import both, escape, legend, prose, row, section, share_bar, stacked, swatch, table
from search.plots import cost_plot, ratios_plot, score_name
from search.progress_plot import Over, has_repeats, has_times, progress_plot
from search.results import DecisionRecord, Results
from search.standing import standing
from search.svg import colour
from search.tables import Row, agents_of, compare, display_table, units_of, winner
from search.verdict import caveats, score_note, verdict


def standing_paragraphs(jobs: Sequence[Results]) -> str:
    """How the agents stand."""
    return "".join(f'<p class="standing">{prose(line)}</p>\n' for line in standing(jobs))


def outcome(results: Results) -> str:
    """What came out, how the agents stand, and what a reader must know before believing it."""
    warnings = "".join(f"<p>{prose(line)}</p>" for line in caveats(results))
    return (
        f'<p class="verdict">{prose(verdict(results))}</p>\n'
        + standing_paragraphs([results])
        + (f'<div class="caveats" role="note">{warnings}</div>\n' if warnings else "")
    )


def comparison_section(results: Results, rows: Sequence[Row] | None = None, *, noted: bool = True) -> str:
    """The agents as a table; of the job, or of these rows. Beside it, what the scores of the job are of (`noted`)."""
    rows = compare([results]) if rows is None else rows
    headings, cells = display_table(rows)
    agents, best = agents_of(results), winner(results.trials)
    name = headings.index("agent")
    body = []
    for each, line in zip(rows, cells, strict=True):
        css = "dense" if each.kind == "dense" else "best" if best and each.agent == best[0].agent else ""
        marked = [stacked(cell) if column else escape(cell) for column, cell in enumerate(line)]
        if each.agent in agents:
            marked[name] = swatch(agents.index(each.agent)) + marked[name]
        body.append(row(headings, marked, css))
    scores = "errors" if results.dense.search_accuracy is None else "top-1 accuracies"
    note = score_note(results) if noted else ""
    return section(
        "Comparison",
        f"Each agent's policy of the highest reward on the search split; search and test are its {scores}. IQM: "
        "the interquartile mean over the best policies of the seeds on the test split, which no agent sees, with its "
        "95 % bootstrap interval. Beats best: the probability that a seed does better there than one of the best other "
        "agent.",
        table(headings, body) + (f'<p class="caption">{prose(note)}</p>' if note else ""),
    )


def intervals_section(results: Results) -> str:
    """The seeds of each agent on the test split."""
    return section(
        f"{score_name(results)} over the seeds",
        "On the test split, agents in the order of their rewards on the search split. The marker is the interquartile "
        "mean of the seeds, which are the dots; the bar is its 95 % bootstrap interval, over the seeds on the same "
        "test images. An agent to which the seed means nothing has one value.",
        both(lambda width: interval_plot(results, width=width)),
    )


def progress_section(results: Results, *, brief: bool = False) -> str:
    """Best reward against evaluations; unless `brief`, also without repeats and against time where these are known."""

    def plot(over: Over) -> str:
        return both(lambda width: progress_plot(results, width=width, height=380 if width > 500 else 300, over=over))

    content = legend(results) + plot("evaluations")
    if not brief and has_repeats(results):
        content += f"<h3>Without repeated evaluations</h3>{plot('distinct evaluations')}"
    timed = not brief and has_times(results)
    if timed:
        content += f"<h3>Over time</h3>{plot('time')}"
    thin = any(trial.status != "finished" for trial in results.trials)
    return section(
        "Best reward against evaluations",
        "Median over the seeds, the band from the worst seed to the best. Dashed: an agent of one evaluation. "
        + "Thin: a trial that is not finished. " * thin
        + "The axis leaves out the first, poor evaluations."
        + " Time is that of each trial, beside whatever ran with it." * timed,
        content,
    )


def ratios_section(results: Results) -> str:
    """The ratios of each agent's best policy."""
    return section(
        "Ratios per layer",
        f"The fraction of {units_of(results)} that the best policy of each agent removes, layers in forward order.",
        both(lambda width: ratios_plot(results, width=width)),
    )


def cost_section(results: Results, cost: str) -> str:
    """Accuracy or error against one cost."""
    return section(
        f"{score_name(results)} against {cost_label(cost)}",
        "Every whole evaluation within the budgets, scored on the search split; the large markers are the best "
        "policies, the thin line is the Pareto front, dotted the budget.",
        legend(results) + both(lambda width: cost_plot(results, cost, width=width, height=420 if width > 500 else 340)),
    )


def layers_section(results: Results) -> str:
    """The best policy, layer by layer; "" if there is none."""
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
        line = row(headings, [*map(escape, cells), percent(ratio, 1)])
        body.append(line.replace("</tr>", f"{share_bar(ratio, css)}</tr>"))
    return section(
        "Best policy",
        f"Found by {trial.agent} with seed {trial.seed}; the ratio is the fraction removed.",
        table(headings, body, "layers"),
    )


def _kernel(decision: DecisionRecord) -> str:
    return f"{decision.kernel}×{decision.kernel}" if decision.op == "conv" else decision.op  # noqa: RUF001
