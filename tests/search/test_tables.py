"""The comparison of agents: every figure equals its source, and unfinished trials count for nothing."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agents.random_search import RandomSearch
from agents.uniform import Uniform
from search.figures import duration, human, percent
from search.results import DenseRecord, HistoryPoint, PolicyRecord, Results, TrialRecord
from search.statistics import Sample, estimate_mean
from search.tables import compare, display_table, format_rows, winner

ToyResults = Callable[..., Results]
Changed = Callable[..., Results]


def policy(reward: float, test: float) -> PolicyRecord:
    return PolicyRecord(
        ratios={"a": 0.5},
        widths=(8,),
        costs={"macs": 31_400_000, "size": 850_000},
        reward=reward,
        search_error=-reward,
        test_error=1 - test,
        search_accuracy=1 + reward,
        test_accuracy=test,
    )


def trial(agent: str, seed: int, best: PolicyRecord | None, **changes: Any) -> TrialRecord:
    record = TrialRecord(
        agent=agent,
        kind=agent,
        seed=seed,
        status="finished",
        error=None,
        evaluations=150,
        distinct=140,
        seconds=100.0,
        best=best,
        history=(),
    )
    return record.model_copy(update=changes)


@pytest.fixture
def tiny(toy_results: ToyResults) -> Results:
    trials = (
        trial("ddpg", 0, policy(-0.2, 0.79)),
        trial("ddpg", 1, policy(-0.16, 0.83)),
        trial("ddpg", 2, policy(-0.01, 0.99), status="interrupted"),
        trial("uniform", 0, policy(-0.25, 0.75), evaluations=1, distinct=1, seconds=1.5),
        trial("random", 0, None, status="failed", error="ValueError: no"),
    )
    costs = {"macs": 62.8e6, "size": 1.7e6}
    dense = DenseRecord(costs=costs, search_error=0.07, test_error=0.072, search_accuracy=0.93, test_accuracy=0.928)
    return toy_results(evaluations=1).model_copy(update={"name": "tiny", "dense": dense, "trials": trials})


def test_every_figure_equals_its_source(toy_results: ToyResults) -> None:
    results = toy_results()
    dense, random, uniform = compare([results])
    assert (dense.kind, dense.test_accuracy, dense.costs) == ("dense", results.dense.test_accuracy, results.dense.costs)
    trials = [record for record in results.trials if record.agent == "random"]
    best = max((record.best for record in trials if record.best), key=lambda record: record.reward)
    tests = [record.best.test_accuracy for record in trials if record.best and record.best.test_accuracy is not None]
    assert (random.agent, random.seeds, random.finished, random.feasible) == ("random", 3, 3, 3)
    assert random.evaluations == sum(record.evaluations for record in trials) == 60
    assert random.distinct == sum(record.distinct for record in trials)
    assert random.seconds == sum(record.seconds for record in trials)
    assert (random.best_reward, random.search_accuracy, random.test_accuracy) == (
        best.reward,
        best.search_accuracy,
        best.test_accuracy,
    )
    assert random.test_mean == statistics.fmean(tests)
    assert random.test_std == statistics.stdev(tests)
    errors = [record.best.test_error for record in trials if record.best]
    assert (random.search_error, random.test_error) == (best.search_error, best.test_error)
    assert (random.test_error_mean, random.test_error_std) == (statistics.fmean(errors), statistics.stdev(errors))
    assert random.costs == best.costs
    assert random.relative_costs == {name: cost / results.dense.costs[name] for name, cost in best.costs.items()}
    assert (uniform.seeds, uniform.evaluations, uniform.test_std) == (1, 1, None)


def test_estimates_over_the_seeds(toy_results: ToyResults) -> None:
    results = toy_results(agents=[RandomSearch(), RandomSearch(name="again"), Uniform()], seeds=range(5))
    rows = {row.agent: row for row in compare([results])}
    tests = {
        agent: [trial.best.test_accuracy or 0.0 for trial in results.trials if trial.agent == agent and trial.best]
        for agent in ("random", "uniform")
    }
    row, uniform = rows["random"], rows["uniform"]
    assert row.test_iqm == statistics.fmean(sorted(tests["random"])[1:-1])
    own = estimate_mean(Sample(tuple(tests["random"])))
    assert (row.test_iqm_low, row.test_iqm_high) == own.interval
    assert row.test_error_iqm == pytest.approx(1 - row.test_iqm)
    assert (uniform.test_iqm, uniform.test_iqm_low, uniform.test_iqm_high) == (tests["uniform"][0], None, None)
    assert (row.improvement, row.improvement_over) == (0.5, "again")  # the same seeds: the same policies
    assert uniform.improvement_over == "random"
    won = [statistics.fmean(tests["uniform"]) > test for test in tests["random"]]
    assert uniform.improvement == statistics.fmean(won)
    assert (uniform.improvement_low or 0.0) <= uniform.improvement <= (uniform.improvement_high or 0.0)


def test_one_seed_has_neither_an_interval_nor_odds(toy_results: ToyResults) -> None:
    results = toy_results(seeds=(0,))
    row = compare([results])[1]
    assert row.test_iqm == row.test_accuracy
    assert (row.test_iqm_low, row.improvement, row.improvement_over) == (None, None, None)
    assert "beats best" not in headings_and_rows(results)[0]


def test_the_reward_is_shown_if_it_is_not_minus_the_error(tiny: Results) -> None:
    assert "best reward" not in headings_and_rows(tiny)[0]
    rows = compare([tiny])
    headings, cells = display_table([rows[0], replace(rows[1], best_reward=-2.5)])
    assert [line[headings.index("best reward")] for line in cells] == ["-", "-2.5000"]


def test_a_line_of_the_usual_columns_fits_a_terminal(tiny: Results) -> None:
    text = format_rows(compare([tiny.model_copy(update={"trials": tiny.trials[:2] + tiny.trials[3:4]})]), "table")
    assert max(map(len, text.splitlines())) <= 140


def test_the_winner_is_chosen_on_the_search_split_alone() -> None:
    lucky, better = trial("ddpg", 0, policy(-0.2, 0.99)), trial("ddpg", 1, policy(-0.1, 0.5))
    assert winner([lucky, better]) == (better, better.best)
    assert winner([trial("ddpg", 0, None)]) is None


def test_trials_that_did_not_finish_count_for_nothing(tiny: Results) -> None:
    _, ddpg, uniform, random = compare([tiny])
    assert (ddpg.best_reward, ddpg.best_seed, ddpg.test_accuracy, ddpg.evaluations) == (-0.16, 1, 0.83, 300)
    assert ddpg.state == "2 of 3 finished, 1 interrupted"
    assert uniform.state == "1 finished"
    assert (random.best_reward, random.evaluations, random.seconds, random.costs) == (None, 0, 0, {})
    assert random.state == "0 of 1 finished, 1 failed"


def test_a_finished_trial_without_a_feasible_policy_is_said(tiny: Results) -> None:
    results = tiny.model_copy(update={"trials": (trial("ddpg", 0, policy(-0.2, 0.8)), trial("ddpg", 1, None))})
    row = compare([results])[1]
    assert row.state == "2 finished, 1 found no feasible policy"
    assert (row.test_mean, row.test_std) == (0.8, None)


def test_text(tiny: Results) -> None:
    text = format_rows(compare([tiny]), "table")
    assert [line.split("  ")[0] for line in text.splitlines()] == [
        "agent", "─" * 7, "dense", "ddpg", "uniform", "random"
    ]  # fmt: skip
    assert " ".join(text.splitlines()[3].split()) == (
        "ddpg 2 300 280 84.00 % 83.00 % 81.00 % (79.00 to 83.00) 1.00 31.4 M (50.0 %) 850 kB (50.0 %) "
        "3 min 20 s 2 of 3 finished, 1 interrupted"
    )
    columns = [line.find("%") for line in text.splitlines()[2:5]]
    assert len(set(columns)) == 1


def test_markdown_exactly(tiny: Results) -> None:
    complete = tiny.model_copy(update={"trials": tiny.trials[3:4]})
    assert format_rows(compare([complete]), "md") == (
        "| agent | seeds | evaluations | distinct | search | test | test IQM (95 %) | MACs | size | time |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| dense | - | - | - | 93.00 % | 92.80 % | - | 62.8 M | 1.70 MB | - |\n"
        "| uniform | 1 | 1 | 1 | 75.00 % | 75.00 % | 75.00 % | 31.4 M (50.0 %) | 850 kB (50.0 %) | 1.5 s |\n"
    )


def test_csv_exactly(tiny: Results) -> None:
    complete = tiny.model_copy(update={"trials": tiny.trials[3:4]})
    assert format_rows(compare([complete]), "csv") == (
        "job,spec_id,agent,kind,seeds,finished,failed,interrupted,feasible,evaluations,distinct,stopped,best_reward,"
        "best_seed,search_accuracy,test_accuracy,test_mean,test_std,test_iqm,test_iqm_low,test_iqm_high,objective,"
        "search_error,test_error,test_error_mean,test_error_std,test_error_iqm,test_error_iqm_low,test_error_iqm_high,"
        "improvement,improvement_low,improvement_high,improvement_over,seconds,fine_tuned_accuracy,fine_tuned_error,"
        "macs,macs_of_dense,size,size_of_dense\n"
        "tiny,5f0c2a9b71d34e68,dense,dense,0,0,0,0,0,0,0,0,,,0.93,0.928,,,,,,top1,0.07,0.072,,,,,,,,,,0.0,,,"
        "62800000.0,1.0,1700000.0,1.0\n"
        "tiny,5f0c2a9b71d34e68,uniform,uniform,1,1,0,0,1,1,1,0,-0.25,0,0.75,0.75,0.75,,0.75,,,top1,0.25,0.25,0.25,,0.25,,,,,,,1.5,,,"
        "31400000.0,0.5,850000.0,0.5\n"
    )


def headings_and_rows(results: Results) -> list[dict[str, str]]:
    headings, rows = display_table(compare([results]))
    return [dict(zip(headings, row, strict=True)) for row in rows]


def test_another_objective_has_a_column_beside_top_1(tiny: Results, evaluated: Changed) -> None:
    dense, ddpg, *_, random = headings_and_rows(evaluated(tiny, objective="agreement"))
    assert list(dense)[4:8] == ["agreement (nats)", "search", "test", "test IQM (95 %)"]
    assert (dense["agreement (nats)"], ddpg["agreement (nats)"], random["agreement (nats)"]) == ("0.07", "0.16", "-")
    assert (ddpg["search"], ddpg["test"]) == ("84.00 %", "83.00 %")
    assert headings_and_rows(evaluated(tiny, objective="top5"))[1]["top5 error"] == "16.00 %"


def test_without_classes_the_errors_of_both_splits_are_shown(tiny: Results, not_classifying: Changed) -> None:
    dense, ddpg, *_, random = headings_and_rows(not_classifying(tiny))
    assert list(dense)[4:7] == ["search metrics:boxes", "test metrics:boxes", "test metrics:boxes IQM (95 %)"]
    assert list(dense.values())[4:7] == ["0.07", "0.072", "-"]
    assert list(ddpg.values())[4:7] == ["0.16", "0.17", "0.19 (0.17 to 0.21)"]
    assert list(random.values())[4:7] == ["-", "-", "-"]
    assert not {"search", "test"} & set(dense)


def test_jobs_of_different_objectives_have_a_column_each(tiny: Results, evaluated: Changed) -> None:
    headings, rows = display_table(compare([tiny, evaluated(tiny, objective="cross_entropy")]))
    column = headings.index("cross_entropy (nats)")
    assert [row[column] for row in rows] == ["-"] * 4 + ["0.07", "0.16", "0.25", "-"]


def test_evaluations_stopped_early_are_counted_if_there_are_any(tiny: Results) -> None:
    assert "stopped" not in headings_and_rows(tiny)[0]
    points = tuple(
        HistoryPoint(reward=-0.2, error=0.2, accuracy=0.8, costs={}, best_reward=-0.2, stopped_early=early)
        for early in (True, False, True)
    )
    trials = tuple(record.model_copy(update={"history": points}) for record in tiny.trials)
    rows = headings_and_rows(tiny.model_copy(update={"trials": trials}))
    assert [row["stopped"] for row in rows] == ["-", "4", "2", "0"]


def test_csv_and_json_say_the_same_with_full_precision(toy_results: ToyResults) -> None:
    rows = compare([toy_results()])
    as_json = json.loads(format_rows(rows, "json"))
    as_csv = list(csv.DictReader(io.StringIO(format_rows(rows, "csv"))))
    for row, from_json, from_csv in zip(rows, as_json, as_csv, strict=True):
        assert from_json["test_accuracy"] == row.test_accuracy == float(from_csv["test_accuracy"])
        assert from_json["costs"]["macs"] == row.costs["macs"] == float(from_csv["macs"])
    assert as_json[0]["best_reward"] is None
    assert as_csv[0]["best_reward"] == ""


def test_several_jobs_are_named_and_a_cost_that_one_lacks_is_left_out(tiny: Results) -> None:
    other_dense = DenseRecord(
        costs={"macs": 10.0}, search_error=0.1, test_error=0.1, search_accuracy=0.9, test_accuracy=0.9
    )
    other = tiny.model_copy(update={"name": "a|b\nc", "spec_id": "2", "dense": other_dense, "trials": ()})
    lines = format_rows(compare([tiny, other]), "md").splitlines()
    assert lines[0].startswith("| job | agent |")
    assert lines[-1].startswith("| a\\|b c | dense |")
    assert lines[-1].endswith("| 10 | - | - | - |")


def test_a_cost_has_its_unit(tiny: Results) -> None:
    (dense, *_) = compare([tiny])
    headings, (cells,) = display_table([replace(dense, costs={"sparse_latency_ms": 1.5, "size": 1.7e6})])
    assert [cells[headings.index(cost)] for cost in ("sparse_latency_ms", "size")] == ["1.50 ms", "1.70 MB"]


def test_json_has_null_for_infinities(tiny: Results) -> None:
    row = replace(compare([tiny])[0], best_reward=float("-inf"), costs={"macs": float("nan")})
    loaded = json.loads(format_rows([row], "json"))
    assert (loaded[0]["best_reward"], loaded[0]["costs"]) == (None, {"macs": None})


def test_an_unknown_format_is_refused(tiny: Results) -> None:
    with pytest.raises(ValueError, match=r"^format: expected one of table, csv, json, md, got 'xml'$"):
        format_rows(compare([tiny]), "xml")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0, "MACs", "0 MACs"),
        (272, "MACs", "272 MACs"),
        (999.6, "bytes", "1.00 kB"),
        (512, "bytes", "512 bytes"),
        (1_088, "bytes", "1.09 kB"),
        (62_914_560, "MACs", "62.9 M MACs"),
        (999_600_000, "", "1.00 G"),
        (4.1e12, "MACs", "4.10 T MACs"),
        (3.214, "ms", "3.21 ms"),
        (None, "MACs", "-"),
    ],
)
def test_amounts_for_people(value: float | None, unit: str, expected: str) -> None:
    assert human(value, unit) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.25, "0.2 s"), (41.4, "41 s"), (59.6, "1 min 0 s"), (725, "12 min 5 s"), (12_000, "3 h 20 min")],
)
def test_durations_for_people(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_percentages_for_people() -> None:
    assert (percent(0.84125, 1), percent(None)) == ("84.1 %", "-")
