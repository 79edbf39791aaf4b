"""Wait for the first worker, and say why none comes: what the queue, its jobs and their logs tell."""

from __future__ import annotations

import logging
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetflow.errors import InputError, Interrupted
from unetflow.runtime.clusterfile import ClusterSpec
from unetflow.runtime.jobscript import log_folder_of
from unetflow.runtime.signals import stop_requested

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

TELL_SECONDS, ASK_SECONDS = 60.0, 5.0
N_LINES = 5


def wait_for_worker(client: Client, spec: ClusterSpec, logs: str | None = None) -> None:
    """Wait for the first worker; the others may come later.

    Raises
    ------
    InputError
        When the queue refuses the job, its jobs end without a worker, or none is there in time.
    Interrupted
        When a signal arrives meanwhile.
    """
    began = told = asked = time.monotonic()
    since, n_without = time.time(), 0
    while not client.nthreads():
        now = time.monotonic()
        for reason in getattr(client.cluster, "rejections", []):
            raise InputError(f"the queue of cluster kind '{spec.kind}' must take the job, and refused it: {reason}")
        if stop_requested():
            raise Interrupted("stopped while waiting for the first worker; the same command goes on")
        if now - began > spec.startup_timeout:
            raise InputError(
                f"a worker must be there within {spec.startup_timeout:.0f} s (startup_timeout), and none is"
                f"{_what_is_known(client, spec, logs, since)}; raise it in the file of kind '{spec.kind}', or mend that"
            )
        if spec.kind == "slurm" and now - asked > ASK_SECONDS:
            asked = now
            jobs = job_numbers(client)
            n_without = n_without + 1 if jobs and slurm_states(jobs) == {} else 0
            if n_without > 1:
                raise InputError(
                    f"a job must start a worker, and job {', '.join(jobs)} ended without one"
                    f"{last_words(log_folder_of(spec.options, logs), since)}; mend that, or look at the job's log"
                )
        if now - told > TELL_SECONDS:
            told = now
            logger.info("waiting for the first worker (%.0f s)%s", now - began, _queue_says(client, spec))
        time.sleep(0.1)


def job_numbers(client: Client) -> list[str]:
    """Return the numbers of the jobs that were submitted."""
    workers: dict[Any, Any] = getattr(client.cluster, "workers", {})
    return [str(job.job_id) for job in list(workers.values()) if getattr(job, "job_id", None)]


def slurm_states(jobs: list[str]) -> dict[str, str] | None:
    """Return state and reason of the jobs that SLURM still knows; None where it does not answer."""
    command = ["squeue", "-h", "-j", ",".join(jobs), "-o", "%i|%T (%r)"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    lines = (line.partition("|") for line in done.stdout.splitlines())
    return {number: state for number, _, state in lines if not state.startswith("COMPLET")}


def last_words(folder: Path | None, since: float) -> str:
    """Return the last lines of the newest log of a job, with what leads to them; empty where there is none.

    Parameters
    ----------
    since : float
        Seconds since 1970; older logs are those of other runs.
    """
    files = [f for f in folder.glob("worker-*.log") if f.stat().st_mtime >= since - 1] if folder else []
    for file in sorted(files, key=lambda f: f.stat().st_mtime, reverse=True):
        lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            told = [line for line in lines if "Error" in line or "not found" in line][-1:] or lines[-N_LINES:]
            return f"; {file} says: {' / '.join(told)}"
    return ""


def _what_is_known(client: Client, spec: ClusterSpec, logs: str | None, since: float) -> str:
    return _queue_says(client, spec) + last_words(log_folder_of(spec.options, logs), since)


def _queue_says(client: Client, spec: ClusterSpec) -> str:
    jobs = job_numbers(client)
    states = slurm_states(jobs) if spec.kind == "slurm" and jobs else None
    if states:
        return "; job " + ", ".join(f"{number} is {state}" for number, state in states.items())
    return f"; its jobs are {', '.join(jobs)}" if jobs else ""
