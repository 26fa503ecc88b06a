"""Which agent is best at this budget, by how much, at what expense, and whether that can be chance: plain sentences.

The order of the agents is that of their seeds' rewards on the search split; the test split says by how much and chooses
nothing. The intervals are over the seeds, on the same test images.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from search.figures import duration, objective_label
from search.ranking import Entrant, ranked
from search.results import Results, TrialRecord
from search.statistics import COVERAGE, Estimate, estimate_difference, estimate_improvement, estimate_mean
from search.tables import objective_of, told_apart

#: the kinds that the best agent is always held against, beside the runner-up
_BASELINES = ("uniform", "reconstruction")
_ENOUGH_SEEDS = 5


def standing(jobs: Sequence[Results]) -> list[str]:
    """What the comparison of the agents comes to, as paragraphs; none if fewer than two found a feasible policy.

    Agents of several jobs are compared with each other if the jobs searched the same problem.
    """
    jobs = told_apart(jobs)
    if different := differences(jobs):
        apart = [f"{job.name}: {line}" for job in jobs for line in standing([job])]
        return [f"Agents of different jobs are not compared, for these differ in: {', '.join(different)}.", *apart]
    order = ranked(joined_trials(jobs))
    if len(order) < 2:
        return []
    leader, rivals = order[0], _rivals(order)
    return [_lead(jobs[0], leader, rivals), _expense([leader, *rivals])]


def few_seeds(results: Results) -> str:
    """A warning of searching agents with fewer than five seeds; "" if there are none."""
    searching = [entrant for entrant in ranked(results.trials) if not entrant.errors.constant]
    few = {entrant.name: len(entrant.errors.values) for entrant in searching}
    few = {name: count for name, count in few.items() if count < _ENOUGH_SEEDS}
    if not few:
        return ""
    counted = ", ".join(f"{name} {count}" for name, count in few.items())
    true = [f"of {count} seeds about {100 * COVERAGE[count]:.0f} %" for count in sorted(set(few.values())) if count > 1]
    narrow = f" A 95 % interval over so few holds the truth less often: {_listed(true)}." if true else ""
    return f"Fewer than {_ENOUGH_SEEDS} seeds: {counted}.{narrow}"


def _lead(results: Results, leader: Entrant, rivals: Sequence[Entrant]) -> str:
    seeds = len(leader.trials)
    basis = f"the interquartile mean of its {seeds} seeds' rewards" if seeds > 1 else "its reward"
    own = estimate_mean(leader.scores)
    score = f"{_number(results, own.value)} %" if _classifies(results) else _error(results, own.value)
    interval = "" if own.interval is None else f" (95 % interval {_ends(results, own.interval)})"
    distances = [_distance(results, leader, rival, ", the runner-up" * (rival is rivals[0])) for rival in rivals]
    return (
        f"{leader.name} is the best agent at this budget, by {basis} on the search split. On the test split it has "
        f"{score}{interval}, {'; '.join(distances)}.{_odds(leader, rivals[0])}"
    )


def _distance(results: Results, leader: Entrant, rival: Entrant, role: str) -> str:
    """How far the leader is from another agent, with the interval seen from the side on which it is."""
    gap = estimate_difference(leader.gains, rival.gains)
    ahead = gap.value >= 0.0
    shown = gap if ahead else -gap
    amount = _number(results, shown.value)
    place = f"{amount}{' points' * _classifies(results)} {'above' if ahead == _classifies(results) else 'below'}"
    place = "level with" if float(amount) == 0.0 else place
    return f"{place} {rival.name}{role} ({_evidence(results, shown, leader, rival)})"


def _evidence(results: Results, gap: Estimate, leader: Entrant, rival: Entrant) -> str:
    if gap.interval is None:
        single = [entrant.name for entrant in (leader, rival) if entrant.single]
        return f"no interval: one seed of {_listed(single)}" if single else "no interval: the seed changes neither"
    if gap.excludes_zero:
        return f"{_ends(results, gap.interval)}, which excludes zero"
    return f"{_ends(results, gap.interval)}, which includes zero: they cannot be told apart"


def _odds(leader: Entrant, rival: Entrant) -> str:
    """The probability of improvement over the runner-up."""
    better = estimate_improvement(leader.gains, rival.gains)
    if better.interval is None:
        return ""
    one = leader.name if leader.gains.constant else f"a seed of {leader.name}"
    other = rival.name if rival.gains.constant else f"one of {rival.name}"
    low, high = better.interval
    figures = f"{better.value:.2f} ({low:.2f} to {high:.2f})"
    return f" The probability that {one} does better there than {other} is {figures}."


def _expense(entrants: Sequence[Entrant]) -> str:
    """Evaluations, distinct ones and time of a seed of each."""
    spent = [
        f"{entrant.name} {_span(trial.evaluations for trial in entrant.trials)} "
        f"({_span(trial.distinct for trial in entrant.trials)}) in "
        f"{duration(statistics.fmean(trial.seconds for trial in entrant.trials))}"
        for entrant in entrants
    ]
    equal = len({trial.evaluations for entrant in entrants for trial in entrant.trials}) == 1
    said = f"Evaluations (distinct ones) and time of a seed: {', '.join(spent)}."
    return said if equal else f"{said} They did not spend equally many evaluations."


def _rivals(order: Sequence[Entrant]) -> list[Entrant]:
    """The runner-up, and the first of each baseline that is not among the two."""
    others = [next((entrant for entrant in order[2:] if entrant.kind == kind), None) for kind in _BASELINES]
    known = {entrant.kind for entrant in order[:2]}
    return [order[1], *(other for other in others if other is not None and other.kind not in known)]


def joined_trials(jobs: Sequence[Results]) -> list[TrialRecord]:
    """The trials of all jobs; of several, an agent's name tells its job."""
    if len(jobs) == 1:
        return list(jobs[0].trials)
    return [trial.model_copy(update={"agent": f"{trial.agent} ({job.name})"}) for job in jobs for trial in job.trials]


def differences(jobs: Sequence[Results]) -> list[str]:
    """In what the problems of several jobs differ."""
    problems = [_problem(job) for job in jobs]
    return [name for name in problems[0] if any(problem[name] != problems[0][name] for problem in problems)]


def _problem(job: Results) -> dict[str, Any]:
    """What must be equal for rewards and test scores to be comparable; the toy problem has neither data nor weights."""
    network = None if job.weights_digest else job.spec.get("network")
    return {
        "data": job.data_digest,
        "weights": job.weights_digest,
        "network": (network, job.decisions, job.dense.costs),
        "budget": job.budgets,
        **{part: job.spec.get(part) for part in ("pruning", "storage", "evaluation", "reward")},
    }


def _classifies(results: Results) -> bool:
    return results.dense.test_accuracy is not None


def _number(results: Results, value: float) -> str:
    """Accuracies and their differences in percent without the sign, errors as they are."""
    text = f"{100 * value:.2f}" if _classifies(results) else f"{value:.4g}"
    return text.removeprefix("-") if float(text) == 0 else text


def _error(results: Results, value: float) -> str:
    return f"{objective_label(objective_of(results))} {_number(results, value)}"


def _ends(results: Results, interval: tuple[float, float]) -> str:
    low, high = (_number(results, end).replace("-", "\u2212") for end in interval)
    return f"{low} to {high}"


def _span(counts: Iterable[int]) -> str:
    known = sorted(counts)
    return f"{known[0]:,}" if known[0] == known[-1] else f"{known[0]:,} to {known[-1]:,}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
