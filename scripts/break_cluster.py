"""A search on a Ray cluster of several nodes of which one dies in the middle: every trial must finish once.

    python scripts/break_cluster.py --nodes 4 --trials 40
    python scripts/break_cluster.py --nodes 4 --trials 40 --through-jobs

The nodes are raylets on this machine, each with a CPU of its own to give away, and a head that gives none. When a
quarter of the trials is finished, one node is killed with -9, its workers with it. Exits with 1 if a trial is missing,
was finished twice, or differs from the same trial run at once.

The search is driven from here, by `amc run --address`; with --through-jobs (needs the extra `cluster`) it is given to
a server, `amc serve --address http://...`, and driven on the cluster by Ray Jobs.
"""

from __future__ import annotations

import argparse
import collections
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from search.service.client import ServerJobs
from search.service.events import ENDED

AMC = (sys.executable, "-c", "from search.cli import main; main()")


def main() -> None:
    """Start the cluster, the job, kill a node, wait, look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--through-jobs", action="store_true")
    options = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # Ray Jobs start `python`
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(), RAY_USAGE_STATS_ENABLED="0")
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="amc-") as folder:
        head = {"num_cpus": 0, "include_dashboard": options.through_jobs}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            nodes = [cluster.add_node(num_cpus=1) for _ in range(options.nodes)]
            cluster.wait_for_nodes()
            begin = submit if options.through_jobs else run
            code = follow(Path(folder), begin, cluster, nodes, options.trials)
        finally:
            cluster.shutdown()
    sys.exit(code)


@dataclass
class Started:
    """A search that was begun.

    Attributes:
        job: its folder.
        over: says whether it has ended.
        log: what was printed.
        end: ends what it needed beside itself; returns 0 if the search succeeded.
    """

    job: Path
    over: Callable[[], bool]
    log: Path
    end: Callable[[], int]


def run(folder: Path, spec: Path, cluster: Any) -> Started:
    """By `amc run`, driven from here."""
    with (folder / "log.txt").open("w") as log:
        command = [*AMC, "run", str(spec), "--out", str(folder / "job"), "--address", cluster.address]
        driver = subprocess.Popen(command, stdout=log, stderr=log)
    return Started(folder / "job", lambda: driver.poll() is not None, folder / "log.txt", driver.wait)


def submit(folder: Path, spec: Path, cluster: Any) -> Started:
    """To a server of jobs, driven on the cluster."""
    address = f"http://{cluster.head_node.address_info['webui_url']}"
    port = free_port()
    with (folder / "serve.txt").open("w") as log:
        command = [*AMC, "serve", "--data", str(folder / "data"), "--port", str(port), "--address", address]
        server = subprocess.Popen(command, stdout=log, stderr=log)
    jobs = ServerJobs(f"http://127.0.0.1:{port}", None)
    while not (folder / "data" / "server.lock").exists():
        time.sleep(0.1)
    job = jobs.submit(spec, ())["id"]
    place = folder / "data" / "jobs" / job

    def end() -> int:
        state = jobs.job(job)["state"]
        server.terminate()
        server.wait()
        return 0 if state == "succeeded" else 1

    return Started(place, lambda: jobs.job(job)["state"] in ENDED, place / "log.txt", end)


def follow(folder: Path, begin: Callable[..., Started], cluster: Any, nodes: list[Any], trials: int) -> int:
    """Run the job to its end; returns 0 if nothing was lost or done twice."""
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(content(trials)))
    began = time.monotonic()
    started = begin(folder, spec, cluster)
    job = started.job
    raylets = {node.all_processes["raylet"][0].process.pid: place for place, node in enumerate(nodes, 1)}
    finished, twice, where = dict[str, int](), 0, dict[str, int]()
    killed: int | None = None
    while not started.over():
        for pid_file in job.glob("trials/*/pid"):
            place = raylets.get(parent(pid_file))
            if place is not None:
                where[pid_file.parent.name] = place
        for path in job.glob("trials/*/result.json"):
            changed = path.stat().st_mtime_ns
            twice += finished.setdefault(path.parent.name, changed) != changed
        if killed is None and len(finished) >= trials // 4:
            killed = len(finished)
            victim = nodes[0].all_processes["raylet"][0].process.pid
            running = [name for name, place in where.items() if place == 1 and name not in finished]
            click.echo(f"after {time.monotonic() - began:.0f} s and {killed} trials: node 1 killed, it ran {running}")
            os.kill(victim, signal.SIGKILL)
        time.sleep(0.05)
    code = started.end()
    spread = collections.Counter(where.values())
    click.echo(f"exit code {code} after {time.monotonic() - began:.0f} s")
    click.echo(f"{len(finished)} of {trials} trials finished, {twice} of them twice; by the node that ran them last: "
               f"{dict(sorted(spread.items()))}")  # fmt: skip
    wrong = differences(job, content(trials))
    click.echo(f"{len(wrong)} trials differ from the same run at once")
    whole = code == 0 and len(finished) == trials and not twice and not wrong and killed is not None
    if not whole:
        click.echo(started.log.read_text()[-3000:])
    return 0 if whole else 1


def content(trials: int) -> dict[str, Any]:
    """The spec: one agent, many seeds."""
    return {
        "version": 1,
        "name": "cluster",
        "network": {"kind": "toy", "decisions": 4, "seconds_per_evaluation": 0.5},
        "budget": {"macs": "50%"},
        "agents": [{"kind": "random"}],
        "seeds": list(range(trials)),
        "evaluations": 6,
        "resources": {"max_failures": 3},
    }


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def parent(pid_file: Path) -> int:
    """The process that started the one whose id a file holds; 0 if that is gone."""
    try:
        status = Path(f"/proc/{pid_file.read_text().strip()}/status").read_text()
    except OSError:
        return 0
    return int(status.partition("PPid:")[2].split()[0])


def differences(job: Path, spec: dict[str, Any]) -> list[str]:
    """The trials whose evaluations or winner are not those of an undisturbed run."""
    from search.build import build_problem
    from search.job import load_results
    from search.spec_models import Spec
    from search.trial import plan_trials, run_trial

    quick = Spec.model_validate({**spec, "network": {"kind": "toy", "decisions": 4}})
    results = {(trial.agent, trial.seed): trial for trial in load_results(job).trials}
    wrong = []
    for trial in plan_trials(quick):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "trials" / trial.name
            place.mkdir(parents=True)
            expected = run_trial(quick, build_problem(quick), trial.agent, trial.seed, place, lambda progress: None)
        got = results[expected.agent, expected.seed]
        same = [point.widths for point in got.history] == [point.widths for point in expected.history]
        if not same or got.best != expected.best:
            wrong.append(trial.name)
    return wrong


if __name__ == "__main__":
    main()
