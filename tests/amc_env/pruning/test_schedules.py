"""Schedules of sparsity: figures worked by hand, where they begin and end, and what they refuse."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amc_env.pruning.schedules import Decay, SparsitySchedule

# four updates after the initial one, from 0 to 0.9375 = 1 - 1/16: with exp each halves what is left
# cos: 1 - cos of 22.5, 45 and 67.5 degrees; zhu_gupta: 1 - (3/4)^3, 1 - (1/2)^3, 1 - (1/4)^3, times 0.9375
GOLDEN = {
    "exp": (0.0, 0.5, 0.75, 0.875, 0.9375),
    "linear": (0.0, 0.234375, 0.46875, 0.703125, 0.9375),
    "cos": (0.0, 0.9375 * 0.0761204675, 0.9375 * 0.2928932188, 0.9375 * 0.6173165676, 0.9375),
    "cube": (0.0, 0.9375 / 64, 0.9375 / 8, 0.9375 * 27 / 64, 0.9375),
    "zhu_gupta": (0.0, 0.9375 * 37 / 64, 0.9375 * 7 / 8, 0.9375 * 63 / 64, 0.9375),
}


@pytest.mark.parametrize("decay", get_args(Decay))
def test_each_decay_as_worked_by_hand(decay: Decay) -> None:
    schedule = SparsitySchedule("iterative", decay, start=10, end=50, frequency=10)
    assert schedule.last == 4
    assert [schedule.sparsity(update, 0.9375) for update in range(5)] == pytest.approx(GOLDEN[decay], abs=1e-9)


def test_a_schedule_goes_on_from_what_is_gone_already() -> None:
    # 1 - 0.5 * (0.25 / 0.5)^(1/2), 0.5 + 0.25 * 0.5, 0.5 + 0.25 * (1 - cos 45 degrees), + 0.25 / 8, 0.75 - 0.25 / 8
    expected = {"exp": 0.6464466094, "linear": 0.625, "cos": 0.5732233047, "cube": 0.53125, "zhu_gupta": 0.71875}
    for decay in get_args(Decay):
        schedule = SparsitySchedule("iterative", decay, start=0, end=2, frequency=1)
        assert schedule.sparsity(0, 0.75, initial=0.5) == pytest.approx(0.5)
        assert schedule.sparsity(1, 0.75, initial=0.5) == pytest.approx(expected[decay], abs=1e-9)


@given(
    decay=st.sampled_from(get_args(Decay)),
    start=st.integers(0, 50),
    length=st.integers(1, 200),
    frequency=st.integers(1, 60),
    fractions=st.tuples(st.floats(0.0, 0.99), st.floats(0.0, 0.99)),
)
def test_sparsity_rises_from_the_initial_one_exactly_to_the_target(
    decay: Decay, start: int, length: int, frequency: int, fractions: tuple[float, float]
) -> None:
    initial, target = sorted(fractions)
    schedule = SparsitySchedule("iterative", decay, start=start, end=start + length, frequency=frequency)
    updates = [update for step in range(start + length + 70) if (update := schedule.update_at(step)) is not None]
    assert updates == list(range(schedule.last + 1))
    assert start + length - frequency < start + schedule.last * frequency <= start + length
    values = [schedule.sparsity(update, target, initial) for update in updates]
    assert values[-1] == target
    assert all(later >= earlier - 1e-12 for earlier, later in pairwise(values))
    if schedule.last > 0:
        assert values[0] == pytest.approx(initial, abs=1e-12)


def test_one_shot_comes_once_and_whole() -> None:
    schedule = SparsitySchedule("one_shot", start=7)
    assert [step for step in range(100) if schedule.update_at(step) is not None] == [7]
    assert schedule.sparsity(0, 0.9) == 0.9


def test_no_room_for_two_updates_is_one_shot() -> None:
    schedule = SparsitySchedule("iterative", "cube", start=3, end=12, frequency=10)
    assert [schedule.update_at(step) for step in (2, 3, 12, 13)] == [None, 0, None, None]
    assert schedule.sparsity(0, 0.9) == 0.9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": 20, "end": 10}, "it ends at step 10, expected an end after its start at step 20; set a later end, "),
        ({"start": 20, "end": 20}, "it ends at step 20, expected an end after its start at step 20"),
        ({"start": -1, "end": 20}, "start: expected at least 0 steps, got -1"),
        ({"end": 20, "frequency": 0}, "frequency: expected at least 1 step, got 0"),
        ({"end": 20, "decay": "cubic"}, "expected one of exp, linear, cos, cube, zhu_gupta, got 'cubic'; did you mean"),
        ({"kind": "oneshot"}, "expected one of one_shot, iterative, got 'oneshot'; did you mean 'one_shot'?"),
    ],
)
def test_what_is_no_schedule_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        SparsitySchedule(**values)


@pytest.mark.parametrize(("target", "initial"), [(0.5, 0.6), (1.0, 0.0), (0.5, -0.1)])
def test_what_is_no_sparsity_is_refused(target: float, initial: float) -> None:
    message = f"expected 0 <= initial <= target < 1, got initial {initial:g} and target {target:g}; weights that are"
    with pytest.raises(ValueError, match=re.escape(message)):
        SparsitySchedule("iterative", end=10).sparsity(3, target, initial)
