"""The service with trials that run one after the other in the driver, without Ray, whose start takes ten seconds.

What is tried with it is everything around the trials: locks, states, events, journals, restarts.

    python scripts/_toy_service.py serve DATA PORT [MAX_RUNNING]
    python scripts/_toy_service.py drive FOLDER --lock N

`Server` starts the former, and kills it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hw.files import write_atomically
from search.service.client import ServerJobs

PATIENCE_S = 120.0


def one_after_the_other(job: Any, folder: Path, pending: list[str], on_progress: Any) -> None:
    """Takes the place of `search.job._search`; waits after as many evaluations as the file `hold` says."""
    from search.trial import plan_trials, run_trial

    def told(progress: Any) -> None:
        on_progress(progress)
        while _is_held(folder):
            time.sleep(0.05)

    for trial in plan_trials(job.spec):
        if trial.name in pending:
            run_trial(job.spec, job.problem, trial.agent, trial.seed, folder / "trials" / trial.name, told)


def _is_held(job: Path) -> bool:
    try:
        return evaluations(job) >= int((job.parents[1] / "hold").read_text())
    except FileNotFoundError:
        return False


def evaluations(job: Path) -> int:
    """How many evaluations the trials of a job have written down."""
    return sum(path.read_bytes().count(b"\n") for path in job.glob("trials/*/evaluations.jsonl"))


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


class Server:
    """A server in a process of its own; it and all its descendants bear a mark by which they are found."""

    def __init__(self, data: Path, max_running: int = 1) -> None:
        self.data, self.max_running = data, max_running
        self.mark = f"AMC_TEST_MARK={uuid.uuid4().hex}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.jobs = ServerJobs(f"http://127.0.0.1:{self._port}", None)
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        name, value = self.mark.split("=")
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "serve",
            str(self.data),
            str(self._port),
            str(self.max_running),
        ]
        self.process = subprocess.Popen(command, env={**os.environ, name: value}, cwd="/")
        if not wait_until(self.answers):
            raise TimeoutError("the server did not start")

    def answers(self) -> bool:
        try:
            return bool(self.jobs._json("GET", "/api/health"))
        except ConnectionError:
            return False

    def kill(self) -> None:
        """End the server alone, without warning."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def processes(self, *words: str) -> list[int]:
        """The server, its helper and its drivers; only those with these words in their command."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and self.mark.encode() in (entry / "environ").read_bytes():
                    command = (entry / "cmdline").read_bytes().decode().split("\0")
                    if all(word in command for word in words):
                        found.append(int(entry.name))
        return found

    def kill_all(self, *words: str) -> None:
        for process in self.processes(*words):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if not words and self.process is not None:
            self.process.wait()

    def hold(self, count: int) -> None:
        """Let no job go further than so many evaluations, from now on."""
        write_atomically(self.data / "hold", str(count))

    def go_on(self) -> None:
        """Let all jobs go on to their end."""
        (self.data / "hold").unlink()

    def submit(self, spec: Path, **changes: object) -> str:
        overrides = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
        return str(self.jobs.submit(spec, overrides)["id"])

    def state(self, job: str) -> str:
        return str(self.jobs.job(job)["state"])


def wait_until(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> bool:
    end = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


if __name__ == "__main__":
    verb = sys.argv.pop(1)
    drive() if verb == "drive" else serve(*sys.argv[1:])
