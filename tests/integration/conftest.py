"""A small cluster for all tests of a module, and a watch over what they leave behind."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

# Workers import the tasks by this name: spawned processes inherit the path.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, scope="module")
def no_process_is_left() -> Iterator[None]:
    """Fail where a module leaves a child process behind."""
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    yield
    until = time.monotonic() + 10
    while left := [p for p in _children() if p.pid not in before]:
        if time.monotonic() > until:
            names = [" ".join(p.cmdline()) for p in left]
            for process in left:
                process.kill()
            pytest.fail(f"processes left behind: {names}")
        time.sleep(0.1)


def _children() -> list[psutil.Process]:
    """List child processes but multiprocessing's tracker, which lives as long as this process."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            is_tracker = "resource_tracker" in " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and not is_tracker:
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Client of a local cluster of two processes."""
    from unetflow.runtime.cluster import open_client

    with open_client("local", workers=2, log_folder=tmp_path_factory.mktemp("logs")) as client:
        yield client


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny project that is prepared and trained."""
    import project

    from unetflow.stages.prepare import prepare
    from unetflow.stages.train import train

    folder = tmp_path_factory.mktemp("project")
    project.make_volume(folder)
    settings = project.settings_in(folder)
    prepare(settings)
    train(settings)
    return folder
