"""Sections for the page: drawn of unfinished jobs too, escaped, without styles and scripts of their own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from xml.etree import ElementTree

from amc_env.toy import ToyProblem
from search.progress_plot import progress_plot
from search.results import Results, TrialStatus
from search.service.fragments import comparison_sections, job_sections
from search.standing import standing

ToyResults = Callable[..., Results]


def stopped(results: Results, status: TrialStatus, *, after: int, trials: range) -> Results:
    """The same with some trials stopped after so many evaluations."""
    changed = list(results.trials)
    for index in trials:
        trial = changed[index]
        cut = {"status": status, "best": None, "history": trial.history[:after], "evaluations": after}
        changed[index] = trial.model_copy(update=cut)
    return results.model_copy(update={"trials": tuple(changed), "status": "interrupted"})


class Markup(HTMLParser):
    """The tags and the names of attributes that occur."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes.update(name for name, _ in attrs)


def texts(sections: Mapping[str, str | dict[str, str]]) -> Iterator[str]:
    for section in sections.values():
        yield from section.values() if isinstance(section, dict) else [section]


def curves(drawing: str, css: str) -> list[str]:
    root = ElementTree.fromstring(drawing)
    return [element.attrib["d"] for element in root.iter("path") if element.get("class", "").startswith(css)]


def test_a_trial_that_is_not_finished_is_a_thin_line_as_far_as_it_came(toy_results: ToyResults) -> None:
    results = toy_results(evaluations=20)
    results = results.model_copy(update={"spec": {**results.spec, "evaluations": 20}})
    running = stopped(results, "interrupted", after=8, trials=range(1, 3))
    drawing = progress_plot(running)
    assert len(curves(drawing, "curve thin c0")) == 2
    titles = [title.text or "" for title in ElementTree.fromstring(drawing).iter("title")]
    best = running.trials[1].history[-1].best_reward
    assert f"random, seed 1: {best:.4f} after 8 evaluations, not finished" in titles
    assert max(float(x) for x in re.findall(r"([\d.]+) ", curves(drawing, "curve thin")[0])) < 960 * 0.5
    assert not curves(progress_plot(results), "curve thin")


def test_a_job_is_drawn_before_any_trial_has_finished(toy_results: ToyResults) -> None:
    results = toy_results(evaluations=12)
    running = stopped(results, "interrupted", after=5, trials=range(4))
    sections = job_sections(running, running=True)
    assert "random, best so far" in str(sections["ratios"])
    assert "Thin: a trial that is not finished." in str(sections["progress"])
    assert list(sections["cost"]) == ["macs"]
    assert (sections["standing"], sections["comparison"], sections["layers"]) == ("", "", "")
    assert "No trial finished: 4 interrupted." in str(job_sections(running, running=False)["standing"])


def test_nothing_is_drawn_of_a_job_without_evaluations(toy_results: ToyResults) -> None:
    begun = stopped(toy_results(evaluations=2), "interrupted", after=0, trials=range(4))
    assert list(texts(job_sections(begun, running=True))) == [""] * 6


def test_trials_of_a_running_job_are_not_called_interrupted(toy_results: ToyResults) -> None:
    running = stopped(toy_results(), "interrupted", after=3, trials=range(1, 3))
    assert "1 of 3 finished, 2 interrupted" in str(job_sections(running, running=False)["comparison"])
    said = str(job_sections(running, running=True)["comparison"])
    assert "1 of 3 finished" in said
    assert "interrupted" not in said


def test_sections_have_no_style_no_script_and_no_markup_of_a_user(toy_results: ToyResults) -> None:
    results = toy_results()
    hostile = '<img src=x onerror="alert(1)">'
    results = results.model_copy(
        update={
            "name": hostile,
            "trials": tuple(trial.model_copy(update={"agent": hostile + trial.agent}) for trial in results.trials),
        }
    )
    smaller = toy_results(ToyProblem(3))
    sections = [job_sections(results, running=False), job_sections(results, running=True)]
    sections += [comparison_sections([results, results]), comparison_sections([results, smaller])]
    html = "\n".join(text for each in sections for text in texts(each))
    assert "&lt;img src=x" in html
    found = Markup(html)
    assert found.tags <= {
        "section", "h2", "h3", "p", "div", "table", "thead", "tbody", "tr", "th", "td", "small", "br", "ul", "li",
        "figure", "svg", "g", "title", "path", "line", "rect", "circle", "polygon", "text",
    }  # fmt: skip
    assert not {name for name in found.attributes if name.startswith("on") or name in ("style", "href", "src", "id")}


def test_jobs_of_one_problem_share_their_drawings_and_others_stand_apart(toy_results: ToyResults) -> None:
    first, second = toy_results(), toy_results(seeds=(3, 4, 5))
    together = comparison_sections([first, second])
    assert "apart" not in together
    for agent in ("random (toy-half-macs)", "random (toy-half-macs (2))"):
        assert agent in str(together["progress"])
        assert agent in str(together["comparison"])
    other = toy_results(ToyProblem(3))
    apart = comparison_sections([first, other])
    assert list(apart["apart"]) == ["toy-half-macs", "toy-half-macs (2)"]
    assert "Agents of different jobs are not compared" in str(apart["standing"])


def test_two_jobs_of_one_name_are_two_competitors(toy_results: ToyResults) -> None:
    first, second = toy_results(), toy_results(seeds=(3, 4, 5))
    said = standing([first, second])[0]
    assert "(toy-half-macs)" in said
    assert "(toy-half-macs (2))" in said
