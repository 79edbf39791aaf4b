"""Clusters with and without GPUs in one: processor work keeps off the workers that hold a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from block_tasks import Marked

from unetflow.geometry import BlockGrid, Box
from unetflow.runtime.blockwise import run_pass
from unetflow.runtime.cluster import open_client
from unetflow.runtime.devices import for_stage

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Client of a scheduler with two workers, one of which says that it has a GPU."""
    from distributed import LocalCluster

    folder = tmp_path_factory.mktemp("mixed")
    env = {**os.environ, "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}"}
    cluster = LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0")
    with cluster, ExitStack() as stack:
        for more in ([], ["--resources", "GPU=1"]):
            command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, "--no-nanny"]
            command += ["--nthreads", "1", "--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", *more]
            worker = subprocess.Popen(command, env=env, cwd=folder, stderr=subprocess.DEVNULL)
            stack.callback(worker.wait)
            stack.callback(worker.kill)
        with open_client(cluster.scheduler_address) as client:
            assert client is not None
            client.wait_for_workers(2, timeout=60)
            yield client


@pytest.mark.parametrize("wants_gpu", [True, False])
def test_blocks_go_only_to_the_workers_that_fit(tmp_path: Path, mixed: Any, wants_gpu: bool) -> None:
    client = for_stage(mixed, wants_gpu=wants_gpu)
    [address] = client.nthreads()
    assert bool(mixed.scheduler_info()["workers"][address]["resources"]) == wants_gpu
    pids: set[int] = set()
    grid = BlockGrid(Box.of_shape((40,)), (1,))
    run_pass(Marked(str(tmp_path), 0.02), grid, client=client, record=lambda n, r: pids.add(r["pid"]), name="p")
    assert pids == {mixed.run(os.getpid)[address]}


def test_a_cluster_of_one_kind_is_used_whole(two_workers: Any) -> None:
    assert for_stage(two_workers, wants_gpu=True) is two_workers
    assert for_stage(two_workers, wants_gpu=False) is two_workers
