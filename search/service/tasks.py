"""What the helper process does: `python -m search.service.tasks` reads requests and writes answers, a line each."""

from __future__ import annotations

import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from search.errors import UserError


def check_spec(raw: dict[str, Any]) -> dict[str, Any]:
    """Whether a spec is valid, and what it comes to."""
    from search.spec import check, save_spec
    from search.trial import plan_trials

    spec, faults = check(raw)
    if spec is None:
        return {"valid": False, "errors": [{"path": path, "message": message} for path, message in faults]}
    return {
        "valid": True,
        "errors": [],
        "spec_id": spec.spec_id,
        "trials": [trial.name for trial in plan_trials(spec)],
        "yaml": save_spec(spec),
        "name": spec.name,
        "evaluations": spec.evaluations,
    }


def schema() -> dict[str, Any]:
    """The JSON schema of specs."""
    from search.spec import spec_schema

    return spec_schema()


def agents() -> list[dict[str, Any]]:
    """The agents that a spec can ask for."""
    from agents.off_policy import OffPolicy
    from agents.registry import AGENTS

    return [
        {
            "kind": kind,
            "summary": " ".join((inspect.getdoc(agent) or "").partition("\n\n")[0].split()),
            "learns": issubclass(agent, OffPolicy),
        }
        for kind, agent in AGENTS.items()
    ]


def view(folder: str, running: bool) -> dict[str, Any]:
    """The sections of a job's page; none before its search has begun."""
    from search.job import load_results
    from search.service.fragments import job_sections

    if not (Path(folder) / "results.json").is_file():
        return {}
    return job_sections(load_results(Path(folder)), running=running)


def compare_jobs(folders: Sequence[str]) -> dict[str, Any]:
    """Jobs side by side."""
    from search.job import load_results
    from search.service.fragments import comparison_sections
    from search.standing import differences
    from search.tables import compare, display_table
    from search.verdict import said_of

    jobs = [load_results(Path(folder)) for folder in folders]
    different = differences(jobs)
    headings, rows = display_table(compare(jobs))
    return {
        "comparable": not different,
        "reason": f"these jobs differ in: {', '.join(different)}" if different else None,
        "table": {"headings": headings, "rows": rows},
        "said": said_of(jobs),
        "sections": comparison_sections(jobs),
    }


def known_of(folders: Sequence[str]) -> str:
    """What jobs have evaluated, as the file for a new job."""
    from search.job import known_of_jobs

    return known_of_jobs([Path(folder) for folder in folders]).text()


def take_weights(incoming: str, target: str) -> None:
    """Read an uploaded file as tensors and nothing else, and write them as a state_dict of our own making."""
    from search.service.uploads import convert

    convert(Path(incoming), Path(target))


def table_info(path: str) -> dict[str, Any]:
    """Where a latency table was measured, and of what."""
    from hw.latency_file import LatencyFileError, load_table

    try:
        table = load_table(Path(path))
    except LatencyFileError as error:
        raise UserError(str(error)) from error
    conditions = table.conditions
    return {
        "runtime": conditions.runtime,
        "threads": conditions.threads,
        "batch": conditions.batch,
        "networks": len(table.networks),
        "created": table.host.created,
    }


TASKS: Mapping[str, Callable[..., Any]] = {
    task.__name__: task for task in (check_spec, schema, agents, view, compare_jobs, known_of, take_weights, table_info)
}


def answer(line: str) -> dict[str, Any]:
    """The answer to one request."""
    request = json.loads(line)
    try:
        return {"result": TASKS[request["task"]](**request["arguments"])}
    except UserError as error:
        return {"refused": str(error)}
    except Exception as error:  # noqa: BLE001 - told to the server, which goes on
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Answer until the input ends. Whatever libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps(answer(line)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
