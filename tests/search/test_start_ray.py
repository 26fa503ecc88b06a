"""A Ray that does not come up is named as such."""

from __future__ import annotations

from typing import Any

import pytest

from search.errors import UserError
from search.machine import set_ray_environment


@pytest.mark.parametrize(
    ("said", "expected", "match"),
    [
        (
            "The current node timed out during startup.",
            UserError,
            "^Ray's processes did not start in time",
        ),
        ("no disk", OSError, "^no disk$"),
    ],
)
def test_a_ray_that_does_not_start_in_time_is_the_machines_fault(
    monkeypatch: pytest.MonkeyPatch, said: str, expected: type[Exception], match: str
) -> None:
    set_ray_environment(None)
    from search import tuner

    def init(**options: Any) -> None:
        raise OSError(said)

    monkeypatch.setattr("ray.init", init)
    with pytest.raises(expected, match=match):
        tuner.check_local_ray()
