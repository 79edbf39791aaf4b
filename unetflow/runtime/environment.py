"""What Dask and the workers' libraries read from settings, environment and loggers."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


# Dask has glibc give freed memory back at once, and so every buffer of a network is fetched from the
# system, page by page, at every step: a third of the time. Workers keep what they will need again.
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    # One heap for all threads: each has gaps of its own, and what one thread freed serves another.
    "MALLOC_ARENA_MAX": "1",
}


def dask_settings(dashboard: bool) -> dict[str, Any]:
    """Return Dask's own settings for a cluster that is started here."""
    import dask

    routes = dask.config.get("distributed.scheduler.http.routes") if dashboard else []
    return {
        # A block whose worker died comes back at once: retries are counted by the driver.
        "distributed.scheduler.allowed-failures": 0,
        "distributed.scheduler.http.routes": routes,
        # A paused worker never wakes when the memory is not Dask's own (distributed#5999):
        # it goes on, and is restarted when it comes near its limit.
        "distributed.worker.memory.target": False,
        "distributed.worker.memory.spill": False,
        "distributed.worker.memory.pause": False,
        "distributed.worker.profile.enabled": False,
        # What Dask notes of each task, for its developers: events, transitions, and whole messages.
        "distributed.admin.log-length": 1000,
        "distributed.admin.low-level-log-length": 100,
    }


def as_environment(settings: Mapping[str, Any]) -> dict[str, str]:
    """Spell the workers' part of Dask's settings as environment variables."""
    return {
        f"DASK_{key.replace('.', '__').replace('-', '_').upper()}": str(value)
        for key, value in settings.items()
        if key.startswith(("distributed.worker.", "distributed.admin."))
    }


def threads_of_a_task() -> int:
    """Return the threads that one task may use: its worker's share of the host, or all in one process."""
    text = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(text) if text.isdigit() and int(text) > 0 else len(os.sched_getaffinity(0))


def lend_environment(stack: ExitStack, environ: Mapping[str, str]) -> None:
    """Set the workers' variables in this process, which starts them, until ``stack`` closes.

    Dask lets a variable that is set here win over its settings, and sets those that are not.
    """
    import dask

    names = {*dask.config.get("distributed.nanny.pre-spawn-environ"), *environ, "PYTHONHASHSEED"}
    before = {name: os.environ.get(name) for name in names}

    def restore() -> None:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    stack.callback(restore)
    # numba refuses another number of threads in a process that has compiled: only workers get it.
    os.environ.update({name: value for name, value in environ.items() if name != "NUMBA_NUM_THREADS"})


def start_resource_tracker() -> None:
    """Start multiprocessing's helper with SIGUSR1 blocked: it ignores other signals by itself."""
    from multiprocessing.resource_tracker import ensure_running

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def is_verbose() -> bool:
    """Say whether this package logs at debug level."""
    return logging.getLogger("unetflow").isEnabledFor(logging.DEBUG)


def quieten(stack: ExitStack) -> None:
    """Keep Dask's loggers silent unless this package logs at debug level."""
    import distributed  # noqa: F401  installs its handlers on import

    if is_verbose():
        return
    # The second one prints what a refused job raises in Dask's loop; it is told in our words.
    for name in ("distributed", "tornado.application"):
        log = logging.getLogger(name)
        stack.callback(setattr, log, "handlers", log.handlers)
        stack.callback(setattr, log, "propagate", log.propagate)
        log.handlers, log.propagate = [logging.NullHandler()], False
