"""The report: honest at the top, complete, escaped, self-contained; its drawings well-formed and exact."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.base import Agent, OnEvaluation
from agents.uniform import Uniform
from amc_env.problem import Evaluation, PruningProblem
from amc_env.toy import ToyProblem
from search.figures import percent
from search.interval_plot import interval_plot
from search.plots import cost_plot, pareto_front, ratios_plot, score_name
from search.progress_plot import has_repeats, has_times, progress_of, progress_plot
from search.report import render_report, write_report
from search.results import HistoryPoint, Results, SplitRecord, TrialRecord
from search.standing import few_seeds, standing
from search.svg import colour, padded, tick_step, ticks
from search.tables import compare, display_table, winner
from search.theme import CSS
from search.verdict import caveats, score_note, verdict

ToyResults = Callable[..., Results]
Changed = Callable[..., Results]
VOID = {"meta", "br", "link", "img", "input", "hr"}


class OverBudget(Agent):
    """Removes nothing, so that no budget is ever met."""

    kind: str = "over"

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        for _ in range(max_evaluations):
            on_evaluation(problem.evaluate_widths(problem.dense_widths))
        return None


class Page(HTMLParser):
    """Tags in order, with what is left open or closed wrongly, all attributes and the visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open:
            self.cells[-1] += data


def fail(results: Results, index: int, error: str) -> Results:
    trials = list(results.trials)
    trials[index] = trials[index].model_copy(update={"status": "failed", "error": error, "best": None})
    return results.model_copy(update={"trials": tuple(trials), "status": "failed"})


def with_test_accuracy(results: Results, agent: str, accuracy: float) -> Results:
    trials = [
        trial.model_copy(update={"best": trial.best.model_copy(update={"test_accuracy": accuracy})})
        if trial.agent == agent and trial.best
        else trial
        for trial in results.trials
    ]
    return results.model_copy(update={"trials": tuple(trials)})


def test_the_verdict_names_the_winner_its_costs_and_uniform(toy_results: ToyResults) -> None:
    results = with_test_accuracy(with_test_accuracy(toy_results(), "random", 0.8412), "uniform", 0.8091)
    cost = percent(compare([results])[1].relative_costs["macs"], 1)
    assert verdict(results) == (
        f"random found the best policy: 84.1 % on the test split at {cost} of the MACs, 3.2 points above uniform; "
        "the dense network has 97.0 %."
    )
    assert caveats(results) == [few_seeds(results)]


@pytest.mark.parametrize(("accuracy", "said"), [(0.80, "level with uniform"), (0.788, "1.2 points below uniform")])
def test_the_verdict_says_when_uniform_was_not_beaten_on_the_test_split(
    toy_results: ToyResults, accuracy: float, said: str
) -> None:
    results = with_test_accuracy(with_test_accuracy(toy_results(), "random", accuracy), "uniform", 0.80)
    assert verdict(results).startswith("The search did not beat uniform on the test split: random, the best on the")
    assert said in verdict(results)


def with_hits(results: Results, hits: dict[str, list[int]]) -> Results:
    def put(trial: TrialRecord) -> TrialRecord:
        packed = base64.b64encode(np.packbits(np.array(hits[trial.agent])).tobytes()).decode()
        return trial.model_copy(update={"best": trial.best and trial.best.model_copy(update={"test_correct": packed})})

    splits = {"test": SplitRecord(images=len(hits["random"]), source="")}
    return results.model_copy(update={"trials": tuple(map(put, results.trials)), "splits": splits})


def test_a_lead_that_chance_makes_is_told(toy_results: ToyResults) -> None:
    uniform = [0] * 12 + [1] * 988
    chance, lead = uniform.copy(), uniform.copy()
    chance[:12], chance[12:17] = [1] * 12, [0] * 5
    lead[:12], lead[12:14] = [1] * 12, [0] * 2
    results = toy_results()
    assert caveats(with_hits(results, {"random": chance, "uniform": uniform}))[-1] == (
        "The difference from uniform may be chance: of 1,000 test images 12 are classified rightly by random alone and "
        "5 by uniform alone (McNemar's exact test: p = 0.14)."
    )
    without = caveats(results)
    assert caveats(with_hits(results, {"random": lead, "uniform": uniform})) == without  # p = 0.013


@pytest.mark.parametrize(
    ("held", "decisions", "said"),
    [(10, 10, "10 of 10"), (2, 10, "2 of 10"), (1, 10, None), (0, 10, None), (0, 0, None)],
)
def test_a_winner_that_max_ratio_holds_is_told(
    toy_results: ToyResults, held: int, decisions: int, said: str | None
) -> None:
    results = toy_results(ToyProblem(10))
    best = winner(results.trials)
    assert best is not None
    widths = best[1].widths[:decisions]
    narrowest = (*widths[:held], *(width - 1 if index % 2 else None for index, width in enumerate(widths[held:])))
    spec = {**results.spec, "pruning": {"max_ratio": 0.8}}
    expected = (
        f"{said} decisions of the winner cannot get narrower under pruning.max_ratio (0.8); with a larger one the "
        f"search may find a better network."
    )
    lines = caveats(results.model_copy(update={"spec": spec, "narrowest": narrowest}))
    assert lines == [*caveats(results), *([expected] if said else [])]


def test_the_verdict_says_when_uniform_wins(toy_results: ToyResults) -> None:
    results = toy_results()
    only_uniform_good = tuple(
        trial.model_copy(update={"best": trial.best.model_copy(update={"reward": -0.9})})
        if trial.agent == "random" and trial.best
        else trial
        for trial in results.trials
    )
    assert verdict(results.model_copy(update={"trials": only_uniform_good})).startswith(
        "random did not beat uniform, the best on the search split: "
    )


def test_the_verdict_says_when_nothing_is_feasible(toy_results: ToyResults) -> None:
    results = toy_results(agents=[OverBudget()], evaluations=4)
    assert verdict(results) == (
        "No feasible policy was found: none of 12 evaluations met the budget (MACs ≤ 50.0 % of dense, 136 MACs); "
        "the nearest was 100.0 % over it."
    )
    page = render_report(results)
    assert "no feasible policy has been found" in page
    assert "no evaluation was within the budgets" in page


def test_the_verdict_says_when_no_trial_finished(toy_results: ToyResults) -> None:
    results = toy_results(seeds=(0,), evaluations=3)
    for index in range(len(results.trials)):
        results = fail(results, index, "boom")
    assert verdict(results) == "No trial finished: 2 failed."
    assert render_report(results)


def test_trials_that_did_not_finish_are_named_at_the_top(toy_results: ToyResults) -> None:
    results = fail(toy_results(), 1, "boom")
    assert caveats(results)[0] == (
        "The job failed: 3 of 4 trials finished (random seed 1 failed). "
        "All figures are of finished trials; the plots of progress and of costs also show the others."
    )
    interrupted = toy_results().model_copy(update={"status": "interrupted"})
    assert caveats(interrupted)[0].startswith("The job was interrupted: 4 of 4 trials finished.")


def test_a_seed_without_a_feasible_policy_is_named(toy_results: ToyResults) -> None:
    results = toy_results()
    trials = (results.trials[0].model_copy(update={"best": None}), *results.trials[1:])
    changed = results.model_copy(update={"trials": trials})
    assert "random found no feasible policy with seed 0." in caveats(changed)


def test_everything_a_user_names_is_escaped(toy_results: ToyResults) -> None:
    results = fail(toy_results(), 0, "\x1b[31mValueError\x1b[0m: <script>alert('x')</script> & more")
    results = results.model_copy(
        update={
            "name": "<script>name</script>",
            "spec": {"note": "</pre><script>spec</script>"},
            "versions": {"<script>": "1"},
            "data_digest": "<script>",
            "decisions": tuple(
                decision.model_copy(update={"name": f"<script>&{decision.name}"}) for decision in results.decisions
            ),
            "trials": tuple(
                trial.model_copy(
                    update={
                        "agent": f'<script>"{trial.agent}',
                        "best": trial.best
                        and trial.best.model_copy(
                            update={"ratios": {f"<script>&{name}": ratio for name, ratio in trial.best.ratios.items()}}
                        ),
                    }
                )
                for trial in results.trials
            ),
        }
    )
    page = Page(render_report(results))
    assert "script" not in page.tags
    assert page.open == []
    assert "ValueError: <script>alert('x')</script> & more" in page.text
    assert "</pre><script>spec</script>" in page.text


def test_the_page_loads_nothing_and_is_complete(toy_results: ToyResults) -> None:
    results = toy_results()
    html = render_report(results)
    page = Page(html)
    assert page.open == []
    assert not re.search(r"https?://|@import|url\(|src=|<script|<link", html)
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    for text in (
        results.name,
        results.spec_id,
        results.data_digest,
        results.weights_digest,
        results.created,
        "torch 2.15.0",
        "5,000 images, test[5000:10000]",
        "macs: 50%",
    ):
        assert text in page.text


def test_texts_are_not_called_images(toy_results: ToyResults) -> None:
    results = toy_results()
    of_texts = results.model_copy(update={"spec": {**results.spec, "data": {"kind": "stdlib_docs"}}})
    assert "5,000 texts, test[5000:10000]" in Page(render_report(of_texts)).text


def test_every_number_of_the_tables_equals_its_source(toy_results: ToyResults) -> None:
    results = toy_results()
    page = Page(render_report(results))
    _, rows = display_table(compare([results]))
    expected = [re.sub(r" \((.*)\)$", r"\1", cell) for row in rows for cell in row]
    assert page.cells[: len(expected)] == expected
    best = max((trial.best for trial in results.trials if trial.best), key=lambda policy: policy.reward)
    layers = [
        [decision.name, "1×1", "1", str(decision.channels), str(kept), percent(best.ratios[decision.name], 1), ""]  # noqa: RUF001
        for decision, kept in zip(results.decisions, best.widths, strict=True)
    ]
    assert page.cells[len(expected) :] == [cell for row in layers for cell in row]


def with_test_error(results: Results, agent: str, error: float) -> Results:
    trials = [
        trial.model_copy(update={"best": trial.best.model_copy(update={"test_error": error})})
        if trial.agent == agent and trial.best
        else trial
        for trial in results.trials
    ]
    return results.model_copy(update={"trials": tuple(trials)})


def test_a_network_that_does_not_classify_is_reported_by_its_errors(
    toy_results: ToyResults, not_classifying: Changed
) -> None:
    results = not_classifying(toy_results())
    results = with_test_error(with_test_error(results, "random", 0.125), "uniform", 0.5)
    cost = percent(compare([results])[1].relative_costs["macs"], 1)
    assert verdict(results) == (
        f"random found the best policy: metrics:boxes 0.125 on the test split at {cost} of the MACs, 0.375 below "
        "uniform; the dense network has metrics:boxes 0.03."
    )
    worse = with_test_error(results, "random", 0.75)
    assert "metrics:boxes 0.75 on the test split" in verdict(worse)
    assert "0.25 above uniform; the dense" in verdict(worse)
    assert "level with uniform" in verdict(with_test_error(results, "random", 0.5))
    assert caveats(results) == [few_seeds(results)]
    page = Page(render_report(results))
    assert page.open == []
    assert "metrics:boxes against MACs" in page.text
    assert "search and test are its errors" in page.text
    assert "ccurac" not in page.text


def test_a_cost_plot_of_errors_has_the_least_error_on_the_front(
    toy_results: ToyResults, not_classifying: Changed
) -> None:
    results = not_classifying(toy_results())
    assert (score_name(toy_results()), score_name(results)) == ("Accuracy", "metrics:boxes")
    root = ElementTree.fromstring(cost_plot(results, "macs"))
    best = max((trial.best for trial in results.trials if trial.best), key=lambda policy: policy.reward)
    titles = [title.text or "" for title in root.iter("title")]
    assert any(
        title.startswith(f"random: {best.search_error:.4g} search, {best.test_error:.4g} test") for title in titles
    )
    front = next(element for element in root.iter("path") if element.get("class") == "front")
    heights = [float(corner.split()[1]) for corner in front.attrib["d"].strip("M").split("L")]
    assert heights == sorted(heights)  # downwards in a drawing, to smaller errors
    assert "metrics:boxes, search split" in [element.text for element in root.iter("text")]


def test_evaluations_stopped_early_are_not_in_the_cost_plot(toy_results: ToyResults) -> None:
    results = toy_results()
    trials = tuple(
        trial.model_copy(
            update={"history": tuple(point.model_copy(update={"stopped_early": True}) for point in trial.history)}
        )
        for trial in results.trials
    )
    assert "no evaluation was within the budgets" in cost_plot(results.model_copy(update={"trials": trials}), "macs")


def test_probes_of_what_violates_the_budget_are_evaluations_but_not_in_the_cost_plot(toy_results: ToyResults) -> None:
    """A probe has an accuracy and no reward."""
    results = toy_results(agents=[Uniform()], evaluations=1)
    (trial,) = results.trials
    (point,) = trial.history
    probe = point.model_copy(update={"reward": None, "best_reward": None, "accuracy": 0.99, "widths": (16,) * 6})
    probed = trial.model_copy(update={"history": (probe, probe, point), "evaluations": 3, "distinct": 2})
    changed = results.model_copy(update={"trials": (probed,)})
    assert compare([changed])[1].evaluations == 3
    assert cost_plot(changed, "macs") == cost_plot(results, "macs")
    progress = progress_of(changed.trials)
    assert progress is not None
    assert progress.middle == (float("-inf"), float("-inf"), point.best_reward)
    root = ElementTree.fromstring(progress_plot(changed))
    assert "nan" not in ElementTree.tostring(root, encoding="unicode")


def test_the_note_says_what_the_scores_of_the_splits_are_of(toy_results: ToyResults, evaluated: Changed) -> None:
    results = toy_results()
    assert score_note(results) == ""
    sequential = evaluated(results, objective="agreement")
    assert score_note(sequential) == (
        "Fidelity sequential, objective agreement. The search figures are what the agents saw, networks fitted on 250 "
        "of the 500 calibration images; the test figures are of the final network, fitted on all of them."
    )
    same = "Search and test score the same network, fitted on all 500 calibration images."
    assert score_note(evaluated(results, images=600)) == f"Fidelity sequential, objective top1. {same}"
    assert score_note(evaluated(results, fidelity="prefix")) == f"Fidelity prefix, objective top1. {same}"
    assert score_note(evaluated(results, fidelity="magnitude")) == (
        "Fidelity magnitude, objective top1. No weights are fitted; search and test score the same network."
    )
    trained = "whose blocks are trained on the calibration images, 10 epochs each."
    assert score_note(evaluated(results, block_epochs=10)) == (
        "Fidelity sequential, objective top1. The search figures are what the agents saw, networks fitted on 250 of "
        f"the 500 calibration images; the test figures are of the final network, fitted on all of them and {trained}"
    )
    assert score_note(evaluated(results, block_epochs=1)).endswith("images, 1 epoch each.")
    assert score_note(evaluated(results, fidelity="prefix", block_epochs=10)) == (
        "Fidelity prefix, objective top1. The search figures are what the agents saw, networks fitted on all 500 "
        f"calibration images; the test figures are of the final network, {trained}"
    )
    assert score_note(evaluated(results, fidelity="magnitude", block_epochs=10)) == (
        "Fidelity magnitude, objective top1. The search figures are what the agents saw, networks no weights of which "
        f"are fitted; the test figures are of the final network, {trained}"
    )
    assert score_note(sequential) in Page(render_report(sequential)).text.replace("\xa0", " ")


def test_write_report(toy_results: ToyResults, tmp_path: Path) -> None:
    results = toy_results(evaluations=3)
    write_report(results, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render_report(results)


@pytest.mark.parametrize("width", [360, 960])
@pytest.mark.parametrize("decisions", [1, 60, 120])
def test_drawings_are_well_formed_and_stay_inside(toy_results: ToyResults, decisions: int, width: int) -> None:
    results = toy_results(ToyProblem(decisions, budget={"macs": "50%", "size": "70%"}), evaluations=6)
    for drawing in (
        progress_plot(results, width=width),
        ratios_plot(results, width=width),
        cost_plot(results, "macs", width=width),
        cost_plot(results, "size", width=width),
        interval_plot(results, width=width),
        progress_plot(results, width=width, over="distinct evaluations"),
    ):
        root = ElementTree.fromstring(drawing)
        _, _, right, bottom = map(float, root.attrib["viewBox"].split())
        assert right == width
        for element in root.iter():
            x, y = float(element.get("x", 0)), float(element.get("y", 0))
            assert 0 <= x <= right
            assert 0 <= y <= bottom
            assert "nan" not in element.get("d", "")
            assert "inf" not in element.get("d", "")


def test_ratios_plot_has_a_bar_for_each_decision_with_its_channel_counts(toy_results: ToyResults) -> None:
    results = toy_results()
    root = ElementTree.fromstring(ratios_plot(results))
    titles = [title.text for title in root.iter("title")]
    best = compare([results])[1]
    policy = next(trial.best for trial in results.trials if trial.best and trial.seed == best.best_seed)
    assert titles[:6] == [
        f"{decision.name}: {kept} of 16 channels kept, {percent(1 - kept / 16, 1)} removed"
        for decision, kept in zip(results.decisions, policy.widths, strict=True)
    ]
    bars = [element for element in root.iter("rect") if element.get("class") == "bar"]
    heights = [float(bar.attrib["height"]) for bar in bars[:6]]
    full = float(next(e for e in root.iter("rect") if e.get("class") == "slot").attrib["height"])
    assert heights == pytest.approx([full * (1 - kept / 16) for kept in policy.widths], abs=0.02)


def test_progress_is_the_median_with_the_range_of_the_seeds(toy_results: ToyResults) -> None:
    results = toy_results(evaluations=5)
    curves: tuple[list[float | None], ...] = ([None, -0.5, -0.4], [-0.6, -0.6], [-0.9, -0.3, -0.2])
    trials = tuple(
        trial.model_copy(
            update={
                "history": tuple(
                    HistoryPoint(reward=value, error=None, accuracy=None, costs={}, best_reward=value)
                    for value in curve
                )
            }
        )
        for trial, curve in zip(results.trials, curves, strict=False)
    )
    progress = progress_of(trials)
    assert progress is not None
    assert progress.middle == (-0.9, -0.5, -0.4)
    assert progress.low == (float("-inf"), -0.6, -0.6)
    assert progress.high == (-0.6, -0.3, -0.2)


def test_progress_over_time_holds_each_best_until_the_next(toy_results: ToyResults) -> None:
    results = toy_results(evaluations=2)
    times = ((1.0, 4.0), (2.0, 3.0), (0.5, 9.0))
    values = ((-0.5, -0.1), (-0.4, -0.2), (-0.9, -0.8))
    trials = tuple(
        trial.model_copy(
            update={
                "history": tuple(
                    HistoryPoint(
                        reward=best,
                        error=-best,
                        accuracy=None,
                        costs=results.dense.costs,
                        best_reward=best,
                        seconds=at,
                    )
                    for at, best in zip(*pair, strict=True)
                )
            }
        )
        for trial, *pair in zip(results.trials, times, values, strict=False)
    )
    changed = results.model_copy(update={"trials": trials})
    progress = progress_of(trials, "time")
    assert progress is not None
    assert progress.at == (2.0, 3.0, 4.0, 9.0)
    assert progress.middle == (-0.5, -0.5, -0.2, -0.2)
    assert progress.low == (-0.9, -0.9, -0.9, -0.8)
    assert progress.high == (-0.4, -0.2, -0.1, -0.1)
    assert has_times(changed)
    assert "seconds of a trial" in progress_plot(changed, over="time")
    assert "Over time" in render_report(changed)
    assert not has_times(results)
    assert "Over time" not in render_report(results)


def test_progress_over_distinct_evaluations_leaves_out_repeats(toy_results: ToyResults) -> None:
    results = toy_results(agents=[Uniform()], evaluations=1)
    history = tuple(
        HistoryPoint(
            widths=(width,), reward=value, error=None, accuracy=None, costs=results.dense.costs, best_reward=value
        )
        for width, value in ((3, -0.5), (4, -0.4), (3, -0.4), (5, -0.3), (4, -0.3))
    )
    trial = results.trials[0].model_copy(update={"history": history, "evaluations": 5, "distinct": 3})
    changed = results.model_copy(update={"trials": (trial,)})
    every, distinct = progress_of([trial]), progress_of([trial], "distinct evaluations")
    assert every is not None
    assert distinct is not None
    assert every.middle == (-0.5, -0.4, -0.4, -0.3, -0.3)
    assert distinct.middle == (-0.5, -0.4, -0.3)
    assert has_repeats(changed)
    assert "Without repeated evaluations" in render_report(changed)
    assert "Without repeated evaluations" not in render_report(results)
    unknown = tuple(point.model_copy(update={"widths": ()}) for point in history)
    assert not has_repeats(changed.model_copy(update={"trials": (trial.model_copy(update={"history": unknown}),)}))


def test_an_agent_that_ends_before_the_others_has_its_marker_there(toy_results: ToyResults) -> None:
    results = toy_results(seeds=(0,), evaluations=10)
    shorter = results.trials[0].model_copy(update={"agent": "shorter", "history": results.trials[0].history[:4]})
    root = ElementTree.fromstring(progress_plot(results.model_copy(update={"trials": (*results.trials, shorter)})))
    markers = [element for element in root.iter("polygon") if element.get("class") == "winner c2"]
    assert len(markers) == 1


def test_the_interval_plot_shows_every_seed_and_the_figures_of_the_table(toy_results: ToyResults) -> None:
    results = toy_results(seeds=range(5))
    root = ElementTree.fromstring(interval_plot(results))
    rows = {row.agent: row for row in compare([results])}
    said = [element.text or "" for element in root.iter("text")]
    random = rows["random"]
    assert random.test_iqm is not None
    assert random.test_iqm_low is not None
    assert random.test_iqm_high is not None
    ends = f"({100 * random.test_iqm_low:.2f} to {100 * random.test_iqm_high:.2f})"
    assert f"{percent(random.test_iqm)}  {ends}" in said
    assert percent(rows["uniform"].test_iqm) in said
    bars = [element for element in root.iter("rect") if element.get("class") == "interval"]
    seeds = [element.attrib["d"] for element in root.iter("path") if element.get("class", "").startswith("seed")]
    assert len(bars) == 1  # a constant has no interval
    assert [path.count("M") for path in seeds] == [5]
    marks = [element for element in root.iter() if element.get("class", "").startswith("winner")]
    assert len(marks) == 2


def test_the_interval_plot_of_errors(toy_results: ToyResults, not_classifying: Changed) -> None:
    results = not_classifying(toy_results())
    said = [element.text or "" for element in ElementTree.fromstring(interval_plot(results)).iter("text")]
    assert "metrics:boxes, test split" in said
    assert not [text for text in said if "%" in text]


def test_the_standing_is_at_the_top_of_the_page(toy_results: ToyResults) -> None:
    results = toy_results()
    text = Page(render_report(results)).text.replace("\xa0", " ")
    for line in standing([results]):
        assert line in text


def test_one_evaluation_is_a_dashed_line_across(toy_results: ToyResults) -> None:
    root = ElementTree.fromstring(progress_plot(toy_results()))
    lines = [element for element in root.iter("line") if element.get("class", "").startswith("once")]
    assert len(lines) == 1
    assert lines[0].get("y1") == lines[0].get("y2")


def test_an_unfinished_trial_is_not_in_the_curve_of_the_others(toy_results: ToyResults) -> None:
    two, three = toy_results(seeds=(0, 1)), toy_results(seeds=(0, 1, 2))
    assert [trial.seed for trial in three.trials if trial.agent == "random"] == [0, 1, 2]
    drawing = progress_plot(fail(three, 2, "boom"))
    curve = progress_of(trial for trial in two.trials if trial.agent == "random")
    assert curve is not None
    assert f"<title>random: {curve.middle[-1]:.4f} after 20 evaluations</title>" in drawing
    assert drawing.count("<title>random, seed 2: ") == drawing.count("after 20 evaluations, not finished</title>") == 1


points = st.lists(st.tuples(st.floats(0, 1, width=16), st.floats(0, 1, width=16)), max_size=40)


@given(points)
def test_pareto_front_equals_brute_force(cloud: list[tuple[float, float]]) -> None:
    def beaten(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in cloud)

    assert pareto_front(cloud) == sorted({point for point in cloud if not beaten(point)})


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 12))
def test_ticks_are_round_and_inside(low: float, width: float, count: int) -> None:
    high = low + width
    values, step = ticks(low, high, count), tick_step(low, high, count)
    assert len(values) <= count + 1
    assert all(low - 1e-6 * step <= value <= high + 1e-6 * step for value in values)
    assert f"{step:.0e}"[0] in "125"


def test_ticks_of_a_known_range() -> None:
    assert ticks(0.0, 1.0, 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert padded([3.0, 3.0], share=0.0, least=2.0) == (2.0, 4.0)


def test_each_of_a_dozen_agents_has_a_colour_of_its_own_in_light_and_dark() -> None:
    declared = re.findall(r"--(c\d+): (#[0-9a-f]{6});", CSS)
    classes = {colour(index) for index in range(12)}
    assert len(classes) == 12
    for name in classes:
        assert f".{name} {{ color: var(--{name}); }}" in CSS
        assert sum(declared_name == name for declared_name, _ in declared) == 2  # light and dark
    assert len({value for _, value in declared}) == 24
