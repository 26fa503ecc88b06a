"""Networks on the way: every figure equals its record, hollow is over the budget, numbers can be read."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

import pytest

from agents.base import Agent, BestSoFar, OnEvaluation
from amc_env.problem import Evaluation, PruningProblem
from amc_env.toy import ToyProblem
from search.figures import percent
from search.plots import cost_plot
from search.report import render_report
from search.results import Results, TrialRecord
from search.series_report import series_plot, series_table, with_series

ToyResults = Callable[..., Results]
Changed = Callable[..., Results]


class Narrowing(Agent):
    """Narrows all decisions alike, from the dense network on, and keeps every network."""

    kind: str = "narrowing"

    def search(
        self, problem: PruningProblem, *, max_evaluations: int, seed: int, on_evaluation: OnEvaluation
    ) -> Evaluation | None:
        best = BestSoFar(on_evaluation)
        for step in range(max_evaluations):
            widths = problem.widths([0.7 * step / max_evaluations] * len(problem.decisions))
            best(problem.evaluate_widths(widths, probe=True))
        return best.evaluation

    def series(self, problem: PruningProblem, evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
        return tuple(evaluations)


def narrowed(toy_results: ToyResults, evaluations: int = 12) -> tuple[Results, TrialRecord]:
    problem = ToyProblem(budget={"macs": "50%", "size": "70%"})
    results = toy_results(problem, agents=[Narrowing()], seeds=(3,), evaluations=evaluations)
    return results, results.trials[0]


def markers(drawing: str) -> list[ElementTree.Element]:
    """The markers of networks, in their order."""
    wanted = ("winner", "over")
    return [e for e in ElementTree.fromstring(drawing).iter() if e.get("class", "").partition(" ")[0] in wanted]


def test_the_table_names_every_network_as_it_was_recorded(toy_results: ToyResults) -> None:
    results, trial = narrowed(toy_results)
    assert with_series(results) == [trial]
    headings, cells = series_table(results, trial)
    assert headings == ["step", "MACs of dense", "size of dense", "search accuracy", "budget"]
    assert cells == [
        [
            str(step),
            percent(network.costs["macs"] / results.dense.costs["macs"], 1),
            percent(network.costs["size"] / results.dense.costs["size"], 1),
            percent(network.search_accuracy),
            "within" if network.feasible else "over",
        ]
        for step, network in enumerate(trial.series, start=1)
    ]
    assert {"within", "over"} == {line[-1] for line in cells}


def test_the_table_of_a_network_that_does_not_classify_has_its_errors(
    toy_results: ToyResults, not_classifying: Changed, evaluated: Changed
) -> None:
    results, _ = narrowed(toy_results)
    errors = not_classifying(results)
    headings, cells = series_table(errors, errors.trials[0])
    assert headings[-2:] == ["search metrics:boxes", "budget"]
    assert [line[-2] for line in cells] == [f"{network.search_error:.4g}" for network in errors.trials[0].series]
    both = evaluated(results, objective="agreement")
    assert series_table(both, both.trials[0])[0][-3:] == ["search agreement (nats)", "search accuracy", "budget"]
    assert "metrics:boxes of the networks on the way" in series_plot(errors, errors.trials[0], "macs")


def test_the_table_of_a_front_names_budgets_and_has_both_splits(toy_results: ToyResults, evaluated: Changed) -> None:
    results, trial = narrowed(toy_results, 2)
    series = tuple(
        network.model_copy(update={"budget": budget, "test_error": 0.125, "test_accuracy": 0.875, "feasible": True})
        for network, budget in zip(trial.series, (1.0, 0.75), strict=True)
    )
    front = evaluated(results, objective="agreement")
    headings, cells = series_table(front, trial.model_copy(update={"series": series}))
    assert headings[3:] == [
        "search agreement (nats)",
        "test agreement (nats)",
        "search accuracy",
        "test accuracy",
        "budget",
    ]
    assert [line[4] for line in cells] == ["0.125", "0.125"]
    assert [line[-2:] for line in cells] == [["87.50 %", "100.0 %"], ["87.50 %", "75.0 %"]]


@pytest.mark.parametrize("width", [360, 960])
@pytest.mark.parametrize("count", [1, 2, 12, 60])
def test_the_plot_marks_every_network_and_numbers_those_that_stand_apart(
    toy_results: ToyResults, count: int, width: int
) -> None:
    results, trial = narrowed(toy_results, count)
    drawing = series_plot(results, trial, "macs", width)
    drawn = markers(drawing)
    assert len(drawn) == len(trial.series) == count
    for step, (element, network) in enumerate(zip(drawn, trial.series, strict=True), start=1):
        assert element.attrib["class"] == ("winner c0" if network.feasible else "over c0")
        share = percent(network.costs["macs"] / results.dense.costs["macs"], 1)
        over = "" if network.feasible else ", over the budget"
        (title,) = element
        assert title.text == f"{step}: {percent(network.search_accuracy)} at {share} of the MACs{over}"
    places = [(float(element.attrib["cx"]), float(element.attrib["cy"])) for element in drawn]
    assert places == sorted(places, reverse=True)
    numbers = [e.text or "" for e in ElementTree.fromstring(drawing).iter("text") if e.get("class") == "step"]
    numbered = [places[int(number) - 1] for number in numbers]
    assert numbered[0] == places[-1]
    assert all(math.dist(one, two) >= 20 for one, two in itertools.pairwise(numbered))
    for element in ElementTree.fromstring(drawing).iter():
        assert 0 <= float(element.get("x", 0)) <= width


def test_the_budget_is_dotted_and_the_dense_network_level(toy_results: ToyResults) -> None:
    results, trial = narrowed(toy_results)
    drawing = series_plot(results, trial, "macs")
    assert drawing.count('class="limit"') == 1
    assert "budget 50.0 %" in drawing
    assert f"dense {percent(results.dense.search_accuracy, 1)}" in drawing


def test_the_report_shows_them_and_how_to_export_one(toy_results: ToyResults) -> None:
    results, trial = narrowed(toy_results)
    page = render_report(results)
    assert "<h2>Networks on the way</h2>" in page
    assert "amc export DIR --agent narrowing --seed 3 --step N --out NEW" in page
    assert page.count("Accuracy of the networks on the way of narrowing, seed 3, against MACs") == 2  # wide and narrow
    assert page.count("of the networks on the way of narrowing, seed 3, against size") == 2
    for line in series_table(results, trial)[1]:
        assert "".join(f"<td>{cell}</td>" for cell in line) in page
    assert "Networks on the way" not in render_report(toy_results())


def test_what_an_agent_is_called_is_escaped(toy_results: ToyResults) -> None:
    results, trial = narrowed(toy_results)
    named = results.model_copy(update={"trials": (trial.model_copy(update={"agent": '<script>"&'}),)})
    assert "<script" not in render_report(named)


def test_networks_over_the_budget_are_in_no_plot_of_what_was_found(toy_results: ToyResults) -> None:
    results, trial = narrowed(toy_results)
    within = sum(network.feasible for network in trial.series)
    paths = ElementTree.fromstring(cost_plot(results, "macs")).iter("path")
    (cloud,) = (path for path in paths if "cloud" in path.attrib["class"])
    assert cloud.attrib["d"].count("M") == within < len(trial.series)
