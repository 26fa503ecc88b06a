"""The thread of the server that starts queued jobs, and records what became of drivers that are gone."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

from search.locking import acquire
from search.service.events import ACTIVE, STATES, State, change_state, last_event
from search.service.folder import JobFolder
from search.service.index import Index
from search.service.store import Store, UnknownJobError, queued_at, signature
from search.service.summary import summarise

logger = logging.getLogger(__name__)

_TICK_S, _FULL_SCAN_S, _PATIENCE_S = 0.3, 5.0, 5.0
#: a driver that was killed together with the server may hold its lock for a moment longer
_DYING_S = 2.0
#: the command that runs a job; its folder and the locked file follow
DRIVER = (sys.executable, "-P", "-m", "search.service.driver")


class Supervisor:
    """Keeps at most `max_running` jobs running, and the index true.

    Args:
        store: the jobs.
        index: of them.
        max_running: jobs at once.
        driver: the command that runs a job.
        each_round: called in each round.
    """

    def __init__(
        self, store: Store, index: Index, max_running: int, driver: Sequence[str], each_round: Callable[[], None]
    ) -> None:
        self.store, self.index, self.max_running, self._driver = store, index, max_running, driver
        self._each_round = each_round
        self._drivers: list[subprocess.Popen[bytes]] = []
        self._warned: dict[str, str] = {}
        self._stop = threading.Event()
        self._resume_interrupted = False
        self.ready = threading.Event()
        self._refreshing = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="supervisor", daemon=True)

    def start(self, *, resume_interrupted: bool) -> None:
        """Begin: bring the index up to date, queue what was interrupted if asked to, and run what waits.

        Returns when the index is up to date, or in seconds: a new index of very many jobs takes longer.
        """
        self._resume_interrupted = resume_interrupted
        self._thread.start()
        self.ready.wait(_PATIENCE_S)

    def stop(self) -> None:
        """Stop watching. Drivers go on."""
        self._stop.set()
        self._thread.join()

    def tick(self) -> None:
        """One round: who is gone, who is new, who may start."""
        self._each_round()
        self._drivers = [driver for driver in self._drivers if driver.poll() is None]
        self._find_new()
        for name in self.index.in_states((*ACTIVE, "queued")):
            try:
                self.refresh_or_skip(self.store.find(name))
            except UnknownJobError:
                self.index.remove(name)
        running = len(self.index.in_states(tuple(ACTIVE)))
        for name in self.index.in_states(("queued",))[: max(0, self.max_running - running)]:
            self._start_driver(self.store.find(name))

    def scan(self) -> None:
        """Compare every folder with the index."""
        known, found = self.index.signatures(), set[str]()
        active = set(self.index.in_states(tuple(ACTIVE)))  # their drivers may be gone without a trace
        for job in self.store:
            if self._stop.is_set():
                return
            found.add(job.id)
            if job.id in active or known.get(job.id) != signature(job):
                self.refresh_or_skip(job)
        for name in known.keys() - found:
            self.index.remove(name)

    def refresh(self, job: JobFolder) -> None:
        """Record what became of the job, and renew its line of the index."""
        with self._refreshing:
            state = job.state()
            last = last_event(job.events)
            if last is not None and last["job"] != state and last["job"] != "queued" and state not in ACTIVE:
                self._record(job, state, last["job"])
            seen = signature(job)
            summary, request = summarise(job, state), job.request()
            self.index.put(
                summary, seen, queued=queued_at(job, summary.state), key=None if request is None else request.key
            )

    def _record(self, job: JobFolder, state: State, recorded: State) -> None:
        """Write down what a driver that is gone did not; not on a full disk, where the state is right nevertheless."""
        try:
            change_state(job.events, state, {recorded})
        except OSError as error:
            logger.warning("%s: its end cannot be recorded: %s", job.id, error)

    def _find_new(self) -> None:
        known = self.index.signatures().keys()
        for job in self.store:
            if job.id not in known:
                self.refresh_or_skip(job)

    def refresh_or_skip(self, job: JobFolder) -> None:
        """As `refresh`; what hinders it is a warning."""
        try:
            self.refresh(job)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, sqlite3.Error) as error:
            # one bad folder hides no other, and the index waits for room on a full disk
            said = f"{job.path} cannot be listed: {type(error).__name__}: {error}"
            if self._warned.get(job.id) != said:
                logger.warning(said)
                self._warned[job.id] = said

    def _start_driver(self, job: JobFolder) -> None:
        with job.lock.open("ab") as lock:
            if not acquire(lock, 0.0) or not change_state(job.events, "starting", {"queued"}):
                return
            command = [*self._driver, str(job.path), "--lock", str(lock.fileno())]
            with job.log.open("ab") as log:
                driver = subprocess.Popen(
                    command, pass_fds=(lock.fileno(),), start_new_session=True, cwd="/",
                    env={**os.environ, "PYTHONUNBUFFERED": "1"}, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
        self._drivers.append(driver)
        self.refresh(job)

    def _begin(self) -> None:
        self.scan()
        if self._resume_interrupted and self.index.in_states(tuple(ACTIVE)):
            time.sleep(_DYING_S)
            self.scan()
        for job in [self.store.find(each) for each in self.index.in_states(("interrupted",))]:
            if self._resume_interrupted and not job.watched:
                try:
                    self.store.resume(job)
                except (OSError, ValueError) as error:
                    logger.warning("%s cannot be resumed: %s", job.id, error)
                self.refresh_or_skip(job)

    def _loop(self) -> None:
        try:
            self._begin()
        except Exception:  # as below
            logger.exception("the folders could not all be looked through")
        self.ready.set()
        scanned, pause = time.monotonic(), _TICK_S
        while not self._stop.wait(pause):
            pause = _TICK_S
            try:
                if time.monotonic() - scanned > _FULL_SCAN_S:
                    self.scan()
                    scanned = time.monotonic()
                self.tick()
            except Exception:  # the service goes on whatever one round meets, a full disk among it
                logger.exception("a round of the supervisor failed")
                pause = _PATIENCE_S


def counts(index: Index) -> tuple[int, int]:
    """Jobs that run, and jobs that wait."""
    _, states = index.counts()
    return sum(states.get(state, 0) for state in STATES if state in ACTIVE), states.get("queued", 0)
