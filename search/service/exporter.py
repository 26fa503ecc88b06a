"""The process that exports a network of a job: `python -m search.service.exporter FOLDER`."""

from __future__ import annotations

import argparse
import shutil
import traceback
import zipfile
from pathlib import Path

from search.service.events import append_event


def main() -> None:
    """Write `artifacts/` anew, and tell how it went in a note among the job's events."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--agent")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--step", type=int)
    options = parser.parse_args()
    events = options.folder / "events.jsonl"
    append_event(events, "note", text="export: begun")
    try:
        said = _export(options.folder, options.agent, options.seed, options.step)
    except Exception as error:  # noqa: BLE001 - told on the job
        traceback.print_exc()
        append_event(events, "note", text=f"export: failed: {error}")
    else:
        append_event(events, "note", text=f"export: done, {said}")


def _export(job: Path, agent: str | None, seed: int | None, step: int | None) -> str:
    from search.export import export_job

    fresh = job / ".artifacts"
    shutil.rmtree(fresh, ignore_errors=True)
    chosen = export_job(job, fresh, agent, seed, step)
    names = sorted(path for path in fresh.rglob("*") if path.is_file())
    with zipfile.ZipFile(fresh / "all.zip", "w", zipfile.ZIP_STORED) as archive:
        for path in names:
            archive.write(path, path.relative_to(fresh))
    shutil.rmtree(job / "artifacts", ignore_errors=True)
    fresh.rename(job / "artifacts")
    number = f", network {chosen.step} of its series" if chosen.step else ""
    return f"{chosen.trial.agent} seed {chosen.trial.seed}{number}"


if __name__ == "__main__":
    main()
