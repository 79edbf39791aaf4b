"""What faults may leave behind: processes, listening ports, temporary files."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest


def watch() -> Iterator[None]:
    """Fail where what runs between leaves a child process, a listening port, or a file of ours."""
    before = left()
    yield
    until = time.monotonic() + 15
    while new := left() - before:
        if time.monotonic() > until:
            pytest.fail(f"left behind: {sorted(new)}")
        time.sleep(0.05)


# Of the fixtures of a module or session: they end later, and are watched over by those who made them.
KEPT: set[int] = set()
n_clusters = 0


@contextmanager
def keep() -> Iterator[None]:
    """Leave a module's cluster out of the watch over its tests: its workers come and go; the module's end counts."""
    global n_clusters
    n_clusters += 1
    yield
    n_clusters -= 1


def _ports(process: psutil.Process) -> set[int]:
    return {c.laddr.port for c in process.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN}


def left() -> set[str]:
    """List child processes, ports that this process and they listen on, and files of ours."""
    found = set()
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            words = " ".join(process.cmdline())
            if n_clusters and "spawn_main" in words:
                continue
            if process.pid in KEPT or {p.pid for p in process.parents()} & KEPT or "resource_tracker" in words:
                continue
            if process is not me and process.status() != psutil.STATUS_ZOMBIE:
                found.add(f"process {process.pid} {words}")
            if not n_clusters:
                found.update(f"port {port} of {process.pid}" for port in _ports(process))
        except psutil.NoSuchProcess:
            continue
    places = (Path(tempfile.gettempdir()), Path.cwd())
    return found | {str(p) for place in places for p in place.glob("*unetflow*")}
