"""The service with many jobs and many watchers: how long the list takes, how much memory, who is dropped.

    python scripts/bench_service.py --jobs 1000 --watchers 50

The jobs are copies of one finished toy job; the watchers follow the events of one job that goes on meanwhile (a note
every tenth of a second, written as a driver writes them).
"""

from __future__ import annotations

import argparse
import http.client
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

import click
import yaml
from _toy_service import Server, wait_until
from break_service import SPEC

from search.locking import acquire
from search.service.events import append_event, change_state
from search.service.folder import Request, save_request
from search.service.store import Store, Submission

NOTES = 100


def main() -> None:
    """Make the jobs, watch, list, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--watchers", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        server = Server(data)
        try:
            multiply(server, Path(folder) / "spec.yaml", options.jobs)
            server.kill_all()
            server.max_running = 0
            for path in data.glob("index.sqlite3*"):
                path.unlink()
            began = time.monotonic()
            server.start()
            click.echo(f"{options.jobs} jobs, no index: the server answers after {time.monotonic() - began:.1f} s")
            if not wait_until(lambda: server.jobs._json("GET", "/api/jobs?limit=1")["total"] == options.jobs):
                raise TimeoutError("not all jobs were listed")
            click.echo(f"all jobs are listed after {time.monotonic() - began:.1f} s")
            measure(server, options.watchers)
        finally:
            server.kill_all()


def multiply(server: Server, spec: Path, count: int) -> None:
    """Run one job, and copy it."""
    spec.write_text(yaml.safe_dump({**SPEC, "network": {"kind": "toy", "decisions": 4}}))
    job = server.submit(spec)
    wait_until(lambda: server.state(job) == "succeeded")
    source = server.data / "jobs" / job
    request = Request.model_validate_json((source / "request.json").read_bytes())
    for number in range(count - 1):
        target = source.with_name(f"{job[:-6]}{number:06}")
        shutil.copytree(source, target)
        save_request(target, request.model_copy(update={"id": target.name, "key": target.name}))


def measure(server: Server, watchers: int) -> None:
    """Time the list while others watch a job."""
    spec = (server.data.parent / "spec.yaml").read_text()
    job = Store(server.data).create(Submission("watched", spec, ("random-seed0",), 5))
    with job.lock.open("ab") as lock:
        if not acquire(lock, 1.0):
            raise RuntimeError("the job is locked by another process")
        change_state(job.events, "running")
        wait_until(lambda: server.state(job.id) == "running")
        seen: list[list[int]] = [[] for _ in range(watchers)]
        threads = [threading.Thread(target=watch, args=(server, job.id, got)) for got in seen]
        for thread in threads:
            thread.start()
        writer = threading.Thread(target=write, args=(job.events,))
        writer.start()
        times = [time_list(server, query) for query in ("limit=100", "limit=100&sort=best&q=toy", "limit=1000") * 100]
        writer.join()
        change_state(job.events, "succeeded")
    for thread in threads:
        thread.join(60)
    everything = list(range(1, NOTES + 4))
    whole = sum(got == everything for got in seen)
    if server.process is None:
        raise RuntimeError("the server is gone")
    for name, offset in (("100 jobs", 0), ("100 jobs, sorted and filtered", 1), ("1,000 jobs", 2)):
        of_kind = sorted(times[offset::3])
        p95 = of_kind[int(0.95 * len(of_kind))]
        click.echo(f"list of {name}: median {1000 * statistics.median(of_kind):.1f} ms, p95 {1000 * p95:.1f} ms")
    click.echo(f"watchers that saw all {len(everything)} events, each once: {whole} of {watchers}")
    click.echo(f"resident memory of the server: {memory(server.process.pid):.0f} MB")


def watch(server: Server, job: str, got: list[int]) -> None:
    """Follow a job to its end, without coming back if dropped."""
    got += [event["seq"] for event in server.jobs._stream(f"/api/jobs/{job}/events") if "seq" in event]


def write(events: Path) -> None:
    """What a busy driver writes."""
    for number in range(NOTES):
        append_event(events, "note", text=f"note {number}")
        time.sleep(0.1)


def time_list(server: Server, query: str) -> float:
    """Seconds of one answer, read to its end."""
    connection = http.client.HTTPConnection(server.jobs._url.removeprefix("http://"))
    began = time.perf_counter()
    connection.request("GET", f"/api/jobs?{query}")
    answer = connection.getresponse()
    answer.read()
    elapsed = time.perf_counter() - began
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"the list answered {answer.status}")
    time.sleep(0.02)
    return elapsed


def memory(process: int) -> float:
    """Resident megabytes of a process."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1000


if __name__ == "__main__":
    main()
