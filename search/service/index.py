"""The list of jobs in SQLite: an index and the queue. It holds nothing that the folders do not hold as well.

A file of another release, or a damaged one, is thrown away and made anew from the folders.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.service.events import State
from search.service.schemas import Summary

_VERSION = 1
_TABLES = """
create table jobs (
    id text primary key, signature text not null, state text not null, name text not null, network text not null,
    budget real, best real, created text not null, updated text not null, queued text, key text,
    summary text not null
);
create index jobs_by_state on jobs (state, queued);
create index jobs_by_key on jobs (key);
"""
_COLUMNS = {
    "created": "created", "updated": "updated", "name": "name collate nocase", "state": "state", "network": "network",
    "budget": "budget", "best": "best", "age": "created",
}  # fmt: skip
SORTS = tuple(_COLUMNS)


@dataclass(frozen=True)
class Query:
    """Which jobs, in which order: `text` is a part of the name or the id."""

    states: Sequence[str] = ()
    network: str | None = None
    text: str = ""
    sort: str = "created"
    descending: bool = True
    limit: int = 100
    offset: int = 0


class Index:
    """The index at a path; usable by several threads."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError:
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                path.with_name(name).unlink(missing_ok=True)
            self._db = _open(path)

    def put(self, summary: Summary, signature: str, *, queued: str | None, key: str | None) -> None:
        """Add a job, or renew what is known of it; what is known already is not written again."""
        row = (
            summary.id, signature, summary.state, summary.name, summary.network,
            next((budget.fraction for budget in summary.budgets if budget.fraction is not None), None),
            summary.best.reward if summary.best else None,
            summary.created, summary.updated, queued, key, summary.model_dump_json(),
        )  # fmt: skip
        with self._lock, self._db:
            if self._db.execute("select * from jobs where id = ?", (summary.id,)).fetchone() == row:
                return
            self._db.execute(f"insert or replace into jobs values ({', '.join('?' * len(row))})", row)

    def remove(self, job: str) -> None:
        with self._lock, self._db:
            self._db.execute("delete from jobs where id = ?", (job,))

    def signatures(self) -> dict[str, str]:
        """What each job was like when it was last put here."""
        return dict(self._rows("select id, signature from jobs"))

    def state(self, job: str) -> str | None:
        """The state in which a job was when it was last put here."""
        rows = self._rows("select state from jobs where id = ?", job)
        return rows[0][0] if rows else None

    def by_key(self, key: str) -> str | None:
        """The job that was made with an idempotency key; of copies of its folder, the first."""
        rows = self._rows("select id from jobs where key = ? order by created, id limit 1", key)
        return rows[0][0] if rows else None

    def in_states(self, states: Sequence[State]) -> list[str]:
        """The jobs in these states, first those that were queued first."""
        marks = ", ".join("?" * len(states))
        return [row[0] for row in self._rows(f"select id from jobs where state in ({marks}) order by queued", *states)]

    def page(self, query: Query) -> tuple[list[str], int]:
        """The summaries of a page as JSON, and how many jobs the filters leave."""
        wheres, values = ["1"], list[Any]()
        if query.states:
            wheres.append(f"state in ({', '.join('?' * len(query.states))})")
            values += query.states
        if query.network is not None:
            wheres.append("network = ?")
            values.append(query.network)
        if query.text:
            wheres.append("(instr(lower(name), lower(?)) or instr(lower(id), lower(?)))")
            values += [query.text, query.text]
        column = _COLUMNS[query.sort]
        descending = query.descending != (query.sort == "age")  # the age grows as the time of creation falls
        where = f"from jobs where {' and '.join(wheres)}"
        order = f"{column} is null, {column} {'desc' if descending else 'asc'}, id"
        rows = self._rows(
            f"select summary {where} order by {order} limit ? offset ?", *values, query.limit, query.offset
        )
        ((total,),) = self._rows(f"select count(*) {where}", *values)
        return [row[0] for row in rows], total

    def counts(self) -> tuple[list[str], dict[str, int]]:
        """The names of all networks, and how many jobs are in each state."""
        networks = [row[0] for row in self._rows("select distinct network from jobs order by network")]
        return networks, dict(self._rows("select state, count(*) from jobs group by state order by state"))

    def close(self) -> None:
        self._db.close()

    def _rows(self, statement: str, *values: Any) -> list[Any]:
        with self._lock:
            return self._db.execute(statement, values).fetchall()


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, check_same_thread=False)
    try:
        db.execute("pragma journal_mode = wal")
        db.execute("pragma synchronous = normal")
        db.execute("pragma wal_autocheckpoint = 100")  # pages of 4 KiB: the log of changes stays small on a small disk
        (version,) = db.execute("pragma user_version").fetchone()
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError("made by another release")
        if version == 0:
            db.executescript(f"drop table if exists jobs; {_TABLES} pragma user_version = {_VERSION};")
        db.execute("select * from jobs limit 1").fetchone()
    except sqlite3.DatabaseError:
        db.close()
        raise
    return db
