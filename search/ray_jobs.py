"""Ray Jobs: a job's driver runs on a Ray cluster, asked for over HTTP; this side only follows it.

The cluster's head needs `ray[default]`, which answers at `http://HEAD:8265`, and every node this package and the job's
folder at the same path. Of Ray's REST interface for jobs five requests are used; Ray itself is not imported here. A
cluster that asks for a token gets that of `RAY_AUTH_TOKEN`.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw.files import write_atomically
from search.errors import UserError

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_LOOK_S, _ANSWER_S = 1.0, 30.0
#: how long a cluster that was reached may be away, and how long it may take to stop a driver
_PATIENCE_S = 120.0
_LOG_CHARACTERS = 2000


class ClusterError(UserError):
    """The cluster refused, or cannot be reached; the message says why."""


@dataclass(frozen=True)
class Ended:
    """How a driver on a cluster ended.

    Attributes:
        status: SUCCEEDED, FAILED or STOPPED, as Ray says.
        message: Ray's, with the last lines that the driver printed.
    """

    status: str
    message: str


def is_jobs_address(address: str | None) -> bool:
    """Whether an address is that of Ray Jobs rather than of the cluster itself."""
    return address is not None and address.startswith(("http://", "https://"))


def drive_on_cluster(folder: Path, address: str, stop: Callable[[], bool]) -> Ended:
    """Run the driver of a job on a cluster and wait for its end. What it has to say it writes into the job's folder.

    Which submission it is stands in `folder/cluster.json` meanwhile, so that it can be ended when this process is lost.

    Args:
        folder: of the job, absolute; the head sees it at the same path.
        address: of Ray Jobs, such as http://head:8265.
        stop: whether the driver is to be stopped should it not have begun yet; one that runs looks for itself.

    Raises:
        ClusterError: so.
    """
    end_lost_driver(folder)
    jobs = _RayJobs(address)
    place = shlex.quote(str(folder))
    command = f"python -P -m search.service.driver {place} --address auto >> {place}/log.txt 2>&1"
    jobs.check()  # what is not there cannot have taken a driver
    submission = f"amc-{secrets.token_hex(8)}"
    write_atomically(_place(folder), json.dumps({"address": address, "submission": submission}))
    jobs.submit(submission, command)
    status, message = jobs.patient_status(submission)
    while status not in _ENDED:
        time.sleep(_LOOK_S)
        if status == "PENDING" and stop():
            jobs.stop(submission)
        status, message = jobs.patient_status(submission)
    printed = "" if status == "SUCCEEDED" else jobs.log(submission)[-_LOG_CHARACTERS:].strip()
    _place(folder).unlink()
    return Ended(status, "\n".join(filter(None, [message, printed])))


def end_lost_driver(folder: Path) -> None:
    """Stop what a process that was killed left running on a cluster, so that no trial is run twice.

    Raises:
        ClusterError: it cannot be told, or it does not stop.
    """
    if not _place(folder).is_file():
        return
    left: dict[str, str] = json.loads(_place(folder).read_text())
    jobs, submission = _RayJobs(left["address"]), left["submission"]
    end = time.monotonic() + _PATIENCE_S
    try:
        while jobs.status(submission)[0] not in _ENDED:
            jobs.stop(submission)
            if time.monotonic() > end:
                raise ClusterError(f"the Ray job {submission} at {left['address']} does not stop; stop it there")
            time.sleep(_LOOK_S)
    except ConnectionError as error:
        raise ClusterError(
            f"the job may still be running on the cluster ({error}); when it is not, delete {_place(folder)}"
        ) from error
    _place(folder).unlink()


def _place(folder: Path) -> Path:
    return folder / "cluster.json"


class _RayJobs:
    """Ray's REST interface for jobs."""

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")

    def check(self) -> None:
        try:
            self._ask("GET", "/api/version")
        except ConnectionError as error:
            raise ClusterError(f"{error}; start the head with ray[default] and give the address of its jobs") from error

    def submit(self, submission: str, entrypoint: str) -> None:
        try:
            self._ask("POST", "/api/jobs/", {"submission_id": submission, "entrypoint": entrypoint})
        except ConnectionError as error:
            raise ClusterError(str(error)) from error

    def status(self, submission: str) -> tuple[str, str]:
        """Ray's status and message; of a submission that the cluster does not know any more, FAILED."""
        try:
            told = self._ask("GET", f"/api/jobs/{submission}")
        except FileNotFoundError:
            return "FAILED", f"the cluster at {self._address} does not know the Ray job {submission}"
        return str(told["status"]), str(told.get("message") or "")

    def patient_status(self, submission: str) -> tuple[str, str]:
        """As `status`; a cluster may be away for a while."""
        end = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self.status(submission)
            except ConnectionError as error:
                if time.monotonic() > end:
                    raise ClusterError(f"{error}, and has not for {_PATIENCE_S:.0f} s; resume the job then") from error
            time.sleep(_LOOK_S)

    def stop(self, submission: str) -> None:
        self._ask("POST", f"/api/jobs/{submission}/stop", {})

    def log(self, submission: str) -> str:
        return str(self._ask("GET", f"/api/jobs/{submission}/logs").get("logs") or "")

    def _ask(self, method: str, path: str, content: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer.

        Raises:
            FileNotFoundError: there is no such submission.
            ClusterError: the cluster refused.
            ConnectionError: it cannot be reached.
        """
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(f"{self._address}{path}", data=body, method=method)
        request.add_header("Content-Type", "application/json")
        if token := os.environ.get("RAY_AUTH_TOKEN"):
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
                answered: dict[str, Any] = json.loads(answer.read())
                return answered
        except urllib.error.HTTPError as error:
            if error.code == 404 and path.startswith("/api/jobs/") and method == "GET":
                raise FileNotFoundError(path) from error
            said = error.read()[:500].decode("utf-8", "replace").strip()
            raise ClusterError(f"Ray Jobs at {self._address} answered {error.code}: {said}") from error
        except (urllib.error.URLError, TimeoutError) as error:
            reason = getattr(error, "reason", error)
            raise ConnectionError(f"no Ray Jobs answer at {self._address}: {reason}") from error
