"""What this machine can run at once, and the environment in which Ray is started."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from pathlib import Path

from search.errors import UserError
from search.spec_models import Resources

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # a signal is handled here, so that an interrupted trial is known as such
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}

_NEVER_MS = str(10**12)

# What glibc reads when a process starts. Evaluations allocate the same feature maps again and again; by default it
# returns them to the system each time, and a sixth of an evaluation of ResNet-56 went into getting fresh pages.
_KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(2**31),
}


def available_cpus() -> int:
    """CPUs that this process may use: its affinity, and the quota of its control group."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        allowed, period = quota.read_text().split()
        if allowed != "max":
            return max(1, min(affinity, int(allowed) // int(period)))
    return affinity


def trials_at_once(resources: Resources, cpus_of_nodes: list[int], evaluations: int = 1) -> int:
    """How many trials run in parallel on nodes with so many CPUs.

    Args:
        resources: what the spec asks for.
        cpus_of_nodes: CPUs of each node.
        evaluations: how many run at once in each trial; the trial waits for them and takes no further CPU.

    Raises:
        UserError: the resources ask for more than there is.
    """
    threads = resources.threads_per_trial
    room = sum(cpus // threads for cpus in cpus_of_nodes)
    if room == 0:
        raise UserError(
            f"resources: threads_per_trial {threads}, but the largest node has {max(cpus_of_nodes, default=0)} CPU(s); "
            f"ask for fewer"
        )
    slots = room // evaluations
    if slots == 0:
        raise UserError(
            f"resources: evaluations_in_parallel {evaluations} of {threads} thread(s) each, but the "
            f"{sum(cpus_of_nodes)} CPU(s) have room for {room}; ask for fewer"
        )
    wanted = resources.trials_in_parallel or slots
    if wanted > slots:
        each = f"{threads} thread(s)" if evaluations == 1 else f"{evaluations} evaluations of {threads} thread(s)"
        raise UserError(
            f"resources: trials_in_parallel {wanted} of {each} each, but the "
            f"{sum(cpus_of_nodes)} CPU(s) have room for {slots}; ask for fewer"
        )
    return wanted


def check_reachable(address: str) -> None:
    """Ray itself would try for minutes.

    Raises:
        UserError: nothing answers at "host:port". Other forms of an address are left to Ray.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"no Ray cluster answers at {address}: {error}; give the address of its head node") from error


def set_ray_environment(address: str | None) -> None:
    """Set what Ray reads when it is imported: quiet, and for a Ray of our own a token that only this process knows.

    A cluster that exists has its own token, which Ray finds where the user put it.
    """
    if "ray" in sys.modules:
        return
    os.environ.update(_QUIET)
    if address is None:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(), RAY_memory_monitor_refresh_ms="0")
        os.environ.update(RAY_idle_worker_killing_time_threshold_ms=_NEVER_MS)  # an idle worker has the problem built
        os.environ.update({name: os.environ.get(name, value) for name, value in _KEEP_FREED_MEMORY.items()})
