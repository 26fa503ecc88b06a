"""What the API says, as its OpenAPI describes it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from search.service.events import State

Outcome = Literal["feasible", "infeasible"]
Action = Literal["cancel", "resume", "delete", "export"]


class Budget(BaseModel):
    """A limit; what is not known yet is null: the limit of a percentage, or the fraction of a number."""

    cost: str
    limit: float | None
    fraction: float | None
    unit: str


class Best(BaseModel):
    """The winner of the finished trials; while none is finished, the best reward so far."""

    agent: str
    seed: int
    reward: float
    search_accuracy: float | None = None
    test_accuracy: float | None = None
    costs: dict[str, float] | None = None


class Summary(BaseModel):
    """A job in the list."""

    id: str
    name: str
    state: State
    outcome: Outcome | None
    network: str
    agents: list[str]
    budgets: list[Budget]
    best: Best | None
    evaluations: int
    planned_evaluations: int
    created: str
    updated: str
    seconds: float | None


class Progress(BaseModel):
    """How far a job is."""

    evaluations: int
    of: int
    trials_finished: int
    trials: int


class Job(Summary):
    """A job.

    `error` says why it failed; `actions` what can be done now; `watched` jobs lie outside the data folder; `last_event`
    is the number of the newest event, 0 if there is none.
    """

    spec: dict[str, Any]
    dense: dict[str, Any] | None
    progress: Progress
    error: str | None
    folder_name: str
    watched: bool
    last_event: int
    actions: list[Action]


class Trial(BaseModel):
    """A trial as it is now."""

    trial: str
    agent: str
    seed: int
    state: Literal["waiting", "running", "finished", "failed", "interrupted"]
    evaluations: int
    planned: int
    distinct: int
    best_reward: float | None
    seconds: float
    error: str | None


class JobList(BaseModel):
    """A page of the list; `total` counts after the filters, `networks` and `states` over all jobs."""

    jobs: list[Summary]
    total: int
    networks: list[str]
    states: dict[str, int]


class Health(BaseModel):
    """Whether the service works, and how much it has to do."""

    status: Literal["ok"]
    version: str
    running: int
    queued: int
    max_running: int


class Fault(BaseModel):
    """What is wrong, and where: a dotted key, "" for the whole."""

    path: str
    message: str


class Problem(BaseModel):
    """The body of every answer that is an error."""

    detail: str
    errors: list[Fault] | None = None


class Checked(BaseModel):
    """What a spec comes to; the last four are null if it is not valid."""

    valid: bool
    errors: list[Fault]
    spec_id: str | None = None
    trials: list[str] | None = None
    evaluations: int | None = None
    yaml: str | None = None


class View(BaseModel):
    """Sections of HTML and SVG, escaped, of a version of the job; `cost` holds one for each cost."""

    version: str
    sections: dict[str, str | dict[str, str]]


class Table(BaseModel):
    """Headings and cells for people."""

    headings: list[str]
    rows: list[list[str]]


class Comparison(BaseModel):
    """Jobs side by side. If they are not comparable, `reason` says in what they differ. `said`: what it comes to."""

    comparable: bool
    reason: str | None
    table: Table
    said: list[str]
    sections: dict[str, str | dict[str, str]]


class Artifact(BaseModel):
    """A file that can be fetched."""

    name: str
    bytes: int


class Registered(BaseModel):
    """A network or data set that a spec may name: `spec` is the section to put into it."""

    name: str
    kind: str
    spec: dict[str, Any]


class RegisteredTable(BaseModel):
    """A latency table that a spec may name as `budget.table`."""

    name: str
    runtime: str
    threads: int
    batch: int
    networks: int
    created: str


class AgentKind(BaseModel):
    """An agent that a spec may ask for."""

    kind: str
    summary: str
    learns: bool


class Models(BaseModel):
    """What a spec sent over HTTP may name."""

    models: list[Registered]
    data: list[Registered]
    tables: list[RegisteredTable]
    agents: list[AgentKind]


class Upload(BaseModel):
    """Weights that were uploaded, by the name under which a spec may use them."""

    name: str
    bytes: int
