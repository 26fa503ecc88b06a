"""What a job found, in a sentence, and what a reader must know before believing it."""

from __future__ import annotations

from collections.abc import Sequence

from search.figures import cost_label, error_text, human, objective_label, percent
from search.finetune_report import order_kept
from search.latency_report import latency_verdict, reliability_warning
from search.paired import discordant, mcnemar
from search.results import DenseRecord, PolicyRecord, Results, TrialRecord
from search.standing import few_seeds, standing
from search.tables import (
    agents_of,
    budgeted_costs,
    finished_trials,
    missed_winner,
    objective_of,
    told_apart,
    winner,
)

_SCOPE = "All figures are of finished trials; the plots of progress and of costs also show the others."


#: from this share on a reader must know that the machine was not as fast as when the table was measured
_OTHER_SPEED = 0.1

_SIGNIFICANT = 0.05

#: when more than this share of the decisions could not get narrower, a reader should know
_HELD = 0.1


def verdict(results: Results) -> str:
    """The outcome: the best agent on the search split, its test accuracy, its costs, and uniform's; its latency."""
    best = winner(results.trials)
    if best is None:
        return _nothing_found(results)
    said = _outcome(results, *best)
    return said if results.latency is None else f"{said} {latency_verdict(results.latency, best[1].widths)}"


def said_of(jobs: Sequence[Results]) -> list[str]:
    """What stands below the table of one or several jobs: outcomes, standing, caveats, and what the scores are of."""
    named = [("" if len(jobs) == 1 else f"{job.name}: ", job) for job in told_apart(jobs)]
    outcomes = [f"{name}{verdict(job)}" for name, job in named]
    orders = [f"{name}{line}" for name, job in named if job.finetune and (line := order_kept(job.finetune))]
    doubts = [f"{name}{line}" for name, job in named for line in caveats(job)]
    said = [*outcomes, *standing(jobs), *orders, *doubts, *map(score_note, jobs)]
    return [line for line in dict.fromkeys(said) if line]


def _outcome(results: Results, trial: TrialRecord, policy: PolicyRecord) -> str:
    costs = " and ".join(
        f"{percent(policy.costs[cost] / results.dense.costs[cost], 1)} of the {cost_label(cost)}"
        for cost in budgeted_costs(results)
    )
    figures = f"{_test_figure(results, policy)} on the test split at {costs}"
    dense = f"the dense network has {_test_figure(results, results.dense)}"
    if trial.kind == "uniform":
        return f"{_uniform_won(results, trial)}: {figures}; {dense}."
    uniform = _best_uniform(results)
    if uniform is None:
        return f"{trial.agent} found the best policy: {figures}; {dense}."
    lead, gap = _lead(policy, uniform)
    if lead > 0:
        return f"{trial.agent} found the best policy: {figures}, {gap}; {dense}."
    return (
        f"The search did not beat uniform on the test split: {trial.agent}, the best on the search split, has "
        f"{figures}, {gap}; {dense}."
    )


def caveats(results: Results) -> list[str]:
    """What the figures leave out or do not prove: unfinished trials, infeasible ones, few seeds, sampling error."""
    lines = [
        _unfinished(results),
        _known(results),
        *_latency_caveats(results),
        *(_infeasible(results, agent) for agent in agents_of(results)),
        few_seeds(results),
        _sampling(results),
        held_note(results),
    ]
    return [line for line in lines if line]


def _known(results: Results) -> str:
    if not results.known:
        return ""
    return (
        f"{results.known:,} evaluations of earlier jobs were known: where a trial came to one, it was not made again, "
        f"and its time is that of then."
    )


def _latency_caveats(results: Results) -> list[str]:
    record, missed = results.latency, missed_winner(results)
    lines = [] if record is None else [reliability_warning(record.error_after)]
    if missed is not None and record is not None:
        lines.append(
            f"The winner misses the latency budget when it is measured: {human(missed.measured_ms, 'ms')} for "
            f"{human(record.limit_ms, 'ms')}. Raise latency.refine or latency.margin, or build the table anew."
        )
    if record is not None and record.speed is not None and abs(record.speed - 1.0) > _OTHER_SPEED:
        lines.append(
            f"The dense network now takes {record.speed:.2f} times as long as when the table was measured: the machine "
            f"is busier, or another one. Times are scaled by that; the measured speed-up is not concerned."
        )
    return lines


def score_note(results: Results) -> str:
    """What the scores of the two splits are of; "" for the toy problem, which has one score only."""
    evaluation, calibration = results.spec.get("evaluation"), results.splits.get("calibration")
    if evaluation is None or calibration is None:
        return ""
    images, total = min(evaluation["images"], calibration.images), f"{calibration.images:,}"
    said = f"Fidelity {evaluation['fidelity']}, objective {evaluation['objective']}. "
    if steps := evaluation.get("finetune", {}).get("steps", 0):
        said += f"After the fit each network is trained for {steps} steps on the calibration images. "
    fitted = evaluation["fidelity"] != "magnitude"
    same = evaluation["fidelity"] != "sequential" or images == calibration.images
    blocks = evaluation.get("block_epochs", 0)
    if same and not blocks:
        if fitted:
            return f"{said}Search and test score the same network, fitted on all {total} calibration images."
        return f"{said}No weights are fitted; search and test score the same network."
    part = "all" if same else f"{images:,} of the"
    seen = f"fitted on {part} {total} calibration images" if fitted else "no weights of which are fitted"
    final = [] if same else ["fitted on all of them"]
    if blocks:
        final.append(f"whose blocks are trained on the calibration images, {blocks} epoch{'s' * (blocks > 1)} each")
    return (
        f"{said}The search figures are what the agents saw, networks {seen}; the test figures are of the final "
        f"network, {' and '.join(final)}."
    )


def held_note(results: Results) -> str:
    """Whether `pruning.max_ratio` held the winner; "" if not, and if no channels go."""
    best = winner(results.trials)
    if best is None or not results.narrowest:
        return ""
    held = sum(width == least for width, least in zip(best[1].widths, results.narrowest, strict=True))
    if held <= _HELD * len(results.narrowest):
        return ""
    return (
        f"{held} of {len(results.narrowest)} decisions of the winner cannot get narrower under pruning.max_ratio "
        f"({results.spec['pruning']['max_ratio']:g}); with a larger one the search may find a better network."
    )


def _nothing_found(results: Results) -> str:
    if not any(trial.status == "finished" for trial in results.trials):
        return f"No trial finished: {_counts(results)}."
    points = [point for trial in results.trials for point in trial.history]
    limits = ", ".join(
        f"{cost_label(budget.cost)} ≤ {percent(budget.fraction, 1)} of dense, {human(budget.limit, budget.unit)}"
        for budget in results.budgets
    )
    excesses = [
        max((point.costs[budget.cost] / budget.limit - 1.0 for budget in results.budgets), default=0.0)
        for point in points
    ]
    nearest = f"; the nearest was {percent(min(excesses), 1)} over it" if excesses else ""
    return f"No feasible policy was found: none of {len(points):,} evaluations met the budget ({limits}){nearest}."


def _uniform_won(results: Results, trial: TrialRecord) -> str:
    others = dict.fromkeys(
        other.agent
        for other in results.trials
        if other.kind != "uniform" and other.status == "finished" and other.best is not None
    )
    if not others:
        return f"{trial.agent} found the only feasible policy"
    return f"{' and '.join(others)} did not beat {trial.agent}, the best on the search split"


def _best_uniform(results: Results) -> PolicyRecord | None:
    best = winner([trial for trial in results.trials if trial.kind == "uniform"])
    return best[1] if best else None


def _test_figure(results: Results, scored: PolicyRecord | DenseRecord) -> str:
    if scored.test_accuracy is not None:
        return percent(scored.test_accuracy, 1)
    objective = objective_of(results)
    return f"{objective_label(objective)} {error_text(objective, scored.test_error)}"


def _lead(policy: PolicyRecord, uniform: PolicyRecord) -> tuple[float, str]:
    """How much better than uniform on the test split (negative: worse), as printed, and in words."""
    if policy.test_accuracy is None or uniform.test_accuracy is None:
        lead = float(f"{uniform.test_error - policy.test_error:.3g}")
        amount, side = f"{abs(lead):g}", "below" if lead > 0 else "above"
    else:
        lead = round(100 * (policy.test_accuracy - uniform.test_accuracy), 1)
        amount, side = f"{abs(lead):.1f} points", "above" if lead > 0 else "below"
    return lead, "level with uniform" if lead == 0 else f"{amount} {side} uniform"


def _counts(results: Results) -> str:
    failed = sum(trial.status == "failed" for trial in results.trials)
    interrupted = sum(trial.status == "interrupted" for trial in results.trials)
    parts = [f"{failed} failed"] if failed else []
    parts += [f"{interrupted} interrupted"] if interrupted else []
    return ", ".join(parts) or "the job has no trials"


def _unfinished(results: Results) -> str:
    finished = sum(trial.status == "finished" for trial in results.trials)
    if finished == len(results.trials) and results.status == "finished":
        return ""
    others = [trial for trial in results.trials if trial.status != "finished"]
    names = [f"{trial.agent} seed {trial.seed} {trial.status}" for trial in others]
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    state = {"finished": "", "failed": "The job failed: ", "interrupted": "The job was interrupted: "}[results.status]
    counted = f"{finished} of {len(results.trials)} trials finished" + (f" ({listed})" if names else "")
    return f"{state}{counted}. {_SCOPE}"


def _infeasible(results: Results, agent: str) -> str:
    seeds = [str(trial.seed) for trial in finished_trials(results, agent) if trial.best is None]
    if not seeds or winner(results.trials) is None:
        return ""
    return f"{agent} found no feasible policy with seed {', '.join(seeds)}."


def _sampling(results: Results) -> str:
    """Whether the winner and uniform differ on more test images than chance makes."""
    best, uniform = winner(results.trials), _best_uniform(results)
    if best is None or uniform is None or best[0].kind == "uniform":
        return ""
    if best[1].test_correct is None or uniform.test_correct is None:
        return ""
    mine, others = discordant(best[1].test_correct, uniform.test_correct)
    chance = mcnemar(mine, others)
    if chance < _SIGNIFICANT:
        return ""
    return (
        f"The difference from uniform may be chance: of {results.splits['test'].images:,} test images {mine:,} are "
        f"classified rightly by {best[0].agent} alone and {others:,} by uniform alone (McNemar's exact test: p = "
        f"{chance:.2f})."
    )
