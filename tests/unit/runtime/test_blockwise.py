"""A pass in this process: the same books as on a cluster."""

from __future__ import annotations

import errno
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetflow.errors import BlockError, InputError, Interrupted, StageError
from unetflow.geometry import Block, BlockGrid, Box
from unetflow.runtime import books, oncluster
from unetflow.runtime.blockwise import run_pass
from unetflow.runtime.outcomes import pack
from unetflow.runtime.progress import Silent
from unetflow.runtime.signals import StopFlag


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(books, "FIRST_DELAY", 0.0)


def grid(n_blocks: int) -> BlockGrid:
    return BlockGrid(Box.of_shape((n_blocks * 4,)), (4,), (1,), (2,))


def raising(error: Exception) -> Callable[[Block], dict[str, Any]]:
    def task(block: Block) -> dict[str, Any]:
        raise error

    return task


def test_each_block_is_done_once_and_its_report_recorded() -> None:
    reports: dict[int, dict[str, Any]] = {}
    result = run_pass(lambda b: {"start": b.inner.start[0]}, grid(7), record=reports.__setitem__, name="p")
    assert reports == {n: {"start": 4 * n} for n in range(7)}
    assert (result.n_done, result.n_skipped, result.n_retries, result.quarantined) == (7, 0, 0, ())


@given(
    n_blocks=st.integers(0, 20),
    done=st.frozensets(st.integers(0, 19)),
    n_failures=st.dictionaries(st.integers(0, 19), st.integers(1, 6)),
    retries=st.integers(0, 3),
    run_length=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_block_is_done_skipped_or_quarantined_whatever_fails(
    n_blocks: int, done: frozenset[int], n_failures: dict[int, int], retries: int, run_length: int
) -> None:
    calls: Counter[int] = Counter()
    recorded: Counter[int] = Counter()
    bad: dict[int, dict[str, Any]] = {}

    def task(block: Block) -> dict[str, Any]:
        calls[block.number] += 1
        if calls[block.number] <= n_failures.get(block.number, 0):
            raise RuntimeError("flaky")
        return {}

    result = run_pass(
        task,
        grid(n_blocks),
        done=done,
        record=lambda number, report: recorded.update([number]),
        quarantine=bad.__setitem__,
        name="p",
        retries=retries,
        run_length=run_length,
    )
    planned = set(range(n_blocks))
    assert set(recorded) | set(bad) == planned - done
    assert set(recorded) & set(bad) == set()
    assert set(recorded.values()) <= {1}
    assert result.n_done == len(recorded)
    assert result.n_skipped == len(planned & done)
    assert result.quarantined == tuple(sorted(bad))
    for number in planned - done:  # a run that failed does not count as a try of its blocks
        allowed = {1 + retries, 2 + retries} if run_length > 1 else {1 + retries}
        assert calls[number] == n_failures.get(number, 0) + 1 or calls[number] in allowed
        assert (number in bad) == (calls[number] <= n_failures.get(number, 0))


def test_a_poisoned_block_is_tried_three_times_and_tells_its_traceback() -> None:
    bad: dict[int, dict[str, Any]] = {}
    calls: Counter[int] = Counter()

    def task(block: Block) -> dict[str, Any]:
        calls[block.number] += 1
        if block.number == 2:
            raise ValueError("poison")
        return {}

    result = run_pass(task, grid(4), record=lambda *_: None, quarantine=bad.__setitem__, name="p")
    assert calls == {0: 1, 1: 1, 2: 3, 3: 1}
    assert result.quarantined == (2,)
    assert bad[2]["error"] == "ValueError: poison"
    assert "in task" in bad[2]["traceback"]
    assert bad[2]["worker"]


def test_without_a_quarantine_a_failed_block_ends_the_pass() -> None:
    with pytest.raises(BlockError, match="prepare, pass weigh, block 0: ValueError: no"):
        run_pass(raising(ValueError("no")), grid(1), record=lambda *_: None, name="prepare/weigh", retries=0)


def test_a_report_that_is_no_dict_is_a_failure() -> None:
    with pytest.raises(BlockError, match="must return a dict, got int"):
        run_pass(lambda b: 1, grid(1), record=lambda *_: None, name="p", retries=0)  # type: ignore[arg-type,return-value]


def test_a_full_disk_stops_the_pass_at_once() -> None:
    calls = []

    def task(block: Block) -> dict[str, Any]:
        calls.append(block.number)
        raise RuntimeError("could not write") from OSError(errno.ENOSPC, "No space left", "/proc/self/x")

    with pytest.raises(StageError, match=r"block 0.*bytes are free in /proc/"):
        run_pass(task, grid(9), record=lambda *_: None, quarantine=lambda *_: None, name="p")
    assert calls == [0]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT])
def test_a_lost_permission_stops_the_pass_at_once(number: int) -> None:
    task = raising(OSError(number, "no"))
    with pytest.raises(StageError):
        run_pass(task, grid(9), record=lambda *_: None, quarantine=lambda *_: None, name="p")


def test_a_passing_error_of_the_file_system_is_tried_again() -> None:
    failures = [OSError(errno.EIO, "once")]

    def task(block: Block) -> dict[str, Any]:
        if failures:
            raise failures.pop()
        return {}

    assert run_pass(task, grid(3), record=lambda *_: None, name="p").n_retries == 1


def test_a_users_mistake_is_not_tried_again() -> None:
    with pytest.raises(InputError, match="^the rule$"):
        run_pass(raising(InputError("the rule")), grid(9), record=lambda *_: None, name="p")


def test_a_ledger_that_cannot_be_written_is_a_failed_stage() -> None:
    def record(number: int, report: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left")

    with pytest.raises(StageError, match="could not record block 0"):
        run_pass(lambda b: {}, grid(2), record=record, name="p")


def test_many_failures_stop_the_pass_and_few_do_not() -> None:
    bad: dict[int, Any] = {}
    with pytest.raises(StageError, match="at most 50% of the blocks may fail"):
        run_pass(raising(ValueError()), grid(99), record=lambda *_: None, quarantine=bad.__setitem__, name="p")
    assert len(bad) == books.MIN_FAILED + 1
    few: dict[int, Any] = {}
    run_pass(raising(ValueError()), grid(9), record=lambda *_: None, quarantine=few.__setitem__, name="p")
    assert len(few) == 9


def test_after_a_stop_no_block_starts_and_the_rest_is_done_by_coming_again() -> None:
    flag, ledger = StopFlag(), {}

    def record(number: int, report: dict[str, Any]) -> None:
        ledger[number] = report
        if len(ledger) == 3:
            flag.set("SIGTERM")

    with pytest.raises(Interrupted, match=r"stopped \(SIGTERM\) after 3 of 10 blocks"):
        run_pass(lambda b: {}, grid(10), record=record, name="p", should_stop=flag)
    result = run_pass(lambda b: {}, grid(10), done=ledger.copy(), record=record, name="p")
    assert (result.n_done, result.n_skipped) == (7, 3)
    assert sorted(ledger) == list(range(10))


def test_a_stop_inside_a_run_leaves_the_rest_of_the_run() -> None:
    flag, started = StopFlag(), []

    def task(block: Block) -> dict[str, Any]:
        started.append(block.number)
        flag.set("SIGINT")
        return {}

    with pytest.raises(Interrupted):
        run_pass(task, grid(8), record=lambda *_: None, name="p", run_length=8, should_stop=flag)
    assert started == [0]


def test_a_stop_after_the_last_block_is_no_interruption() -> None:
    flag = StopFlag()
    result = run_pass(
        lambda b: {}, grid(3), done={1, 2}, record=lambda *_: flag.set("SIGINT"), name="p", should_stop=flag
    )
    assert (result.n_done, result.n_skipped) == (1, 2)


def test_no_block_starts_after_the_deadline() -> None:
    started = []
    with pytest.raises(Interrupted, match="deadline"):
        run_pass(
            lambda b: started.append(b.number) or {},  # type: ignore[func-returns-value]
            grid(3),
            record=lambda *_: None,
            name="p",
            deadline=time.monotonic() - 1,
        )
    assert started == []


def test_blocks_are_made_one_at_a_time() -> None:
    made, done = [], []

    class Lazy:
        def __len__(self) -> int:
            return 50

        def __getitem__(self, position: int) -> Block:
            made.append(position)
            assert len(made) - len(done) <= 2
            return grid(50)[position]

    run_pass(lambda b: {}, Lazy(), record=lambda n, _: done.append(n), name="p")
    assert sorted(made) == list(range(50))


def test_progress_hears_of_skipped_blocks_retries_and_the_end() -> None:
    class Told(Silent):
        is_finished = False

        def finish(self) -> None:
            self.is_finished = True

    progress, failures = Told(), [ValueError()]

    def task(block: Block) -> dict[str, Any]:
        if failures:
            raise failures.pop()
        return {}

    run_pass(task, grid(5), done={0, 4}, record=lambda *_: None, name="p", progress=progress)
    assert (progress.name, progress.total, progress.done, progress.n_retries) == ("p", 5, 5, 1)
    assert progress.is_finished


class Staged:
    """A task in three steps; ``hook`` runs inside each."""

    def __init__(self, hook: Callable[[str, int], None] = lambda step, number: None) -> None:
        self.hook, self.steps = hook, Counter[tuple[str, int]]()

    def load(self, block: Block) -> int:
        self._do("load", block)
        return block.number

    def compute(self, block: Block, loaded: int) -> int:
        self._do("compute", block)
        return loaded**2

    def store(self, block: Block, result: int) -> dict[str, Any]:
        self._do("store", block)
        return {"square": result}

    def __call__(self, block: Block) -> dict[str, Any]:
        raise AssertionError("the steps are called one by one")

    def _do(self, step: str, block: Block) -> None:
        self.hook(step, block.number)
        self.steps[step, block.number] += 1


def test_in_this_process_too_a_block_is_read_while_one_is_computed_and_one_written() -> None:
    together = threading.Barrier(3)

    def hook(step: str, number: int) -> None:
        if (step, number) in {("load", 5), ("compute", 4), ("store", 3)}:
            together.wait(10.0)

    reports: dict[int, dict[str, Any]] = {}
    result = run_pass(Staged(hook), grid(9), record=reports.__setitem__, name="p", retries=0)
    assert reports == {n: {"square": n**2} for n in range(9)}
    assert (result.n_done, result.n_retries) == (9, 0)


def test_a_block_is_recorded_after_it_was_written_and_before_long() -> None:
    task, recorded = Staged(), []

    def record(number: int, report: dict[str, Any]) -> None:
        assert task.steps["store", number] == 1
        recorded.append(number)
        assert task.steps["load", number + 3] == 0

    run_pass(task, grid(20), record=record, name="p")
    assert recorded == list(range(20))


@pytest.mark.parametrize("step", ["load", "compute", "store"])
def test_a_step_that_fails_once_is_tried_again_and_one_that_always_fails_is_quarantined(step: str) -> None:
    failures: Counter[int] = Counter()
    bad: dict[int, dict[str, Any]] = {}
    done: list[int] = []

    def hook(now: str, number: int) -> None:
        failures[number] += now == step
        if now == step and (number == 2 or (number == 4 and failures[4] == 1)):
            raise OSError("not now")

    result = run_pass(
        Staged(hook), grid(7), record=lambda n, _: done.append(n), quarantine=bad.__setitem__, name="p", retries=1
    )
    assert sorted(done) == [0, 1, 3, 4, 5, 6]
    assert result.quarantined == (2,)
    assert result.n_retries == 2
    assert bad[2]["error"] == "OSError: not now"


def test_a_stop_lets_what_was_read_be_written() -> None:
    flag = StopFlag()
    task = Staged(lambda step, number: flag.set("SIGTERM") if (step, number) == ("compute", 3) else None)
    done: list[int] = []
    with pytest.raises(Interrupted, match=r"after \d of 50 blocks"):
        run_pass(task, grid(50), record=lambda n, _: done.append(n), name="p", should_stop=flag)
    assert 4 <= len(done) <= 5
    assert {number for _, number in task.steps} == set(done)
    assert set(task.steps.values()) == {1}


def test_an_interrupt_does_not_wait_for_a_store_that_hangs() -> None:
    release = threading.Event()

    def record(number: int, report: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_pass(
            Staged(lambda step, number: None if number == 0 else release.wait(20.0) and None),
            grid(9),
            record=record,
            name="p",
        )
    assert time.monotonic() - began < 10.0
    release.set()


def test_a_pass_in_bricks_does_one_after_the_other() -> None:
    done: list[int] = []
    square = BlockGrid(Box.of_shape((4, 4)), (1, 1))
    run_pass(lambda b: {}, square, done={5}, record=lambda n, _: done.append(n), name="p", brick=(2, 2))
    assert done == [0, 1, 4, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def test_a_run_ends_when_its_time_is_over_and_tells_what_was_done() -> None:
    blocks = tuple(grid(5))
    packed = pickle.dumps((blocks, None, False))
    for longest, n_done in [(0.0, 1), (60.0, 5), (None, 5)]:
        worked = oncluster._work_on_worker(pack(passes), packed, "p", longest)
        assert [o.number for o in worked.outcomes] == list(range(n_done))


def passes(block: Block) -> dict[str, Any]:
    time.sleep(0.001)
    return {}
