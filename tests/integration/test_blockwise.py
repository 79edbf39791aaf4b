"""Passes on two real worker processes: what may fail, fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from block_tasks import Faulty, Marked, count

from unetflow.errors import InputError, Interrupted, StageError
from unetflow.geometry import Block, BlockGrid, Box
from unetflow.runtime.blockwise import run_pass
from unetflow.runtime.cluster import open_client
from unetflow.runtime.executors import WINDOW

HERE = Path(__file__).parent
Reports = dict[int, dict[str, Any]]


def grid(n_blocks: int) -> BlockGrid:
    return BlockGrid(Box.of_shape((n_blocks,)), (1,))


def squares(reports: Reports) -> dict[int, int]:
    return {number: report["square"] for number, report in sorted(reports.items())}


@pytest.mark.parametrize("run_length", [1, 5])
def test_the_reports_equal_those_of_the_plain_loop(two_workers: Any, tmp_path: Path, run_length: int) -> None:
    plain: Reports = {}
    spread: Reports = {}
    run_pass(Marked(str(tmp_path)), grid(33), record=plain.__setitem__, name="p", run_length=run_length)
    result = run_pass(
        Marked(str(tmp_path), 0.02),
        grid(33),
        client=two_workers,
        record=spread.__setitem__,
        name="p",
        run_length=run_length,
    )
    assert squares(plain) == squares(spread)
    assert (result.n_done, result.n_retries, result.quarantined) == (33, 0, ())
    assert len({report["pid"] for report in spread.values()}) == 2
    assert count(tmp_path, "started") == 66


def test_few_blocks_are_in_flight(two_workers: Any, tmp_path: Path) -> None:
    made: list[int] = []
    done: list[int] = []
    most = 0

    class Lazy:
        def __len__(self) -> int:
            return 100

        def __getitem__(self, position: int) -> Block:
            nonlocal most
            made.append(position)
            most = max(most, len(made) - len(done))
            return grid(100)[position]

    run_pass(
        Marked(str(tmp_path)),
        Lazy(),
        client=two_workers,
        record=lambda number, _: done.append(number),
        name="p",
        run_length=2,
    )
    assert sorted(done) == list(range(100))
    assert most <= 2 * (2 * WINDOW + 1)


def test_a_flaky_block_is_tried_until_it_works(two_workers: Any, tmp_path: Path) -> None:
    reports: Reports = {}
    task = Faulty(str(tmp_path), numbers=(3,), times=2)
    result = run_pass(task, grid(8), client=two_workers, record=reports.__setitem__, name="p")
    assert sorted(reports) == list(range(8))
    assert (result.n_retries, count(tmp_path, "started", 3)) == (2, 3)


def test_a_poisoned_block_is_quarantined_and_the_others_are_done(two_workers: Any, tmp_path: Path) -> None:
    reports: Reports = {}
    bad: Reports = {}
    task = Faulty(str(tmp_path), numbers=(3,))
    result = run_pass(
        task,
        grid(8),
        client=two_workers,
        record=reports.__setitem__,
        quarantine=bad.__setitem__,
        name="p",
        run_length=4,
    )
    assert sorted(reports) == [0, 1, 2, 4, 5, 6, 7]
    assert result.quarantined == (3,)
    assert count(tmp_path, "started", 3) == 4  # once in its run, then three times alone
    assert bad[3]["error"] == "Local: poison"
    assert "_raise" in bad[3]["traceback"]
    assert bad[3]["worker"].startswith("tls://127.0.0.1")


@pytest.mark.parametrize("fault", ["die", "exit"])
def test_a_block_that_kills_its_workers_is_quarantined_and_no_other(
    two_workers: Any, tmp_path: Path, fault: str
) -> None:
    reports: Reports = {}
    bad: Reports = {}
    task = Faulty(str(tmp_path), numbers=(2,), fault=fault)
    result = run_pass(
        task,
        grid(8),
        client=two_workers,
        record=reports.__setitem__,
        quarantine=bad.__setitem__,
        name="p",
        retries=1,
    )
    assert result.quarantined == (2,)
    assert sorted(reports) == [0, 1, 3, 4, 5, 6, 7]
    assert count(tmp_path, "started", 2) <= 3
    assert "worker process died" in bad[2]["error"]


def test_workers_killed_from_outside_cost_at_most_their_blocks(two_workers: Any, tmp_path: Path) -> None:
    reports: Reports = {}

    def record(number: int, report: dict[str, Any]) -> None:
        reports[number] = report
        if len(reports) in (5, 15):
            os.kill(report["pid"], signal.SIGKILL)

    result = run_pass(Marked(str(tmp_path), 0.05), grid(30), client=two_workers, record=record, name="p", run_length=2)
    assert squares(reports) == {n: n**2 for n in range(30)}
    assert result.quarantined == ()
    assert count(tmp_path, "started") <= 30 + 2 * 2 * 2 * WINDOW


def test_a_full_disk_stops_the_pass(two_workers: Any, tmp_path: Path) -> None:
    task = Faulty(str(tmp_path), numbers=(0,), fault="full disk")
    with pytest.raises(StageError, match="No space left"):
        run_pass(task, grid(100), client=two_workers, record=lambda *_: None, name="p")
    assert count(tmp_path, "started") < 50


def test_a_users_mistake_is_told_in_its_own_words(two_workers: Any, tmp_path: Path) -> None:
    task = Faulty(str(tmp_path), numbers=(1,), fault="refuse")
    with pytest.raises(InputError, match="^the rule, the value, the cure$"):
        run_pass(task, grid(10), client=two_workers, record=lambda *_: None, name="p")


class Absent:
    """A task whose code the worker cannot find."""

    def __reduce__(self) -> Any:
        return _import_absent, ()


def _import_absent() -> None:
    raise ModuleNotFoundError("No module named 'site_extras'")


def test_a_worker_without_the_code_is_told_and_stays(two_workers: Any) -> None:
    workers = set(two_workers.nthreads())
    with pytest.raises(StageError, match="cannot load its task.*install the same environment"):
        run_pass(Absent(), grid(10), client=two_workers, record=lambda *_: None, name="p")  # type: ignore[arg-type]
    assert set(two_workers.nthreads()) == workers


def test_a_stop_leaves_what_is_not_done_to_the_next_run(two_workers: Any, tmp_path: Path) -> None:
    reports: Reports = {}
    task = Marked(str(tmp_path), 0.02)
    for stop_at in (5, 12):
        with pytest.raises(Interrupted, match="the same command goes on"):
            run_pass(
                task,
                grid(40),
                client=two_workers,
                done=set(reports),
                record=reports.__setitem__,
                name="p",
                run_length=3,
                should_stop=lambda n=stop_at: len(reports) >= n,  # type: ignore[misc]
            )
        # What had started was finished and recorded; what waited on a worker did not start.
        assert count(tmp_path, "started") == count(tmp_path, "finished") == len(reports) < 40
    result = run_pass(task, grid(40), client=two_workers, done=set(reports), record=reports.__setitem__, name="p")
    assert squares(reports) == {n: n**2 for n in range(40)}
    assert result.n_done + result.n_skipped == 40
    assert count(tmp_path, "started") == 40


def test_the_deadline_stops_new_blocks(two_workers: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="deadline"):
        run_pass(
            Marked(str(tmp_path), 0.05),
            grid(500),
            client=two_workers,
            record=lambda *_: None,
            name="p",
            deadline=time.monotonic() + 0.5,
        )
    assert count(tmp_path, "started") == count(tmp_path, "finished") < 500


class OwnScheduler:
    """A scheduler and a worker in processes of their own, reached by address."""

    def __init__(self, folder: Path) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parents[1])])}
        file = folder / "scheduler.json"
        self.file = str(file)
        common = {"env": env, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder}
        dask = [sys.executable, "-m", "distributed.cli"]
        place = ["--host", "127.0.0.1"]
        self.scheduler = subprocess.Popen(
            [f"{dask[0]}", "-m", "distributed.cli.dask_scheduler", *place, "--port", "0"]
            + ["--dashboard-address", "127.0.0.1:0", "--scheduler-file", self.file],
            **common,  # type: ignore[call-overload]
        )
        self.worker = subprocess.Popen(
            [f"{dask[0]}", "-m", "distributed.cli.dask_worker", *place, "--scheduler-file", self.file]
            + ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--local-directory", str(folder)],
            **common,  # type: ignore[call-overload]
        )

    def close(self) -> None:
        for process in (self.worker, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def own_scheduler(tmp_path: Path) -> Iterator[OwnScheduler]:
    running = OwnScheduler(tmp_path)
    yield running
    running.close()


@pytest.mark.parametrize("victim", ["scheduler", "worker"])
def test_a_lost_scheduler_or_the_loss_of_all_workers_never_looks_like_success(
    own_scheduler: OwnScheduler, tmp_path: Path, victim: str
) -> None:
    reports: Reports = {}
    folder = tmp_path / "marks"
    folder.mkdir()
    until = time.monotonic() + 30
    while not Path(own_scheduler.file).exists() and time.monotonic() < until:
        time.sleep(0.05)

    def record(number: int, report: dict[str, Any]) -> None:
        reports[number] = report
        if len(reports) == 3:
            getattr(own_scheduler, victim).kill()

    with (
        open_client(own_scheduler.file) as client,
        pytest.raises(Interrupted, match="the same command goes on|scheduler"),
    ):
        run_pass(Marked(str(folder), 0.05), grid(40), client=client, record=record, name="p", patience=2.0)
    assert 3 <= len(reports) < 40


class Driver:
    """A driver in a process group of its own, as a terminal starts it."""

    def __init__(self, folder: Path, n_blocks: int, seconds: float) -> None:
        self.folder = folder
        env = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
        command = [sys.executable, str(HERE / "drive_blocks.py"), str(folder), str(n_blocks), str(seconds)]
        self.process = subprocess.Popen(
            command,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        wait_for(lambda: count(folder, "started") >= 2)
        self.children = psutil.Process(self.process.pid).children(recursive=True)

    def signal(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)

    def end(self, timeout: float) -> str:
        told, _ = self.process.communicate(timeout=timeout)
        _, alive = psutil.wait_procs(self.children, timeout=15)
        for process in alive:
            process.kill()
        assert not alive
        return told


def wait_for(is_true: Callable[[], bool], timeout: float = 60.0) -> None:
    until = time.monotonic() + timeout
    while not is_true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_whole_job_lets_running_blocks_finish(tmp_path: Path, number: signal.Signals) -> None:
    driver = Driver(tmp_path, 200, 0.3)
    driver.signal(number)
    told = driver.end(timeout=30)
    assert driver.process.returncode == 75, told
    assert f"stopped ({number.name})" in told
    assert "Traceback" not in told
    n_started = count(tmp_path, "started")
    assert n_started == count(tmp_path, "finished") == count(tmp_path, "recorded") < 20


def test_a_second_interrupt_does_not_wait_for_running_blocks(tmp_path: Path) -> None:
    driver = Driver(tmp_path, 20, 600)
    driver.signal(signal.SIGINT)
    time.sleep(0.5)
    assert driver.process.poll() is None
    driver.signal(signal.SIGINT)
    told = driver.end(timeout=30)
    assert driver.process.returncode == 75, told
    assert "second signal" in told


def test_workers_end_by_themselves_when_the_driver_is_killed(tmp_path: Path) -> None:
    driver = Driver(tmp_path, 20, 600)
    driver.process.kill()
    driver.end(timeout=30)
