"""What follows from a job's time limit: when the last block may start, in a worker and in the driver.

::

    a worker's job   |--- blocks ---------------------|  the block under way ends  | bye |
                     start                        last start                   lifetime  walltime
    the driver's     |--- blocks ----------|  one more would not end any more  |   stops, 75   |
                                       last start = deadline - what a block takes   deadline   walltime

A queue's SIGTERM reaches every process of a job at once and leaves no time for anything, so all
that matters is done ahead of it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unetflow.errors import InputError

if TYPE_CHECKING:
    from unetflow.runtime.progress import Progress

JOB_END = "UNETFLOW_JOB_END"  # seconds since 1970; set by job scripts
LAST_START = "UNETFLOW_LAST_START"  # seconds since 1970; a worker begins no block after it

# Share of the walltime that is kept for the block under way, and its bounds in seconds.
MARGIN_SHARE, LEAST_MARGIN, MOST_MARGIN = 0.05, 30.0, 300.0
# A block may take longer than those before it did.
BLOCK_RESERVE = 1.5

_FORMATS = {"slurm": "240, 4:00:00 or 2-12:00:00", "lsf": "04:00 (hours:minutes)"}
_LIMIT = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


def parse_walltime(kind: str, walltime: str) -> float:
    """Return the seconds that a queue understands by a time limit.

    Parameters
    ----------
    kind : str
        "slurm", "pbs", "lsf" or "sge".

    Raises
    ------
    InputError
        If it is no time limit of that queue.

    Examples
    --------
    >>> parse_walltime("slurm", "90"), parse_walltime("slurm", "1-12"), parse_walltime("slurm", "2:30")
    (5400.0, 129600.0, 150.0)
    >>> parse_walltime("lsf", "04:00"), parse_walltime("pbs", "04:00:00"), parse_walltime("sge", "3600")
    (14400.0, 14400.0, 3600.0)
    """
    found = _LIMIT.fullmatch(walltime.strip())
    parts = [int(p) for p in found.groups()[1:] if p is not None] if found else []
    days = int(found[1] or 0) if found else 0
    seconds = 0.0
    if kind == "slurm" and found and found[1]:
        seconds = days * 86400 + sum(n * unit for n, unit in zip(parts, (3600, 60, 1), strict=False))
    elif kind == "lsf" and days == 0 and len(parts) in (1, 2):
        seconds = sum(n * unit for n, unit in zip(reversed(parts), (60, 3600), strict=False))
    elif kind != "lsf" and days == 0 and parts:
        units = (1, 60, 3600) if len(parts) > 1 or kind != "slurm" else (60,)
        seconds = sum(n * unit for n, unit in zip(reversed(parts), units, strict=False))
    if seconds <= 0:
        form = _FORMATS.get(kind, "04:00:00")
        raise InputError(f"options.walltime must be a time limit of {kind}, got '{walltime}'; write {form}")
    return float(seconds)


@dataclass(frozen=True)
class WorkerTimes:
    """Seconds in the life of a worker's job.

    Parameters
    ----------
    last_start : float
        After it no block begins.
    lifetime : float
        After it the worker leaves, whether its block is done or not (Dask's ``--lifetime``).
    stagger : float
        By how much these differ between workers, up or down, so that not all leave at once.
    """

    last_start: float
    lifetime: float
    stagger: float


def worker_times(walltime: float, margin: float | None = None) -> WorkerTimes:
    """Work out the times of a worker's job.

    Parameters
    ----------
    walltime : float
        Seconds.
    margin : float, optional
        Seconds for the block under way; by default `margin_of`.

    Examples
    --------
    >>> worker_times(4 * 3600)
    WorkerTimes(last_start=14100.0, lifetime=14300.0, stagger=50.0)
    """
    margin = margin_of(walltime) if margin is None else margin
    if margin >= walltime:
        raise InputError(f"margin must be shorter than the walltime of {walltime:.0f} s, got {margin:.0f} s; lower it")
    return WorkerTimes(walltime - margin, walltime - margin / 3, margin / 6)


def margin_of(walltime: float) -> float:
    """Return the seconds of a time limit that are kept for the block under way.

    Examples
    --------
    >>> margin_of(60), margin_of(1800), margin_of(86400)
    (15.0, 90.0, 300.0)
    """
    return min(max(MARGIN_SHARE * walltime, LEAST_MARGIN), MOST_MARGIN, walltime / 4)


def end_of_job(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return when the job that this process runs in ends, in seconds since 1970; None outside of jobs.

    A job script says it in UNETFLOW_JOB_END; SLURM is asked.
    """
    for name in (JOB_END, "SLURM_JOB_END_TIME"):  # the second from SLURM 23.02 on
        if environ.get(name, "").isdigit():
            return float(environ[name])
    job = environ.get("SLURM_JOB_ID", "")
    if not job.isdigit() or shutil.which("squeue") is None:
        return None
    try:
        answer = subprocess.run(
            ["squeue", "-h", "-j", job, "-o", "%L"], capture_output=True, text=True, timeout=20, check=False
        ).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if not _LIMIT.fullmatch(answer) else time.time() + _left(answer)


def _left(answer: str) -> float:
    """Read the time that squeue says is left, ``[days-][hours:]minutes:seconds``."""
    days, _, clock = answer.rpartition("-")
    parts = [int(p) for p in clock.split(":")]
    return int(days or 0) * 86400.0 + sum(n * u for n, u in zip(reversed(parts), (1, 60, 3600), strict=False))


class LastStart:
    """A pass's progress that also says whether one more block would end in time.

    Parameters
    ----------
    inner : Progress
        Told everything.
    deadline : float, optional
        Monotonic time at which running blocks must be done; None for no limit.
    should_stop : callable
        Asked first: a signal.
    is_walltime : bool
        Whether the deadline is the end of a job: then a block must have ended by it. A deadline that a
        user gave is when the last one may start.
    """

    def __init__(
        self, inner: Progress, should_stop: Callable[[], bool], deadline: float | None, *, is_walltime: bool = False
    ) -> None:
        self._inner, self._should_stop, self._deadline, self._is_walltime = inner, should_stop, deadline, is_walltime
        self._n_workers, self._n_done, self._began = 1, 0, time.monotonic()
        self.n_recorded = 0

    def __call__(self) -> bool:
        """Say whether no further block may start."""
        return self._should_stop() or time.monotonic() > self.last_start

    @property
    def reason(self) -> str | None:
        """What stopped the run, for messages."""
        return getattr(self._should_stop, "reason", None) or ("deadline" if self() else None)

    @property
    def last_start(self) -> float:
        """Monotonic time after which no block may start."""
        if self._deadline is None:
            return float("inf")
        return self._deadline - (BLOCK_RESERVE * self.block_seconds if self._is_walltime else 0.0)

    @property
    def block_seconds(self) -> float:
        """Seconds that a block took its worker in this pass so far; 0 while none is known."""
        rounds = -(-self._n_done // self._n_workers)  # workers begin together: the first one done is no haste
        return (time.monotonic() - self._began) / rounds if rounds else 0.0

    def start(self, name: str, total: int, done: int = 0) -> None:
        """Begin a pass: nothing is known of its blocks."""
        self._n_done, self._began = 0, time.monotonic()
        self._inner.start(name, total, done)

    def advance(self, n: int = 1) -> None:
        """Count blocks."""
        self._n_done += n
        self.n_recorded += n
        self._inner.advance(n)

    def workers(self, n: int) -> None:
        """Take the number of workers."""
        self._n_workers = max(1, n)
        self._inner.workers(n)

    def retry(self) -> None:
        """Pass a retry on."""
        self._inner.retry()

    def finish(self) -> None:
        """End a pass."""
        self._inner.finish()
