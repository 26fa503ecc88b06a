"""The journal of a trial: every evaluation as one JSON line, on disk before the next one begins."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from search.errors import UserError
from search.locking import acquire
from search.results import EvaluationRecord

logger = logging.getLogger(__name__)


class JournalError(UserError):
    """A journal is damaged, in use, or does not belong to the trial that wants to continue it."""


class Journal:
    """An open journal: one process holds it, and what it appends stays there whatever happens to the process.

    Attributes:
        records: what was in it when it was opened. A last line that was cut off in the middle of a write is dropped.

    Args:
        path: the file; made if it is not there.
        patience_s: how long to wait, in seconds, for another process that has it open, such as a worker that is
            about to end because its job did.

    Raises:
        JournalError: a line is damaged, or another process keeps the journal open.
    """

    def __init__(self, path: Path, patience_s: float = 60.0) -> None:
        self.path = path
        self._file = path.open("ab")
        try:
            if not acquire(self._file, patience_s):
                raise JournalError(f"{path}: another process is running this trial")
            self.records, whole = _parse(path)
            if whole < path.stat().st_size:
                logger.warning("%s: dropped a last line that was not written to its end", path)
                self._file.truncate(whole)
        except BaseException:
            self._file.close()
            raise

    def append(self, record: EvaluationRecord) -> None:
        """Write one line and wait until it is on disk."""
        self._file.write(record.model_dump_json().encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: Path) -> tuple[EvaluationRecord, ...]:
    """The whole lines of a journal, which may be growing; none if there is no such file.

    Raises:
        JournalError: a line is damaged.
    """
    return _parse(path)[0] if path.exists() else ()


def _parse(path: Path) -> tuple[tuple[EvaluationRecord, ...], int]:
    """The records, and how many bytes of the file they are."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    records = []
    for index, line in enumerate(content[:whole].splitlines()):
        try:
            record = EvaluationRecord.model_validate_json(line)
        except ValidationError as error:
            raise JournalError(
                f"{path} line {index + 1}: damaged, not an evaluation: {line[:80]!r}. Delete the trial's folder to "
                f"run it anew, or the file from this line on to keep what is before it"
            ) from error
        if record.index != index:
            raise JournalError(f"{path} line {index + 1}: expected evaluation {index}, got {record.index}")
        records.append(record)
    return tuple(records), whole
