"""Jobs of a real queue: they come, work, leave ahead of their time, are made good, and are gone at the end."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from block_tasks import Marked, count
from queue_commands import jobs, run, wait_until

from unetflow.errors import InputError
from unetflow.geometry import BlockGrid, Box
from unetflow.runtime.blockwise import run_pass
from unetflow.runtime.cluster import open_client

pytestmark = pytest.mark.slurm


def grid(n_blocks: int) -> BlockGrid:
    return BlockGrid(Box.of_shape((n_blocks,)), (1,))


def where(dask_worker: Any) -> tuple[str, str, str]:
    return os.environ["SLURM_JOB_ID"], os.environ["SLURMD_NODENAME"], os.environ.get("CUDA_VISIBLE_DEVICES", "")


def test_workers_on_two_nodes_listen_on_loopback_by_tls_and_log_with_host_and_job(
    tmp_path: Path, cluster_file: Callable[..., Path]
) -> None:
    logs = tmp_path / "my logs"
    with open_client(str(cluster_file(2, options="gpus = 1")), log_folder=logs) as client:
        assert client is not None
        client.wait_for_workers(2, timeout=120)
        found = list(client.run(where).values())
        assert {node for _, node, _ in found} == {"n1", "n2"}
        assert {device for *_, device in found} == {"0"}
        assert client.scheduler.address.startswith("tls://127.0.0.1:")
        keys = [file for file in logs.iterdir() if file.name.startswith(".dask-jobqueue")]
        assert {stat.S_IMODE(file.stat().st_mode) for file in keys} == {0o600}
        ours = [p for p in psutil.process_iter() if {"SLURM_JOB_ID", "UNETFLOW_LAST_START"} <= _environ(p).keys()]
        listening = [c for p in [psutil.Process(), *ours] for c in p.net_connections() if c.status == "LISTEN"]
        assert len(ours) >= 4, "a nanny and a worker in each job"
        assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
        assert sum(w["resources"].get("GPU", 0) for w in client.scheduler_info()["workers"].values()) == 2
    host = os.uname().nodename
    assert sorted(file.name for file in logs.iterdir()) == sorted(f"worker-{host}-{job}.log" for job, *_ in found)


def _environ(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def test_a_cancelled_job_is_made_good_and_no_block_is_lost(tmp_path: Path, cluster_file: Callable[..., Path]) -> None:
    done: dict[int, dict[str, Any]] = {}
    cancelled: list[str] = []

    def record(number: int, report: dict[str, Any]) -> None:
        done[number] = report
        if len(done) == 4:
            cancelled.append(jobs()[0])
            run("scancel", cancelled[0])

    with open_client(str(cluster_file(2)), log_folder=tmp_path / "logs") as client:
        assert client is not None
        client.wait_for_workers(2, timeout=120)
        result = run_pass(Marked(str(tmp_path), 0.4), grid(60), client=client, record=record, name="p")
        assert len({job for job, *_ in client.run(where).values()} - set(cancelled)) >= 1
        wait_until(lambda: len(set(jobs()) - set(cancelled)) == 2)
    assert sorted(done) == list(range(60))
    assert result.quarantined == ()


def test_jobs_leave_ahead_of_their_walltime_without_dropping_a_block(
    tmp_path: Path, cluster_file: Callable[..., Path]
) -> None:
    """A minute of walltime, 40 s of which are kept for the block under way: each job begins blocks for 20 s."""
    done: dict[int, dict[str, Any]] = {}
    file = cluster_file(1, walltime="1", more="margin = 40")
    began = time.monotonic()
    with open_client(str(file), log_folder=tmp_path / "logs") as client:
        assert client is not None
        result = run_pass(Marked(str(tmp_path), 0.5), grid(50), client=client, record=done.__setitem__, name="p")
    assert sorted(done) == list(range(50))
    assert result.n_retries == 0
    assert count(tmp_path, "started") == 50, "a block was begun twice"
    logs = list((tmp_path / "logs").glob("worker-*.log"))
    assert len(logs) >= 2, f"one job did it all in {time.monotonic() - began:.0f} s"
    assert "no further block starts here" in min(logs, key=lambda log: log.stat().st_mtime).read_text()
    assert "TIME LIMIT" not in "".join(log.read_text() for log in logs)


def test_a_range_of_workers_grows_while_blocks_wait(tmp_path: Path, cluster_file: Callable[..., Path]) -> None:
    done: dict[int, dict[str, Any]] = {}
    n_workers: list[int] = []

    def record(number: int, report: dict[str, Any]) -> None:
        done[number] = report
        n_workers.append(len(jobs()))

    with open_client(str(cluster_file("1:3")), log_folder=tmp_path / "logs") as client:
        run_pass(Marked(str(tmp_path), 0.5), grid(120), client=client, record=record, name="p")
    assert sorted(done) == list(range(120))
    assert (n_workers[0], max(n_workers)) == (1, 3)


def test_what_the_queue_says_to_a_wrong_partition_is_told(
    tmp_path: Path, cluster_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = cluster_file(1, options='queue = "nowhere"')
    with pytest.raises(InputError, match="invalid partition specified: nowhere"), open_client(str(file)):
        pass


def test_a_job_that_waits_too_long_is_told_with_the_queues_reason(
    tmp_path: Path, cluster_file: Callable[..., Path]
) -> None:
    file = cluster_file(1, more="").read_text().replace("startup_timeout = 120", "startup_timeout = 3")
    file = file.replace('"--no-requeue"', '"--no-requeue", "--begin=now+1hour"')
    (tmp_path / "late.toml").write_text(file)
    with (
        pytest.raises(InputError, match=r"within 3 s .*PENDING \(BeginTime\)"),
        open_client(str(tmp_path / "late.toml"), log_folder=tmp_path / "logs"),
    ):
        pass


def test_a_job_without_the_package_is_told_with_its_last_words(
    tmp_path: Path, cluster_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # jobs begin where they were submitted, and Python looks there first
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "unetflow.py").write_text("raise ImportError('no unetflow on this node')\n")
    file = cluster_file(1, options=f'job_script_prologue = ["export PYTHONPATH={tmp_path / "broken"}"]')
    with (
        pytest.raises(InputError, match=r"ended without one; .*worker-.*log says: .*no unetflow on this node"),
        open_client(str(file), log_folder=tmp_path / "logs"),
    ):
        pass
