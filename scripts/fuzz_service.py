"""Requests to the service from its own OpenAPI that nobody thought of; none may be answered by an error of the server.

    python scripts/fuzz_service.py --requests 10000

What is said in the answers is compared with the OpenAPI too: status, content type, schema. No job is started.
"""

from __future__ import annotations

import argparse
import collections
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import checks
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi import checks as openapi

from search.service.app import create_app
from search.service.events import ENDED
from search.service.service import Service, Settings

CHECKS = [
    checks.not_a_server_error, openapi.status_code_conformance, openapi.content_type_conformance,
    openapi.response_schema_conformance,
]  # fmt: skip
HOST = {"Host": "127.0.0.1"}
SPEC: dict[str, Any] = {
    "version": 1,
    "name": "toy",
    "network": {"kind": "toy", "decisions": 4},
    "budget": {"macs": "50%"},
    "agents": [{"kind": "uniform"}, {"kind": "random"}],
    "seeds": [0, 1],
    "evaluations": 5,
}
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


def main() -> None:
    """Send the requests and count the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        answers, faults = fuzz(Service(Settings(Path(folder), max_running=0)), options.requests, options.seed)
    for fault in dict.fromkeys(faults):
        click.echo(fault)
    counted = ", ".join(f"{status}: {count}" for status, count in sorted(answers.items()))
    click.echo(f"{sum(answers.values()):,} requests in {time.monotonic() - began:.0f} s, answers {counted}")
    click.echo(
        f"answers of 500 and more: {sum(count for status, count in answers.items() if status >= 500)}, "
        f"answers that the OpenAPI does not say: {len(faults)}"
    )
    sys.exit(1 if faults else 0)


def fuzz(service: Service, requests: int, randomness: int) -> tuple[collections.Counter[int], list[str]]:
    """Send about so many requests; returns how often each status was answered, and what was wrong."""
    app = create_app(service)
    described: Any = schemathesis.openapi.from_asgi("/api/openapi.json", app, headers=HOST)
    operations = [found.ok() for found in described.get_all_operations()]
    answers, faults = collections.Counter[int](), list[str]()

    def send_many(operation: Any, known: list[str], count: int) -> None:
        @seed(randomness)
        @settings(
            max_examples=count, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(), data=st.data())
        def send(case: Any, data: st.DataObject) -> None:
            near_the_mark(case, data, known)
            if case.operation.path.endswith("/events"):
                _end(service, case.path_parameters["job"])  # the events of a job that waits never end
            response = case.call(headers=HOST)
            answers[response.status_code] += 1
            try:
                case.validate_response(response, checks=CHECKS)
            except (FailureGroup, Failure) as failure:
                faults.append(f"{case.operation.label} -> {response.status_code}: {failure}")

        send()

    while sum(answers.values()) < requests:  # some operations have little to vary
        known = [service.submit(SPEC, None)[0].id for _ in range(3)]
        left = -(-(requests - sum(answers.values())) // len(operations))
        for operation in sorted(operations, key=lambda operation: str(operation.method) == "delete"):
            send_many(operation, known, left)
        randomness += 1
    return answers, faults


def near_the_mark(case: Any, data: st.DataObject, known: list[str]) -> None:
    """Half of the requests are about a job that exists, or with a spec in which one thing is wrong."""
    if "job" in (case.path_parameters or {}) and data.draw(st.booleans()):
        case.path_parameters["job"] = data.draw(st.sampled_from(known))
    if case.operation.path in ("/api/jobs", "/api/specs/check") and case.method == "POST" and data.draw(st.booleans()):
        key = data.draw(st.sampled_from([*SPEC, "resources", "pruning", "latency", "data", "evaluation"]))
        case.body = {**SPEC, key: data.draw(_VALUES)}
        case.media_type = "application/json"


def _end(service: Service, job: str) -> None:
    if job in {each.id for each in service.store} and service.find(job).state() not in ENDED:
        service.store.cancel(service.find(job))


if __name__ == "__main__":
    main()
