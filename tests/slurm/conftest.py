"""A real SLURM of two nodes on this machine, and a watch over the jobs that tests leave."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "cluster" / "slurm-one-node" / "one_node.py"

# Workers import the tasks, and tests the tiny project, by these names.
sys.path[:0] = [str(ROOT / "tests" / "integration"), str(Path(__file__).parent)]

CLUSTER = """
kind = "slurm"
workers = {workers}
startup_timeout = 120
{more}
[options]
cores = 1
memory = "1500MB"
walltime = "{walltime}"
interface = "lo"
job_extra_directives = ["--no-requeue"]
{options}
"""


@pytest.fixture(scope="session")
def slurm() -> Iterator[Path]:
    """Folder of a SLURM that runs; its commands work in this process and those that it starts."""
    if shutil.which("slurmctld", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.fail(f"no SLURM is installed; as root: {SOURCE.parent / 'install.sh'}")
    spec = importlib.util.spec_from_file_location("one_node", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    one_node = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(one_node)
    before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PYTHONPATH", "PATH")}
    # Jobs inherit the environment of whoever submits them: they import tasks and find the command.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    modules = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "integration", Path(__file__).parent)))
    # Not pytest's own folder, which other sessions of it sweep: the daemons' numbers are in it.
    with (
        tempfile.TemporaryDirectory(prefix="unetflow-slurm-") as name,
        one_node.running(name, nodes=2, cpus=3, memory=8000, gpus=1) as conf,
    ):
        folder = Path(name)
        os.environ.update({"SLURM_CONF": conf, "PYTHONPATH": modules, "PATH": path})
        try:
            yield folder
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


@pytest.fixture(autouse=True)
def no_job_is_left(slurm: Path) -> Iterator[None]:
    """Fail where a test leaves a job in the queue."""
    from queue_commands import run

    yield
    until = time.monotonic() + 30
    while left := run("squeue", "-h", "-o", "%i %T %j").strip():
        if time.monotonic() > until:
            run("scancel", "-u", run("id", "-un").strip())
            pytest.fail(f"jobs left behind: {left}")
        time.sleep(0.2)


@pytest.fixture
def cluster_file(tmp_path: Path, slurm: Path) -> Callable[..., Path]:
    """Write a cluster file for this SLURM."""

    def write(workers: Any = 2, walltime: str = "10", more: str = "", options: str = "") -> Path:
        path = tmp_path / "one.toml"
        path.write_text(CLUSTER.format(workers=f'"{workers}"', walltime=walltime, more=more, options=options))
        return path

    return write
