"""What the page shows of jobs beside its own tables: sections of the report's HTML and SVG, of unfinished jobs too.

Everything in them is escaped, and there are no styles and no scripts: classes are those of `search.theme.CSS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from search.results import Results
from search.sections import (
    comparison_section,
    cost_section,
    intervals_section,
    layers_section,
    outcome,
    progress_section,
    ratios_section,
    standing_paragraphs,
)
from search.standing import differences, joined_trials
from search.tables import Row, budgeted_costs, compare, told_apart

#: by name the HTML of a section, or by cost that of several; "" if there is nothing to show yet
Sections = dict[str, str | dict[str, str]]


def job_sections(results: Results, *, running: bool) -> Sections:
    """The sections of a job: `standing`, `progress`, `comparison`, `intervals`, `ratios`, `cost` and `layers`.

    Args:
        results: as `search.job.load_results` reads them, which of a running job takes each trial as it is now.
        running: whether trials may still go on. Then nothing is said of how the agents stand, and the comparison does
            not call trials interrupted.
    """
    finished = any(trial.status == "finished" for trial in results.trials)
    rows = compare([results])
    return {
        "standing": "" if running else outcome(results),
        "comparison": comparison_section(results, _may_go_on(rows) if running else rows) if finished else "",
        "intervals": intervals_section(results) if finished else "",
        "layers": layers_section(results),
        **_plots(results, running),
    }


def comparison_sections(jobs: Sequence[Results]) -> Sections:
    """The sections of several jobs.

    Of jobs that searched the same problem, the sections of `job_sections` that are plots, with all agents in them.
    Of others `apart`: by name the plots of each, to be shown side by side. Of both `standing` and `comparison`.
    """
    apart = told_apart(jobs)
    together = apart[0].model_copy(update={"trials": tuple(joined_trials(apart))})
    both: Sections = {"standing": standing_paragraphs(apart)}
    if differences(apart):
        each = {job.name: _joined(_plots(job)) for job in apart}
        rows = _may_go_on(compare(apart))
        return {**both, "comparison": comparison_section(together, rows, noted=False), "apart": each}
    rows = _may_go_on(compare([together]))
    return {**both, "comparison": comparison_section(together, rows), **_plots(together)}


def _may_go_on(rows: Sequence[Row]) -> list[Row]:
    """The rows, of trials that are not finished none called interrupted."""
    return [replace(row, interrupted=0) for row in rows]


def _joined(sections: Mapping[str, str | dict[str, str]]) -> str:
    return "\n".join(part if isinstance(part, str) else _joined(part) for part in sections.values())


def _plots(results: Results, running: bool = False) -> Sections:
    """The plots; while a job runs only those that keep their place on the page."""
    begun = any(trial.history for trial in results.trials)
    return {
        "progress": progress_section(results, brief=running) if begun else "",
        "ratios": ratios_section(results) if begun else "",
        "cost": {cost: cost_section(results, cost) for cost in budgeted_costs(results)} if begun else {},
    }
