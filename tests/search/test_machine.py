"""What runs at once, and in which environment Ray starts."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from search.errors import UserError
from search.machine import available_cpus, check_reachable, trials_at_once
from search.spec_models import Resources


def test_as_many_trials_as_there_are_cpus_for() -> None:
    assert trials_at_once(Resources(), [2]) == 2
    assert trials_at_once(Resources(threads_per_trial=2), [5, 3]) == 3
    assert trials_at_once(Resources(trials_in_parallel=2), [8]) == 2
    assert trials_at_once(Resources(threads_per_trial=2), [9, 5], evaluations=3) == 2
    assert trials_at_once(Resources(), [1, 1], evaluations=2) == 1
    assert available_cpus() >= 1


@pytest.mark.parametrize(
    ("resources", "evaluations", "message"),
    [
        (Resources(threads_per_trial=4), 1, "threads_per_trial 4, but the largest node has 3 CPU(s)"),
        (
            Resources(trials_in_parallel=3, threads_per_trial=2),
            1,
            "trials_in_parallel 3 of 2 thread(s) each, but the 5 CPU(s) have room for 2",
        ),
        (
            Resources(threads_per_trial=2),
            3,
            "evaluations_in_parallel 3 of 2 thread(s) each, but the 5 CPU(s) have room for 2",
        ),
        (
            Resources(trials_in_parallel=2),
            3,
            "trials_in_parallel 2 of 3 evaluations of 1 thread(s) each, but the 5 CPU(s) have room for 1",
        ),
    ],
)
def test_more_than_there_is_is_refused(resources: Resources, evaluations: int, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        trials_at_once(resources, [3, 2], evaluations)


def test_cluster_that_does_not_answer_is_refused_at_once() -> None:
    with pytest.raises(UserError, match=re.escape("no Ray cluster answers at 127.0.0.1:1: ")):
        check_reachable("127.0.0.1:1")


@pytest.mark.parametrize(("address", "own"), [("None", True), ("'host:1'", False)])
def test_only_a_ray_of_our_own_gets_a_token_of_our_own(address: str, own: bool) -> None:
    code = (
        "import os; os.environ.pop('RAY_AUTH_TOKEN', None); from search.machine import set_ray_environment\n"
        f"set_ray_environment({address}); print(len(os.environ.get('RAY_AUTH_TOKEN', '')))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert (int(output) == 64) is own
