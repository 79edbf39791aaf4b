"""What tests ask of the queue."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any


def run(*command: str, **options: Any) -> str:
    """Run a command and return what it says."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options).stdout


def wait_until(is_true: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Ask until the answer is true, and return it."""
    until = time.monotonic() + seconds
    while not (answer := is_true()):
        assert time.monotonic() < until, f"it did not come; the queue has\n{run('scontrol', 'show', 'job')}"
        time.sleep(0.1)
    return answer


def jobs(name: str = "dask-worker", state: str = "RUNNING") -> list[str]:
    """Return the numbers of the jobs of a name."""
    return run("squeue", "-h", "-n", name, "-t", state, "-o", "%i").split()
