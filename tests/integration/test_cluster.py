"""Clusters that are started, found or refused."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from block_tasks import Marked

from unetflow.errors import InputError, Interrupted
from unetflow.geometry import BlockGrid, Box
from unetflow.runtime.blockwise import run_pass
from unetflow.runtime.cluster import open_client
from unetflow.runtime.environment import THREAD_VARIABLES
from unetflow.runtime.signals import stop_on_signals

HERE = Path(__file__).parent


def test_none_is_this_process() -> None:
    with open_client("none") as client:
        assert client is None


def test_a_local_cluster_listens_on_loopback_and_speaks_tls(two_workers: Any) -> None:
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    listening = [c for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
    assert two_workers.scheduler.address.startswith("tls://")
    assert all(address.startswith("tls://") for address in two_workers.nthreads())


def test_a_stranger_is_refused_by_the_scheduler(two_workers: Any) -> None:
    from distributed import Client

    address = two_workers.scheduler.address.replace("tls://", "tcp://")
    with pytest.raises(OSError, match=r"Timed out|failed|Connection reset"):
        Client(address, timeout=1, set_as_default=False)
    assert len(two_workers.nthreads()) == 2


def test_a_worker_has_one_task_thread_and_computes_with_its_share_of_the_cores() -> None:
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    with open_client("local", workers="1:1", threads=3) as client:
        assert client is not None
        assert list(client.nthreads().values()) == [1]
        found = client.run(_environment)
        assert list(found.values()) == [dict.fromkeys(THREAD_VARIABLES, "3")]
        assert client.cluster.scheduler.allowed_failures == 0
    assert {name: os.environ.get(name) for name in THREAD_VARIABLES} == before


def _environment() -> dict[str, str | None]:
    from unetflow.runtime.environment import THREAD_VARIABLES

    return {name: os.environ.get(name) for name in THREAD_VARIABLES}


def test_a_worker_that_dies_while_its_nanny_still_starts_is_brought_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dask's nanny leaves it dead (2026.7.1), and a run would wait for it until it gives up."""
    from distributed import Nanny

    start, killed = Nanny.start_unsafe, list[int]()

    async def die(nanny: Nanny) -> Nanny:
        result: Nanny = await start(nanny)
        if nanny.pid is not None and not killed:
            killed.append(nanny.pid)
            os.kill(nanny.pid, signal.SIGKILL)
            while nanny.pid is not None:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)  # the nanny has been told by now
        return result

    monkeypatch.setattr(Nanny, "start_unsafe", die)
    with open_client("local", workers=1) as client:
        assert client is not None
        client.wait_for_workers(1, timeout=30)
        assert client.submit(os.getpid).result(timeout=30) not in killed
    assert len(killed) == 1


def test_a_lost_worker_comes_back_however_soon_dask_would_give_it_up() -> None:
    """A cluster that gives a worker up takes its nanny away: after some deaths nobody would be left."""
    import dask

    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}),
        open_client("local", workers=1) as client,
    ):
        assert client is not None
        pid = client.submit(os.getpid).result(timeout=30)
        first, until = set(client.nthreads()), time.monotonic() + 60
        os.kill(pid, signal.SIGKILL)
        while not set(client.nthreads()) - first:
            assert time.monotonic() < until, "no worker came back"
            time.sleep(0.05)


def test_an_address_without_a_scheduler_is_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    with (
        pytest.raises(InputError, match="must answer at tcp://127.0.0.1"),
        open_client(address, options={"startup_timeout": 0.5}),
    ):
        pass


def test_gpus_without_dask_cuda_or_driver_are_refused() -> None:
    with pytest.raises(InputError, match="cluster kind 'cuda' needs"), open_client("cuda"):
        pass


SUBMIT = """#!/bin/sh
case "$(grep -c refuse-me "$1")" in 0) ;; *) echo "invalid partition refuse-me" >&2; exit 1 ;; esac
test -e "{folder}/never-starts" && {{ echo "Submitted batch job 1"; exit 0; }}
cp "$1" "{folder}/script.$$"
setsid sh "{folder}/script.$$" > "{folder}/out.$$" 2>&1 < /dev/null &
echo $! >> "{folder}/jobs"
echo "Submitted batch job $!"
"""
CANCEL = """#!/bin/sh
echo "$1" >> "{folder}/cancelled"
kill -TERM -- "-$1" 2> /dev/null || true
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stand in for SLURM: a job is a process group on this machine."""
    for name, text in (("sbatch", SUBMIT), ("scancel", CANCEL)):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(text.format(folder=tmp_path))
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{HERE.parents[1]}{os.pathsep}{HERE}")
    yield tmp_path
    left = [job for job in jobs(tmp_path) if is_alive(job)]
    for job in left:
        os.killpg(job, signal.SIGKILL)
    assert not left


def is_alive(job: int) -> bool:
    """Say whether a process of the job's group still runs; nobody may reap it here."""
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == job and process.status() != psutil.STATUS_ZOMBIE:
                return True
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return False


def _memory_settings() -> list[Any]:
    import dask

    return [dask.config.get(f"distributed.worker.memory.{name}") for name in ("target", "spill", "pause")]


def jobs(queue: Path) -> list[int]:
    file = queue / "jobs"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


OPTIONS = {"cores": 1, "memory": "1GB", "walltime": "10", "interface": "lo", "job_extra_directives": []}


def test_jobs_of_a_queue_work_are_replaced_and_are_gone_at_the_end(queue: Path) -> None:
    import dask

    reports: dict[int, dict[str, Any]] = {}

    def record(number: int, report: dict[str, Any]) -> None:
        reports[number] = report
        if len(reports) == 3:
            os.killpg(jobs(queue)[0], signal.SIGKILL)

    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}),
        open_client("slurm", workers=1, log_folder=queue / "logs", options={"options": OPTIONS}) as client,
    ):
        assert client is not None
        keys = [file for file in (queue / "logs").iterdir() if "key" in file.name]
        assert keys
        assert {stat.S_IMODE(file.stat().st_mode) for file in keys} == {0o600}
        assert list(client.run(_memory_settings).values()) == [[False, False, False]]
        grid = BlockGrid(Box.of_shape((8,)), (1,))
        result = run_pass(Marked(str(queue), 0.05), grid, client=client, record=record, name="p")
    assert sorted(reports) == list(range(8))
    assert result.quarantined == ()
    assert len(jobs(queue)) == 2
    until = time.monotonic() + 20
    while any(is_alive(job) for job in jobs(queue)):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_what_the_queue_says_to_a_refused_job_is_told(queue: Path) -> None:
    options = {"options": {**OPTIONS, "queue": "refuse-me"}}
    with (
        pytest.raises(InputError, match="invalid partition refuse-me"),
        open_client("slurm", log_folder=queue / "logs", options=options),
    ):
        pass


def test_a_queue_that_never_starts_a_job_is_not_waited_for_without_end(queue: Path) -> None:
    (queue / "never-starts").touch()
    options = {"startup_timeout": 1.0, "options": OPTIONS}
    with (
        pytest.raises(InputError, match="within 1 s"),
        open_client("slurm", log_folder=queue / "logs", options=options),
    ):
        pass
    assert (queue / "cancelled").read_text().split() == ["1"]


def test_a_signal_while_waiting_for_the_queue_cancels_the_job(queue: Path) -> None:
    (queue / "never-starts").touch()
    with (
        pytest.raises(Interrupted, match="waiting for the first worker"),
        stop_on_signals() as stop,
    ):
        stop.set("SIGTERM")
        with open_client("slurm", log_folder=queue / "logs", options={"options": OPTIONS}):
            pass


def test_workers_added_in_the_middle_of_a_run_speed_it_up_and_taking_them_away_loses_nothing(tmp_path: Path) -> None:
    done: dict[int, dict[str, Any]] = {}
    times: list[float] = []
    n_blocks = 100
    with open_client("local", workers=1, log_folder=tmp_path) as client:
        assert client is not None

        def record(number: int, report: dict[str, Any]) -> None:
            done[number] = report
            times.append(time.monotonic())
            if len(done) == 10:
                client.cluster.scale(4)
            elif len(done) == 75:
                client.cluster.scale(1)

        grid = BlockGrid(Box.of_shape((n_blocks,)), (1,))
        run_pass(Marked(str(tmp_path), 0.25), grid, client=client, record=record, name="p", run_length=1)
    assert sorted(done) == list(range(n_blocks))
    assert len({report["pid"] for report in done.values()}) >= 4
    alone, together = (times[9] - times[0]) / 9, (times[74] - times[54]) / 20
    assert together < 0.7 * alone, f"{alone:.2f} s a block alone, {together:.2f} s with four workers"
