"""Passes on two real worker processes: what may fail, fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from block_tasks import Faulty, Gated, Marked, Staged, count

from unetflow.errors import InputError, Interrupted, StageError
from unetflow.geometry import Block, BlockGrid, Box
from unetflow.runtime import pace
from unetflow.runtime.blockwise import run_pass
from unetflow.runtime.cluster import open_client
from unetflow.runtime.executors import WINDOW
from unetflow.runtime.oncluster import OnCluster
from unetflow.runtime.outcomes import Attempt, Worked

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


def test_what_a_worker_told_before_it_died_counts(
    two_workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask calls the task lost then, though its result has come."""
    settle, lost = OnCluster._settle, list[str]()

    def late(self: OnCluster, future: Any, value: Any) -> Any:
        if not lost:
            for pid in two_workers.run(os.getpid).values():
                os.kill(pid, signal.SIGKILL)
            until = time.monotonic() + 30
            while future.status == "finished" and time.monotonic() < until:
                time.sleep(0.001)
            lost.append(future.status)
        return settle(self, future, value)

    monkeypatch.setattr(OnCluster, "_settle", late)
    reports: Reports = {}
    result = run_pass(
        Faulty(str(tmp_path)), grid(8), client=two_workers, record=reports.__setitem__, name="p", run_length=1
    )
    assert lost == ["lost"]
    assert result.quarantined == ()
    assert sorted(reports) == list(range(8))


def test_blocks_that_wait_beside_one_that_kills_are_not_blamed(two_workers: Any, tmp_path: Path) -> None:
    reports: Reports = {}
    bad: Reports = {}
    result = run_pass(
        Faulty(str(tmp_path), numbers=(2,), fault="die late"),
        grid(8),
        client=two_workers,
        record=reports.__setitem__,
        quarantine=bad.__setitem__,
        name="p",
        retries=0,
        run_length=1,
    )
    assert (result.quarantined, sorted(reports)) == ((2,), [0, 1, 3, 4, 5, 6, 7])


def test_a_failed_block_is_tried_on_another_worker(
    two_workers: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two_workers.wait_for_workers(2, timeout=60)  # an earlier test may have killed one
    with pytest.raises(StageError, match="poison"):
        run_pass(Faulty(str(tmp_path), numbers=(0,)), grid(1), client=two_workers, record=lambda *_: None, name="p")
    first, second, third = re.findall(r"block 0, on (tls://\S+): ", caplog.text)
    assert first == third != second


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


def by_worker(reports: Reports) -> dict[int, list[int]]:
    """Return the numbers of the blocks that each process did."""
    return {
        pid: [n for n, r in reports.items() if r["pid"] == pid] for pid in sorted({r["pid"] for r in reports.values()})
    }


@pytest.mark.parametrize("run_length", [1, 4, "auto"])
def test_each_worker_reads_the_next_block_while_it_computes_one(
    two_workers: Any, tmp_path: Path, run_length: Any
) -> None:
    reports: Reports = {}
    task = Staged(str(tmp_path), 0.03)
    result = run_pass(task, grid(32), client=two_workers, record=reports.__setitem__, name="p", run_length=run_length)
    assert squares(reports) == {n: n**2 for n in range(32)}
    assert result.n_retries == 0
    assert count(tmp_path, "started") <= 34  # the last block of a lane may go to the other worker after all
    n_ahead = 0
    for numbers in by_worker(reports).values():
        computed = sorted(reports[n]["times"]["compute"] for n in numbers)
        for n in numbers:
            loaded = reports[n]["times"]["load"]
            n_ahead += any(a < loaded[0] < b for a, b in computed)
    # Also from run to run: of single blocks, most are read while another run is computed.
    assert n_ahead >= 20


def test_blocks_are_written_while_the_next_one_of_the_run_is_computed(two_workers: Any, tmp_path: Path) -> None:
    reports: Reports = {}
    run_pass(
        Staged(str(tmp_path), 0.03),
        grid(32),
        client=two_workers,
        record=reports.__setitem__,
        name="p",
        run_length=8,
    )
    times = [report["times"] for report in reports.values()]
    n_behind = sum(
        any(o["compute"][0] < t["store"][1] and o["compute"][1] > t["store"][0] for o in times) for t in times
    )
    assert n_behind >= 20


def test_at_the_end_of_a_pass_no_worker_holds_a_block_and_no_client_a_future(two_workers: Any, tmp_path: Path) -> None:
    run_pass(Staged(str(tmp_path)), grid(20), client=two_workers, record=lambda *_: None, name="p", run_length=2)
    assert set(two_workers.run(_is_slot_empty).values()) == {True}
    assert dict(two_workers.futures) == {}


def _is_slot_empty() -> bool:
    from unetflow.runtime import oncluster

    return oncluster._ahead._held is None


@pytest.mark.parametrize("step", ["load", "compute", "store"])
@pytest.mark.parametrize("fault", ["raise", "die"])
def test_a_step_that_fails_or_kills_costs_its_block_only(
    two_workers: Any, tmp_path: Path, step: str, fault: str
) -> None:
    reports: Reports = {}
    bad: Reports = {}
    result = run_pass(
        Staged(str(tmp_path), numbers=(5,), step=step, fault=fault),
        grid(12),
        client=two_workers,
        record=reports.__setitem__,
        quarantine=bad.__setitem__,
        name="p",
        retries=1,
        run_length=3,
    )
    assert result.quarantined == (5,)
    assert squares(reports) == {n: n**2 for n in range(12) if n != 5}


def test_a_stop_lets_what_workers_have_read_be_written(two_workers: Any, tmp_path: Path) -> None:
    reports: Reports = {}
    with pytest.raises(Interrupted):
        run_pass(
            Staged(str(tmp_path), 0.02),
            grid(200),
            client=two_workers,
            record=reports.__setitem__,
            name="p",
            run_length=5,
            should_stop=lambda: len(reports) >= 10,
        )
    assert count(tmp_path, "finished") == len(reports) < 200
    # What was read for a run that did not start any more is the only thing that was begun in vain.
    assert count(tmp_path, "started") - len(reports) <= 2


@pytest.mark.parametrize("run_length", [1, "auto"])
def test_neighbours_stay_on_one_worker(two_workers: Any, tmp_path: Path, run_length: Any) -> None:
    reports: Reports = {}
    square = BlockGrid(Box.of_shape((16, 16)), (1, 1))
    run_pass(
        Marked(str(tmp_path), 0.005),
        square,
        client=two_workers,
        record=reports.__setitem__,
        name="p",
        run_length=run_length,
        brick=(4, 4),
    )
    assert sorted(reports) == list(range(256))
    assert len(by_worker(reports)) == 2
    shared = [b for b in square.bricks((4, 4)) if len({reports[block.number]["pid"] for block in b}) > 1]
    assert len(shared) <= 3  # the last one, or what Dask moved to a worker that had nothing to do


def test_blocks_whose_time_was_over_are_done_by_later_runs(
    two_workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "LONGEST_SECONDS", 0.0)
    reports: Reports = {}
    result = run_pass(Marked(str(tmp_path)), grid(60), client=two_workers, record=reports.__setitem__, name="p")
    assert squares(reports) == {n: n**2 for n in range(60)}
    assert (result.n_retries, count(tmp_path, "started")) == (0, 60)


def test_a_task_that_was_sent_while_no_worker_was_there_comes_back(two_workers: Any, tmp_path: Path) -> None:
    executor = OnCluster(two_workers, Marked(str(tmp_path)), "p", patience=60.0)
    attempt = Attempt(tuple(grid(1)), worker=next(iter(executor.workers)))
    for pid in two_workers.run(os.getpid).values():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not two_workers.nthreads())
    executor.submit(attempt)
    results: list[Any] = []
    wait_for(lambda: results.extend(executor.collect(0.1)) or bool(results))  # type: ignore[func-returns-value]
    executor.close()
    assert results == [(attempt, Worked([], 0.0))]
    assert count(tmp_path, "started") == 0


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


def test_after_a_stop_no_block_starts_that_waits_on_a_worker(
    two_workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, go = OnCluster.stop, tmp_path / "go"

    def stop_and_let_go(executor: OnCluster) -> None:
        stop(executor)
        go.touch()

    monkeypatch.setattr(OnCluster, "stop", stop_and_let_go)
    late = threading.Timer(5.0, go.touch)  # whatever comes: no block waits for ever
    late.start()
    with pytest.raises(Interrupted):
        run_pass(
            Gated(str(tmp_path)),
            grid(40),
            client=two_workers,
            record=lambda *_: None,
            name="p",
            run_length=3,
            should_stop=lambda: count(tmp_path, "started") == 2,
        )
    late.cancel()
    assert count(tmp_path, "started") == count(tmp_path, "finished") == 2


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
    assert squares(reports) == {n: n**2 for n in sorted(reports)}, "what was lost was taken for done"


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
