"""The service with trials that run one after the other in the driver, without Ray, whose start takes ten seconds.

What is tried with it is everything around the trials: locks, states, events, journals, restarts.

    python scripts/_toy_service.py serve DATA PORT [MAX_RUNNING]
    python scripts/_toy_service.py drive FOLDER --lock N
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def one_after_the_other(job: Any, folder: Path, pending: list[str], on_progress: Any) -> None:
    """Takes the place of `search.job._search`."""
    from search.trial import plan_trials, run_trial

    for trial in plan_trials(job.spec):
        if trial.name in pending:
            run_trial(job.spec, job.problem, trial.agent, trial.seed, folder / "trials" / trial.name, on_progress)


def drive() -> None:
    """The driver of one job."""
    import search.job
    from search.service import driver

    vars(search.job)["_search"] = one_after_the_other
    driver.main()


def serve(data: str, port: str, max_running: str = "1") -> None:
    """A server whose jobs are driven by this file; what was interrupted goes on when it starts."""
    from search.service.server import serve as run_server
    from search.service.service import Settings

    here = (sys.executable, "-P", str(Path(__file__).resolve()), "drive")
    settings = Settings(Path(data), max_running=int(max_running), driver=here, resume_interrupted=True)
    run_server(settings, "127.0.0.1", int(port))


if __name__ == "__main__":
    verb = sys.argv.pop(1)
    drive() if verb == "drive" else serve(*sys.argv[1:])
