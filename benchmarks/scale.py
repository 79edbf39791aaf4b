"""What 200 workers and 100,000 blocks cost the driver and its scheduler, where blocks cost nothing themselves.

Driver, scheduler (in the driver's process, as for every cluster that unetflow starts), ledger and TLS are
the real ones. The workers are real Dask workers without a machine of their own: fifty share a process,
and all share this machine's cores with the driver, so that what is measured is more than the driver's part.
``--sleep`` gives each block a length, for the share of their time that the workers are busy.

    python benchmarks/scale.py [--workers 200] [--blocks 100000] [--single 5000]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from report import write_report

from unetflow.geometry import Block, BlockGrid, Box
from unetflow.runtime.blockwise import RunLength
from unetflow.stages.work import Conditions, open_work

WORKERS_A_PROCESS = 50


@dataclass(frozen=True)
class Wait:
    """A task that only takes a while."""

    seconds: float = 0.0

    def __call__(self, block: Block) -> dict[str, Any]:
        if self.seconds:
            time.sleep(self.seconds)
        return {"n": block.number}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--blocks", type=int, default=100_000)
    parser.add_argument("--single", type=int, default=5_000)
    parser.add_argument("--sleep", type=float, default=2.0)
    parser.add_argument("--serve", nargs=3, metavar=("ADDRESS", "FOLDER", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.serve[0], Path(options.serve[1]), int(options.serve[2])))
        return 0
    with many_workers(options.workers) as client:
        measure(client, 2_000, "auto")
        rows = [
            row(f"{options.blocks:,} blocks, runs as the engine chooses", measure(client, options.blocks, "auto")),
            row(f"{options.single:,} blocks, one a task", measure(client, options.single, 1)),
            busy_row(client, options.workers, options.sleep),
        ]
    note = (
        f"{options.workers} workers in {-(-options.workers // WORKERS_A_PROCESS)} processes on the driver's own "
        "machine, TLS, a ledger on disk; memory is the growth of the driver's resident set during the pass; load "
        f"average of the machine, this benchmark's own share included: {os.getloadavg()[2]:.0f}"
    )
    write_report("scale", rows, note)
    return 0


@contextmanager
def many_workers(count: int) -> Iterator[Any]:
    """Start a scheduler in this process and workers in few; yields their client."""
    import dask
    from distributed import Client, LocalCluster

    from unetflow.runtime.environment import dask_settings, quieten
    from unetflow.runtime.security import run_security

    security = run_security()
    with ExitStack() as stack:
        quieten(stack)
        stack.enter_context(dask.config.set(dask_settings(False)))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = stack.enter_context(
            LocalCluster(
                n_workers=0, host="127.0.0.1", protocol="tls", security=security,
                dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard": False},
            )
        )  # fmt: skip
        client = stack.enter_context(Client(cluster, set_as_default=False))
        for name, value in security.get_tls_config_for_role("worker").items():
            if value and name != "ciphers":
                (folder / name).write_text(value)
        for first in range(0, count, WORKERS_A_PROCESS):
            n = min(WORKERS_A_PROCESS, count - first)
            words = ["--serve", cluster.scheduler_address, str(folder), str(n)]
            quiet = subprocess.DEVNULL
            process = subprocess.Popen([sys.executable, __file__, *words], stdout=quiet, stderr=quiet)
            stack.callback(process.wait)
            stack.callback(process.kill)
        client.wait_for_workers(count, timeout=300)
        yield client


async def serve(address: str, folder: Path, count: int) -> None:
    """Be so many workers, until killed."""
    import dask
    from distributed import Worker
    from distributed.security import Security

    files = {"tls_ca_file": "ca_file", "tls_worker_cert": "cert", "tls_worker_key": "key"}
    security = Security(require_encryption=True, **{k: str(folder / name) for k, name in files.items()})
    options = {"nthreads": 1, "host": "127.0.0.1", "security": security, "dashboard": False, "memory_limit": 0}
    dask.config.set({"distributed.worker.profile.enabled": False})
    workers = [Worker(address, local_directory=str(folder), name=f"{os.getpid()}-{i}", **options) for i in range(count)]
    await asyncio.gather(*workers)
    await asyncio.gather(*(worker.finished() for worker in workers))


def measure(client: Any, n_blocks: int, run_length: RunLength, task: Wait | None = None) -> dict[str, float]:
    """Run a pass and return its seconds, the driver's processor seconds and growth in MB."""
    process = psutil.Process()
    before, cpu = process.memory_info().rss, sum(process.cpu_times()[:2])
    with tempfile.TemporaryDirectory() as folder, open_work("scale", folder, {}, Conditions(client)) as work:
        began = time.perf_counter()
        grid = BlockGrid(Box.of_shape((n_blocks,)), (1,))
        work.run_pass("wait", task or Wait(), grid, run_length=run_length)
        seconds = time.perf_counter() - began
        if work.blocks != n_blocks or work.retries:
            raise SystemExit(f"{work.blocks} blocks, {work.retries} retries")
    return {
        "blocks": n_blocks,
        "seconds": seconds,
        "driver": sum(process.cpu_times()[:2]) - cpu,
        "memory": (process.memory_info().rss - before) / 1e6,
    }


def row(what: str, found: dict[str, float]) -> dict[str, str]:
    return {
        "what": what,
        "time": f"{found['seconds']:.0f} s",
        "a block": f"{1e3 * found['seconds'] / found['blocks']:.2f} ms",
        "of it driver's processor": f"{1e3 * found['driver'] / found['blocks']:.2f} ms",
        "driver's memory": f"{found['memory']:+.0f} MB",
        "workers busy": "",
    }


def busy_row(client: Any, n_workers: int, sleep: float) -> dict[str, str]:
    """Give each worker ten blocks of a known length; the share of the time that they fill."""
    n_blocks = 10 * n_workers
    found = measure(client, n_blocks, "auto", Wait(sleep))
    share = n_blocks * sleep / n_workers / found["seconds"]
    return {**row(f"{n_blocks:,} blocks of {sleep:g} s", found), "workers busy": f"{share:.0%}"}


if __name__ == "__main__":
    from scale import main  # tasks are pickled by the module's name, as workers know it

    sys.exit(main())
