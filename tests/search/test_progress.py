"""The live view of a job."""

from __future__ import annotations

import io

from rich.console import Console

from search.progress import CalibrationProgress, LiveProgress, TrialProgress, seconds_left


def shown(live: LiveProgress) -> list[list[str]]:
    output = io.StringIO()
    Console(file=output, width=100).print(live.table())
    return [line.split() for line in output.getvalue().splitlines()]


def live_view() -> LiveProgress:
    return LiveProgress(["ddpg-seed0", "uniform-seed0"], 20, Console(file=io.StringIO()))


def test_one_line_per_trial() -> None:
    with live_view() as live:
        live(TrialProgress("ddpg-seed0", "running", 5, -0.12345, 20.0))
        assert shown(live)[1:] == [
            ["ddpg-seed0", "running", "-0.1235", "5/20", "0:01:00"],
            ["uniform-seed0", "waiting", "-", "0/20", "-"],
        ]
        live(TrialProgress("uniform-seed0", "finished", 1, -0.5, 1.0))
        assert shown(live)[2] == ["uniform-seed0", "finished", "-0.5000", "1", "-"]


def test_a_retried_trial_keeps_what_it_had() -> None:
    live = live_view()
    live(TrialProgress("ddpg-seed0", "running", 5, -0.25, 20.0))
    live(TrialProgress("ddpg-seed0", "retrying"))
    assert shown(live)[1] == ["ddpg-seed0", "retrying", "-0.2500", "5/20", "0:01:00"]


def test_time_left_is_unknown_before_the_first_evaluation() -> None:
    assert seconds_left(TrialProgress("a", "running"), 20) is None
    assert seconds_left(TrialProgress("a", "running", 10, None, 5.0), 20) == 5.0


def test_calibration_is_shown_until_the_trials_begin() -> None:
    live = live_view()
    live(CalibrationProgress(12, 54))
    assert shown(live)[0] == ["calibrating:", "12/54", "layers"]
    live(CalibrationProgress(54, 54))
    assert shown(live)[0] == ["calibrating:", "54/54", "layers"]
    live(TrialProgress("ddpg-seed0", "running"))
    assert shown(live)[0][0] == "trial"


def test_a_calibration_with_nothing_to_measure_is_not_shown() -> None:
    live = live_view()
    live(CalibrationProgress(54, 54))
    assert shown(live)[0][0] == "trial"
