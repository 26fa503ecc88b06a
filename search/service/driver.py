"""The process that runs one job: `python -m search.service.driver FOLDER --lock N`.

The server locks the job and hands the locked file over; the driver holds it for life, so that the job counts as alive
from before this process exists until it is gone, however it goes. The driver outlives the server.

With an address of Ray Jobs, http://..., the search is driven by another such process on the cluster, without a lock;
this one follows it.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from search.ray_jobs import ClusterError, drive_on_cluster, is_jobs_address
from search.service.events import ENDED, State, append_event, change_state, last_event, now
from search.service.folder import JobFolder

if TYPE_CHECKING:
    from search.progress import SetUpProgress, TrialProgress

#: seconds between two looks at what is wanted; after so many seconds a job that does not heed the signal is ended
_LOOK_S, _PATIENCE_S = 0.3, 60.0
#: seconds between two events of one trial, or of the set-up
_BETWEEN_S = 0.5
_FULL_BYTES = 2**20


def main() -> None:
    """Run the job and record its end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--lock", type=int, help="descriptor of the locked file FOLDER/lock; on a cluster none")
    parser.add_argument("--address", help="of a Ray cluster that exists, or of its Ray Jobs")
    options = parser.parse_args()
    if options.lock is not None:
        os.set_inheritable(options.lock, False)  # what this process starts must not keep the job alive
    job = JobFolder(options.folder.name, options.folder)
    address = options.address or job.spec().get("resources", {}).get("address")
    if is_jobs_address(address):
        state, error = _follow(job, address)
    else:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        threading.Thread(target=_heed_cancellation, args=(job,), daemon=True).start()
        state, error = _run(job, address)
    if state is not None:
        _say(f"{state}: {error}" if error else state)
        _record(job, state, error)


def _follow(job: JobFolder, address: str) -> tuple[State | None, str | None]:
    """Have the job driven on a cluster; how it ended, if the driver there did not record it itself."""
    _say(f"handed to Ray Jobs at {address}")
    try:
        ended = drive_on_cluster(job.path, address, lambda: _cancelled(job))
    except ClusterError as error:
        return "failed", str(error)
    last = last_event(job.events)
    recorded = last["job"] if last else None
    if recorded in ENDED:
        return None, None
    if ended.status == "STOPPED" or recorded != "starting":
        return _stopped(job), None
    return "failed", f"the driver did not begin on the cluster: {ended.message or ended.status}"


def _run(job: JobFolder, address: str | None) -> tuple[State, str | None]:
    """How the job ended, and why if it failed."""
    try:
        if _cancelled(job):
            return "cancelled", None
        _say(f"running, process {os.getpid()}")
        change_state(job.events, "running")
        from search.job import continue_job

        results = continue_job(job.path, address, Teller(job.events))
    except KeyboardInterrupt:
        return _stopped(job), None
    except Exception as error:  # noqa: BLE001 - whatever goes wrong is told on the job
        from search.errors import UserError

        if not isinstance(error, UserError):
            traceback.print_exc()
        return "failed", _full_disk(job.path, error) or f"{error}" or type(error).__name__
    if results.status == "interrupted":
        full = None if _cancelled(job) else _full_disk(job.path, None)
        return ("failed", full) if full else (_stopped(job), None)
    if results.status == "failed":
        return "failed", _full_disk(job.path, None) or _reason(results.trials[0].error)
    return "succeeded", None


def _reason(error: str | None) -> str:
    return f"all trials failed, the first with: {(error or 'no message').strip().splitlines()[-1]}"


def _cancelled(job: JobFolder) -> bool:
    request = job.request()
    return request is not None and request.wanted == "cancel"


def _stopped(job: JobFolder) -> State:
    return "cancelled" if _cancelled(job) else "interrupted"


def _heed_cancellation(job: JobFolder) -> None:
    """Send this process the signal that ends a search in good order; if it is not heard, end the process."""
    while not _cancelled(job):
        time.sleep(_LOOK_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE_S)
    _say(f"the search did not end within {_PATIENCE_S:.0f} s of its cancellation: ended by force")
    os._exit(1)


def _full_disk(folder: Path, error: BaseException | None) -> str | None:
    """What to say if the disk is full; its reserve is freed then, so that it can be said."""
    while error is not None and not (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        error = error.__cause__ or error.__context__
    free = shutil.disk_usage(folder).free
    if error is None and free > _FULL_BYTES:
        return None
    (folder / "reserve").unlink(missing_ok=True)
    return f"the disk that holds the job is full ({free:,} bytes free); free some space, then resume the job"


def _say(what: object) -> None:
    """A line of the log; Ray Tune's own output goes elsewhere while it runs, hence not the standard output."""
    with contextlib.suppress(OSError):  # a full disk must not keep the driver from saying so among the events
        print(f"{now()} {what}", file=sys.stderr, flush=True)  # noqa: T201


def _record(job: JobFolder, state: State, error: str | None) -> None:
    try:
        change_state(job.events, state, error=error)
    except OSError as full:
        change_state(job.events, "failed", error=_full_disk(job.path, full) or str(full))


class Teller:
    """Makes events of what a job tells about its progress, and lines of its log."""

    def __init__(self, events: Path) -> None:
        self._events = events
        self._told: dict[str, tuple[float, str]] = {}

    def __call__(self, progress: TrialProgress | SetUpProgress) -> None:
        from search.progress import TrialProgress

        if not isinstance(progress, TrialProgress):
            if self._is_news(type(progress).__name__, ""):
                append_event(self._events, "note", text=str(progress))
                _say(progress)
            return
        if self._told.get(progress.trial, (0.0, ""))[1] != progress.state:
            _say(f"{progress.trial}: {progress.state}")
        if self._is_news(progress.trial, progress.state):
            fields = {
                name: getattr(progress, name) for name in ("trial", "state", "evaluations", "best_reward", "seconds")
            }
            append_event(self._events, "trial", **fields)

    def _is_news(self, subject: str, state: str) -> bool:
        last, known = self._told.get(subject, (float("-inf"), ""))
        if state == known and time.monotonic() - last < _BETWEEN_S:
            return False
        self._told[subject] = (time.monotonic(), state)
        return True


if __name__ == "__main__":
    main()
