"""A helper process for all that needs torch: specs are checked there, sections drawn, jobs compared, weights read.

The server itself stays small and answers while the helper works. The helper is started when it is first needed, ends
when nobody has needed it for a while, and with the server, however that ends. Requests and answers are lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from typing import Any

from search.errors import UserError

_IDLE_S = 300.0


class TaskError(UserError):
    """The helper says why a task cannot be done."""


class Worker:
    """The helper process; `call` runs one task of `search.service.tasks` at a time."""

    def __init__(self, idle_s: float = _IDLE_S) -> None:
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._used = 0.0

    def call(self, task: str, **arguments: Any) -> Any:
        """The result of a task.

        Raises:
            TaskError: the task cannot be done; the message says why.
            RuntimeError: the helper died, or failed in a way that it does not explain.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = _start()
            self._used = time.monotonic()
            answer = _ask(self._process, {"task": task, "arguments": arguments})
            self._used = time.monotonic()
        if "refused" in answer:
            raise TaskError(answer["refused"])
        if "failed" in answer:
            raise RuntimeError(f"task {task}: {answer['failed']}")
        return answer["result"]

    def rest(self) -> None:
        """End the helper if it has been idle for long enough."""
        if time.monotonic() - self._used > self._idle_s and self._lock.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._lock.release()

    def close(self) -> None:
        """End the helper."""
        with self._lock:
            self._end()

    @property
    def pid(self) -> int | None:
        """Of the helper; None if there is none."""
        return None if self._process is None else self._process.pid

    def _end(self) -> None:
        if self._process is not None:
            self._process.communicate()  # it ends when its input does
            self._process = None


def _start() -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "search.service.tasks"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", cwd="/"
    )


def _ask(process: subprocess.Popen[str], request: dict[str, Any]) -> dict[str, Any]:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the helper has no pipes")
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except OSError:
        line = ""
    if not line:
        process.kill()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()
        raise RuntimeError(f"the helper process ended with {process.wait()}; see the server's output")
    answer: dict[str, Any] = json.loads(line)
    return answer
