"""`prepare` writes the same bytes with 1, 4 and 16 workers, and after one was killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import project
import pytest

from unetflow.runtime.cluster import open_client
from unetflow.runtime.progress import Silent
from unetflow.stages.prepare import prepare
from unetflow.stages.work import Conditions


@contextmanager
def threads_as_workers(n: int) -> Iterator[Any]:
    """Give a client of ``n`` workers that are threads of this process: many of them, cheaply."""
    from distributed import Client, LocalCluster

    # Without a limit: each would take the memory of the whole process for its own, and pause.
    cluster = LocalCluster(n_workers=n, threads_per_worker=1, processes=False, memory_limit=0, dashboard_address=None)
    with cluster, Client(cluster, set_as_default=False) as client:
        yield client


class Killer(Silent):
    """Kill one worker process when the first block of a pass is done."""

    def __init__(self, pid: int, name: str) -> None:
        super().__init__()
        self.pid, self.at, self.is_done = pid, name, False

    def advance(self, n: int = 1) -> None:
        super().advance(n)
        if self.name == self.at and not self.is_done:
            self.is_done = True
            os.kill(self.pid, signal.SIGKILL)


@pytest.mark.parametrize("n_workers", [1, 4, 16])
def test_any_number_of_workers_gives_the_same_dataset(trained: Path, n_workers: int) -> None:
    name = f"run-{n_workers}-workers"
    with threads_as_workers(n_workers) as client:
        prepare(project.settings_in(trained, name), client)
    assert project.tree(trained / name / "dataset.zarr") == project.tree(trained / "run" / "dataset.zarr")


@pytest.mark.parametrize("at", ["weigh", "sample-train"])
def test_a_worker_that_is_killed_changes_no_byte(trained: Path, at: str) -> None:
    name = f"run-killed-{at}"
    with open_client("local", workers=2) as client:
        killer = Killer(client.submit(os.getpid).result(), at)
        result = prepare(project.settings_in(trained, name), conditions=Conditions(client, killer))
    assert killer.is_done
    assert result["quarantined"] == []
    assert project.tree(trained / name / "dataset.zarr") == project.tree(trained / "run" / "dataset.zarr")
