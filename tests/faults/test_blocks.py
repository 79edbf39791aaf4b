"""Blocks that poison, hang, or take all memory, and stores that are away, on real workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_blocks import Faulty, count, leak
from watch import keep

from unetflow.errors import Interrupted
from unetflow.geometry import BlockGrid, Box
from unetflow.runtime import books, watchdog
from unetflow.runtime.blockwise import run_pass
from unetflow.runtime.cluster import open_client

Reports = dict[int, dict[str, Any]]
GRID = BlockGrid(Box.of_shape((12,)), (1,))


@pytest.fixture(scope="module")
def two_workers() -> Iterator[Any]:
    with open_client("local", workers=2) as client, keep():
        yield client


def run(client: Any, folder: Path, fault: str, **options: Any) -> tuple[Any, Reports, Reports]:
    reports: Reports = {}
    bad: Reports = {}
    result = run_pass(
        Faulty(str(folder), fault), GRID, client=client, record=reports.__setitem__, quarantine=bad.__setitem__,
        name="test/pass", **options,
    )  # fmt: skip
    return result, reports, bad


@pytest.mark.parametrize("where", ["workers", "this process"])
def test_a_poisoned_block_is_set_aside_with_traceback_and_what_its_input_was(
    two_workers: Any, tmp_path: Path, where: str
) -> None:
    result, reports, bad = run(two_workers if where == "workers" else None, tmp_path, "raise")
    assert (result.quarantined, len(reports)) == ((3,), 11)
    assert bad[3]["input"] == {"min": 0, "max": 7, "nan": 2}
    assert "ValueError: poison" in bad[3]["traceback"]


@pytest.mark.parametrize("fault", ["memory", "no memory"])
def test_a_block_that_takes_all_memory_is_tried_with_one_tile_at_a_time(
    two_workers: Any, tmp_path: Path, fault: str
) -> None:
    result, reports, bad = run(two_workers, tmp_path, fault)
    assert (len(reports), bad) == (12, {})
    assert reports[3]["gentle"]
    assert result.n_retries > 0


def test_what_dies_even_so_is_set_aside_and_the_message_names_the_setting(two_workers: Any, tmp_path: Path) -> None:
    result, reports, bad = run(two_workers, tmp_path, "always dies", retries=1)
    assert (result.quarantined, len(reports)) == ((3,), 11)
    assert "[segment] memory" in bad[3]["error"] and "--workers" in bad[3]["error"]


def test_a_block_that_hangs_is_set_aside_and_the_run_ends(two_workers: Any, tmp_path: Path) -> None:
    result, reports, bad = run(two_workers, tmp_path, "hang", retries=0, block_seconds=2.0)
    assert (result.quarantined, len(reports)) == ((3,), 11)
    assert "hangs" in bad[3]["error"] and "block_minutes" in bad[3]["error"]
    assert 2 <= count(tmp_path, 3) <= 3


def test_a_block_that_hung_once_is_done_elsewhere(two_workers: Any, tmp_path: Path) -> None:
    _, reports, bad = run(two_workers, tmp_path, "hang once", block_seconds=2.0)
    assert (len(reports), bad) == (12, {})


AS_DASK_COMES = {
    "distributed.worker.memory.pause": 0.6, "distributed.worker.memory.terminate": False,
    "distributed.worker.memory.spill": False, "distributed.worker.memory.target": False,
    "distributed.scheduler.allowed-failures": 0,
}  # fmt: skip


def wait_for_the_pause(client: Any) -> None:
    until = time.monotonic() + 60
    while {w["status"] for w in client.scheduler_info(n_workers=-1)["workers"].values()} != {"paused"}:
        assert time.monotonic() < until, "the workers were never paused"
        time.sleep(0.1)


def test_a_paused_worker_is_ended_and_its_blocks_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dask
    from distributed import Client, LocalCluster

    monkeypatch.setattr(watchdog, "PAUSED_SECONDS", 1.0)
    with (
        dask.config.set(AS_DASK_COMES),
        LocalCluster(
            n_workers=1, threads_per_worker=1, memory_limit="600MB", dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.run(leak, 450)
        wait_for_the_pause(client)
        _, reports, bad = run(client, tmp_path, "none")
    assert (len(reports), bad) == (12, {})


def test_paused_workers_that_are_threads_of_the_driver_end_the_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dask
    from distributed import Client, LocalCluster

    monkeypatch.setattr(watchdog, "PAUSED_SECONDS", 1.0)
    with (
        dask.config.set(AS_DASK_COMES),
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, memory_limit="20MB", dashboard_address=None
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        wait_for_the_pause(client)
        with pytest.raises(Interrupted, match=r"cannot be ended.*paused.*fewer --workers.*goes on"):
            run(client, tmp_path, "none")


def test_a_worker_without_a_nanny_that_hangs_is_ended_too(tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        words = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, "--no-nanny"]
        path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
        worker = subprocess.Popen(
            [*words, "--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)],
            env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            client.wait_for_workers(1, timeout=60)
            with pytest.raises(Interrupted, match="no worker was there"):
                run(client, tmp_path, "hang", block_seconds=2.0, patience=1.0)
            assert worker.wait(30) == -signal.SIGKILL
        finally:
            worker.kill()


@pytest.mark.parametrize(
    ("where", "fault"), [("workers", "away"), ("this process", "away"), ("this process", "all stale")]
)
def test_a_store_that_comes_back_costs_no_block_a_try(
    two_workers: Any, tmp_path: Path, where: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books, "FIRST_WAIT", 0.2)
    away = tmp_path / "away"
    away.touch()
    back = threading.Timer(2.0, away.unlink)
    back.start()
    result, reports, bad = run(two_workers if where == "workers" else None, tmp_path, fault, retries=0)
    back.join()
    assert (len(reports) + len(bad), len(bad) <= 1) == (12, True)


def test_a_store_that_stays_away_ends_the_pass_so_that_the_same_command_goes_on(
    two_workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books, "FIRST_WAIT", 0.2)
    (tmp_path / "away").touch()
    with pytest.raises(Interrupted, match="store is away.*nobody listens.*goes on"):
        run(two_workers, tmp_path, "away", away_patience=1.5)
    (tmp_path / "away").unlink()
    assert len(run(two_workers, tmp_path, "away")[1]) == 12


def test_one_stale_file_is_a_bad_block_and_no_outage(two_workers: Any, tmp_path: Path) -> None:
    result, reports, _ = run(two_workers, tmp_path, "stale", away_patience=3.0)
    assert (result.quarantined, len(reports)) == ((3,), 11)
