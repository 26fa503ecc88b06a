"""A search on a Ray cluster of several nodes of which one dies in the middle: every trial must finish once.

    python scripts/break_cluster.py --nodes 4 --trials 40

The nodes are raylets on this machine, each with a CPU of its own to give away, and a head that gives none. When a
quarter of the trials is finished, one node is killed with -9, its workers with it. Exits with 1 if a trial is missing,
was finished twice, or differs from the same trial run at once.
"""

from __future__ import annotations

import argparse
import collections
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import yaml


def main() -> None:
    """Start the cluster, the job, kill a node, wait, look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--trials", type=int, default=40)
    options = parser.parse_args()
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(), RAY_USAGE_STATS_ENABLED="0")
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory(prefix="amc-") as folder:
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            nodes = [cluster.add_node(num_cpus=1) for _ in range(options.nodes)]
            cluster.wait_for_nodes()
            code = follow(Path(folder), cluster, nodes, options.trials)
        finally:
            cluster.shutdown()
    sys.exit(code)


def follow(folder: Path, cluster: Any, nodes: list[Any], trials: int) -> int:
    """Run the job to its end; returns 0 if nothing was lost or done twice."""
    job, spec = folder / "job", folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(content(trials)))
    began = time.monotonic()
    log = (folder / "log.txt").open("w")
    command = [sys.executable, "-c", "from search.cli import main; main()", "run", str(spec), "--out", str(job)]
    driver = subprocess.Popen([*command, "--address", cluster.address], stdout=log, stderr=log)
    raylets = {node.all_processes["raylet"][0].process.pid: place for place, node in enumerate(nodes, 1)}
    finished, twice, where = dict[str, int](), 0, dict[str, int]()
    killed: int | None = None
    while driver.poll() is None:
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
    log.close()
    spread = collections.Counter(where.values())
    click.echo(f"exit code {driver.returncode} after {time.monotonic() - began:.0f} s")
    click.echo(f"{len(finished)} of {trials} trials finished, {twice} of them twice; by the node that ran them last: "
               f"{dict(sorted(spread.items()))}")  # fmt: skip
    wrong = differences(job, content(trials))
    click.echo(f"{len(wrong)} trials differ from the same run at once")
    whole = driver.returncode == 0 and len(finished) == trials and not twice and not wrong and killed is not None
    if not whole:
        click.echo((folder / "log.txt").read_text()[-3000:])
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
