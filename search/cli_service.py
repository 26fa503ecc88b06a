"""The verbs of the service: `amc serve`, and those of its jobs, on a server or on the data folder of this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from search.cli_errors import FAILED, INTERRUPTED, NO_FEASIBLE_POLICY, USAGE, clear_errors, fail

if TYPE_CHECKING:
    from search.service.client import Jobs

_FOLDER = click.Path(path_type=Path)
_Command = TypeVar("_Command", bound=Callable[..., Any])


def _default_data() -> Path:
    return Path.home() / ".local" / "share" / "amc-search"


_data = click.option(
    "--data", type=_FOLDER, envvar="AMC_DATA", default=_default_data,
    help="The service's folder; by default AMC_DATA or ~/.local/share/amc-search.",
)  # fmt: skip
_server = click.option(
    "--server",
    envvar="AMC_SERVER",
    metavar="URL",
    help="A server's; by default AMC_SERVER, or --data. A job given as a folder is that of this machine.",
)
_token = click.option("--token", envvar="AMC_TOKEN", help="Of the server; better given as AMC_TOKEN.")


def client_options(command: _Command) -> _Command:
    """The options that say whose jobs are meant."""
    return _data(_server(_token(command)))


@click.command()
@_data
@click.option("--host", default="127.0.0.1", show_default=True, help="Another than this machine's own needs a token.")
@click.option("--port", type=click.IntRange(1, 65535), default=8710, show_default=True)
@_token
@click.option("--max-running", type=click.IntRange(min=1), default=1, show_default=True, help="Jobs at once.")
@click.option("--max-queued", type=click.IntRange(min=1), default=1000, show_default=True, help="Jobs that wait.")
@click.option("--max-evaluations", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="Of one job.")
@click.option("--max-upload", type=click.IntRange(min=1), default=512, show_default=True, help="Mebibytes of a file.")
@click.option("--watch", multiple=True, type=_FOLDER, help="A folder of jobs made by `amc run`, shown too; repeatable.")
@click.option(
    "--resume/--no-resume", "resume_interrupted", default=False, help="At the start, resume interrupted jobs."
)
@click.option("--address", help="Of a Ray cluster, or of its Ray Jobs (http://HEAD:8265), that all jobs use.")
@click.option("--cluster", "clusters", multiple=True, help="As --address, for jobs whose spec names it; repeatable.")
def serve(
    data: Path, host: str, port: int, token: str | None, max_running: int, max_queued: int, max_evaluations: int,
    max_upload: int, watch: tuple[Path, ...], resume_interrupted: bool, address: str | None,
    clusters: tuple[str, ...],
) -> None:  # fmt: skip
    """Run jobs for others: an API, and a page to watch and compare them. Jobs go on when the server ends."""
    with clear_errors():
        try:
            from search.service.guard import Limits
            from search.service.server import serve as run_server
            from search.service.service import Settings
            from search.service.supervisor import DRIVER
        except ModuleNotFoundError as error:
            fail(f"{error}; the server needs: pip install 'amc-search[serve]'", USAGE)
        limits = Limits(upload=max_upload * 2**20, queued=max_queued, evaluations=max_evaluations)
        driver = DRIVER if address is None else (*DRIVER, "--address", address)
        settings = Settings(data, watch, max_running, token, driver, resume_interrupted, limits, clusters)
        click.echo(f"http://{f'[{host}]' if ':' in host else host}:{port}  data: {data}", err=True)
        run_server(settings, host, port)


@click.command()
@click.argument("spec", type=_FOLDER)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="As of `amc run`.")
@click.option(
    "--known", multiple=True, metavar="JOB", help="A job of the same problem: what it evaluated is not evaluated again."
)
@click.option("--wait", "waits", is_flag=True, help="Until it has ended; the exit code is that of `amc run`.")
@client_options
def submit(
    spec: Path, overrides: tuple[str, ...], known: tuple[str, ...], waits: bool, data: Path, server: str | None,
    token: str | None,
) -> None:  # fmt: skip
    """Queue a job; prints its id."""
    with clear_errors():
        jobs = connect(data, server, token)
        if waits and server is None:
            _need_server(data)
        job = jobs.submit(spec, overrides, known)
        click.echo(job["id"])
        if server is None and not _served(data):
            click.echo(f"it waits until a server runs: amc serve --data {data}", err=True)
        if waits:
            sys.exit(follow(jobs, job["id"]))


@click.command()
@click.option("--state", "states", multiple=True, help="Only jobs in this state; repeatable.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@client_options
def ls(states: tuple[str, ...], limit: int, data: Path, server: str | None, token: str | None) -> None:
    """List jobs, the newest first."""
    from search.columns import aligned

    with clear_errors():
        jobs = connect(data, server, token).list_jobs(states, limit)
        headings = ("id", "state", "network", "budget", "best", "evaluations")
        rows = [(job["id"], job["state"], job["network"], _budget(job), _best(job), _evaluations(job)) for job in jobs]
        click.echo(aligned(headings, rows, left=headings), nl=False)


@click.command()
@click.argument("job")
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on until the job has ended.")
@client_options
def logs(job: str, follows: bool, data: Path, server: str | None, token: str | None) -> None:
    """Print what a job's processes printed."""
    with clear_errors():
        jobs, offset = connect(data, server, token), 0
        while True:
            over = not follows or jobs.job(job)["state"] in ("succeeded", "failed", "cancelled", "interrupted")
            content, end = jobs.log(job, offset)
            click.echo(content, nl=False)
            if over and end == offset:
                return
            time.sleep(0.0 if over else 0.5)
            offset = end


@click.command()
@click.argument("job")
@client_options
def wait(job: str, data: Path, server: str | None, token: str | None) -> None:
    """Wait until a job has ended; the exit code is that of `amc run`."""
    with clear_errors():
        sys.exit(follow(connect(data, server, token), job))


@click.command()
@click.argument("job")
@client_options
def cancel(job: str, data: Path, server: str | None, token: str | None) -> None:
    """End a job that waits or runs. What it found stays; `amc resume` goes on."""
    with clear_errors():
        click.echo(f"{job}: {connect(data, server, token).cancel(job)['state']}")


@click.command()
@click.argument("jobs", metavar="JOB...", nargs=-1, required=True)
@client_options
def rm(jobs: tuple[str, ...], data: Path, server: str | None, token: str | None) -> None:
    """Delete jobs that are not running, with all their files."""
    with clear_errors():
        client = connect(data, server, token)
        for job in jobs:
            client.remove(job)
            click.echo(f"deleted {job}")


def connect(data: Path, server: str | None, token: str | None) -> Jobs:
    """The jobs of the server, or of the data folder."""
    from search.service.client import LocalJobs, ServerJobs

    return LocalJobs(data) if server is None else ServerJobs(server, token)


def job_folder(reference: str, data: Path) -> Path:
    """The folder of a job on this machine: a folder as it is, else the job of this id in the data folder."""
    from search.service.store import Store

    if Path(reference).is_dir():
        return Path(reference)
    return Store(data).find(reference).path


def follow(jobs: Jobs, job: str) -> int:
    """Tell on standard error how a job comes on; returns the exit code that follows from its end."""
    finished: set[str] = set()
    for event in jobs.events(job):
        if event["kind"] == "state":
            click.echo(event["state"] + (f": {event['error']}" if event.get("error") else ""), err=True)
        elif event["kind"] == "note":
            click.echo(event["text"], err=True)
        elif event["state"] in ("finished", "failed") and event["trial"] not in finished:
            finished.add(event["trial"])
            click.echo(f"{event['trial']}: {event['state']}, {event['evaluations']} evaluations", err=True)
    ended = jobs.job(job)
    click.echo(_end(ended))
    if ended["state"] == "succeeded":
        return 0 if ended["outcome"] == "feasible" else NO_FEASIBLE_POLICY
    return FAILED if ended["state"] == "failed" else INTERRUPTED


def show_job(jobs: Jobs, reference: str) -> None:
    """Print how far a job of a server is."""
    job = jobs.job(reference)
    click.echo(f"{job['name']}: {job['state']}, {_evaluations(job)} evaluations, best {_best(job)}\n")
    for trial in jobs.trials(reference):
        best = "no feasible policy" if trial["best_reward"] is None else f"best reward {trial['best_reward']:.4f}"
        click.echo(
            f"  {trial['agent']} seed {trial['seed']}: {trial['state']}, {trial['evaluations']} evaluations, {best}"
        )
        if trial["error"]:
            click.echo(f"    {trial['error'].strip().splitlines()[-1]}")
    if job["error"]:
        click.echo(f"\n{job['error']}")


def queue_again(jobs: Jobs, reference: str) -> None:
    """Resume a job by a server."""
    click.echo(f"{reference}: {jobs.resume(reference)['state']}")


def compare_on_server(jobs: Any, references: Sequence[str]) -> None:
    """Print the comparison that a server made."""
    from search.columns import aligned

    compared = jobs.compare(references)
    click.echo(aligned(compared["table"]["headings"], compared["table"]["rows"]), nl=False)
    for line in compared["said"]:
        click.echo(f"\n{line}")


def export_from_server(jobs: Any, reference: str, out: Path, query: dict[str, object]) -> None:
    """Fetch an exported network of a server's job into a new folder."""
    import io
    import zipfile

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        fail(f"{out} exists and is not an empty folder; give another --out", FAILED)
    with zipfile.ZipFile(io.BytesIO(jobs.export(reference, query))) as archive:
        archive.extractall(out)
    click.echo(f"written to {out}")


def _served(data: Path) -> bool:
    from search.service.store import Store

    return Store(data).served


def _need_server(data: Path) -> None:
    if not _served(data):
        fail(f"no server runs on {data}: start one with `amc serve --data {data}`, or name one with --server", USAGE)


def _end(job: dict[str, Any]) -> str:
    if job["state"] == "succeeded" and job["outcome"] == "infeasible":
        return "succeeded: no agent found a policy that meets the budget"
    return f"{job['state']}: {_evaluations(job)} evaluations, best {_best(job)}; amc show {job['id']}"


def _budget(job: dict[str, Any]) -> str:
    shown = (
        f"{each['cost']} {each['fraction']:.0%}"
        if each["fraction"] is not None
        else f"{each['cost']} {each['limit']:g}"
        for each in job["budgets"]
    )
    return ", ".join(shown) or "-"


def _best(job: dict[str, Any]) -> str:
    best = job["best"]
    return "-" if best is None else f"{best['reward']:.4f} ({best['agent']} seed {best['seed']})"


def _evaluations(job: dict[str, Any]) -> str:
    return f"{job['evaluations']}/{job['planned_evaluations']}"
