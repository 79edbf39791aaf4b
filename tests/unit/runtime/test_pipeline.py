"""Read ahead, compute, write behind: what happens at the same time, and what never does."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from unetflow.geometry import Block, BlockGrid, Box
from unetflow.runtime.outcomes import Outcome
from unetflow.runtime.pipeline import Slot, is_pipelined, work_through

PATIENCE = 10.0


def grid(n_blocks: int) -> list[Block]:
    return list(BlockGrid(Box.of_shape((n_blocks,)), (1,)))


def threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name in ("read ahead", "write behind")}


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threads()
    yield
    for thread in threads() - before:
        thread.join(PATIENCE)
    assert not threads() - before


def test_a_run_that_never_begins_starts_no_thread() -> None:
    before = threads()
    outcomes = work_through(Steps(), grid(2))
    assert threads() == before
    outcomes.close()
    assert threads() == before


class Steps:
    """A task that notes its steps; ``hook`` runs inside each of them."""

    def __init__(self, hook: Callable[[str, int], None] = lambda step, number: None) -> None:
        self.hook, self.lock = hook, threading.Lock()
        self.begun: list[tuple[str, int]] = []
        self.ended: list[tuple[str, int]] = []
        self.places: dict[str, set[str]] = {"load": set(), "compute": set(), "store": set()}
        self.most: dict[str, int] = {"read": 0, "made": 0, "load": 0, "store": 0}

    def step(self, step: str, number: int) -> None:
        with self.lock:
            self.begun.append((step, number))
            self.places[step].add(threading.current_thread().name)
            n = {s: sum(b == s for b, _ in self.begun) for s in self.places}
            m = {s: sum(b == s for b, _ in self.ended) for s in self.places}
            held = {"read": n["load"] - m["compute"], "made": n["compute"] - m["store"]}
            held |= {s: n[s] - m[s] for s in ("load", "store")}
            self.most = {k: max(v, held[k]) for k, v in self.most.items()}
        try:
            self.hook(step, number)
        finally:
            with self.lock:
                self.ended.append((step, number))

    def load(self, block: Block) -> int:
        self.step("load", block.number)
        return block.number + 1

    def compute(self, block: Block, loaded: int) -> int:
        self.step("compute", block.number)
        return loaded * 10

    def store(self, block: Block, result: int) -> dict[str, Any]:
        self.step("store", block.number)
        return {"result": result}

    def __call__(self, block: Block) -> dict[str, Any]:
        return self.store(block, self.compute(block, self.load(block)))


def reports(outcomes: list[Outcome]) -> dict[int, dict[str, Any] | None]:
    return {o.number: o.report for o in outcomes}


def test_a_task_is_pipelined_if_it_has_all_three_steps() -> None:
    assert is_pipelined(Steps())
    assert not is_pipelined(lambda block: {})


def test_the_outcomes_are_those_of_the_three_steps_in_a_row() -> None:
    blocks = grid(9)
    outcomes = list(work_through(Steps(), blocks))
    assert [o.number for o in outcomes] == list(range(9))
    assert reports(outcomes) == {b.number: Steps()(b) for b in blocks}


def test_reading_computing_and_writing_happen_at_the_same_time() -> None:
    together = threading.Barrier(3)
    seen: list[set[str]] = []

    def hook(step: str, number: int) -> None:
        # Block 2 is read while block 1 is computed and block 0 written: none goes on before all are there.
        if (step, number) in {("load", 2), ("compute", 1), ("store", 0)}:
            together.wait(PATIENCE)
            seen.append({step})

    task = Steps(hook)
    assert all(o.failure is None for o in work_through(task, grid(4)))
    assert len(seen) == 3
    assert task.places == {
        "load": {"read ahead"},
        "compute": {threading.current_thread().name},
        "store": {"write behind"},
    }


@pytest.mark.parametrize("slow", ["load", "compute", "store"])
def test_one_block_is_read_ahead_and_one_is_written_behind_and_no_more(slow: str) -> None:
    task = Steps(lambda step, number: time.sleep(0.004 if step == slow else 0.0))
    assert len(list(work_through(task, grid(12)))) == 12
    bounds = {"read": 2, "made": 2, "load": 1, "store": 1}
    assert all(task.most[what] <= bound for what, bound in bounds.items()), task.most


def test_blocks_are_asked_for_when_there_is_room_for_them() -> None:
    asked: list[int] = []
    task = Steps()

    def blocks() -> Iterator[Block]:
        for block in grid(10):
            asked.append(block.number)
            n_computed = sum(step == "compute" for step, _ in task.ended)
            assert len(asked) - n_computed <= 2
            yield block

    list(work_through(task, blocks()))
    assert len(asked) == 10


@pytest.mark.parametrize("step", ["load", "compute", "store"])
def test_what_fails_in_a_step_is_that_blocks_failure_only(step: str) -> None:
    def hook(now: str, number: int) -> None:
        if now == step and number == 2:
            raise ValueError(f"no {step}")

    task = Steps(hook)
    outcomes = list(work_through(task, grid(6)))
    assert [o.number for o in outcomes] == list(range(6))
    assert [o.number for o in outcomes if o.failure is not None] == [2]
    failure = outcomes[2].failure
    assert failure is not None
    assert failure.error == f"ValueError: no {step}"
    assert "in hook" in failure.traceback
    later = {"load": {"compute", "store"}, "compute": {"store"}, "store": set()}[step]
    assert not {(s, 2) for s in later} & set(task.begun)


def test_a_report_that_is_no_dict_is_a_failure() -> None:
    class Wrong(Steps):
        def store(self, block: Block, result: int) -> Any:
            return result

    (outcome,) = work_through(Wrong(), grid(1))
    assert outcome.failure is not None
    assert "must return a dict, got int" in outcome.failure.error


def test_after_a_stop_what_was_read_is_computed_and_written_and_nothing_else_is_begun() -> None:
    stop = threading.Event()

    def hook(step: str, number: int) -> None:
        if (step, number) == ("compute", 1):
            until = time.monotonic() + PATIENCE
            while ("load", 2) not in task.ended and time.monotonic() < until:
                time.sleep(0.001)
            stop.set()

    task = Steps(hook)
    outcomes = list(work_through(task, grid(9), stop.is_set, ahead=grid(10)[9], slot=Slot(), token="p"))
    assert reports(outcomes) == {b.number: Steps()(b) for b in grid(3)}
    assert {number for _, number in task.begun} == {0, 1, 2}


def test_an_outcome_does_not_wait_for_the_next_block_to_be_read() -> None:
    told = [threading.Event() for _ in range(5)]

    def hook(step: str, number: int) -> None:
        if step == "load" and number and not told[number - 1].wait(PATIENCE):
            raise TimeoutError

    for outcome in work_through(Steps(hook), grid(5)):
        assert outcome.failure is None
        told[outcome.number].set()


@pytest.mark.parametrize(
    ("step", "hanging"), [("load", ("store", 0)), ("compute", ("load", 2)), ("store", ("load", 3))]
)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_no_exception_gets_out_at_once(step: str, hanging: tuple[str, int], error: type[BaseException]) -> None:
    release = threading.Event()

    def hook(now: str, number: int) -> None:
        if (now, number) == (step, 1):
            raise error
        if (now, number) == hanging:
            release.wait(PATIENCE)

    began = time.monotonic()
    with pytest.raises(error):
        list(work_through(Steps(hook), grid(4)))
    assert time.monotonic() - began < PATIENCE / 2
    release.set()


def test_whoever_closes_it_waits_for_the_steps_in_hand() -> None:
    task = Steps(lambda step, number: time.sleep(0.02 if step == "store" else 0.0))
    outcomes = work_through(task, grid(9))
    next(outcomes)
    outcomes.close()
    assert not threads()
    assert sorted(task.begun) == sorted(task.ended)


def test_what_was_read_ahead_is_not_read_again_by_the_next_run() -> None:
    task, slot, blocks = Steps(), Slot(), grid(6)
    first = list(work_through(task, blocks[:3], ahead=blocks[3], slot=slot, token="p"))
    second = list(work_through(task, blocks[3:], slot=slot, token="p"))
    assert reports(first + second) == {b.number: Steps()(b) for b in blocks}
    assert sorted(n for step, n in task.begun if step == "load") == list(range(6))


def test_the_block_ahead_is_read_while_the_last_one_of_the_run_is_computed() -> None:
    together = threading.Barrier(2)

    def hook(step: str, number: int) -> None:
        if (step, number) in {("load", 7), ("compute", 1)}:
            together.wait(PATIENCE)

    outcomes = list(work_through(Steps(hook), grid(2), ahead=grid(8)[7], slot=Slot(), token="p"))
    assert [o.failure for o in outcomes] == [None, None]


@pytest.mark.parametrize(("token", "number"), [("other", 3), ("p", 4)])
def test_a_block_that_another_run_does_not_want_is_dropped(token: str, number: int) -> None:
    task, slot, blocks = Steps(), Slot(), grid(6)
    list(work_through(task, blocks[:3], ahead=blocks[3], slot=slot, token="p"))
    list(work_through(task, [blocks[number]], slot=slot, token=token))
    assert task.begun.count(("load", number)) == 1 + (number == 3)
    assert slot.take("p", 3) is None


def test_a_pass_drops_its_own_block_only() -> None:
    task, slot, blocks = Steps(), Slot(), grid(2)
    list(work_through(task, blocks[:1], ahead=blocks[1], slot=slot, token="p"))
    slot.drop("other")
    assert slot.take("p", 1) is not None
    list(work_through(task, blocks[:1], ahead=blocks[1], slot=slot, token="p"))
    slot.drop("p")
    assert slot.take("p", 1) is None


def test_a_block_that_could_not_be_read_ahead_fails_in_its_own_run() -> None:
    def hook(step: str, number: int) -> None:
        if (step, number) == ("load", 1):
            raise OSError("gone")

    task, slot, blocks = Steps(hook), Slot(), grid(3)
    first = list(work_through(task, blocks[:1], ahead=blocks[1], slot=slot, token="p"))
    second = list(work_through(task, blocks[1:], slot=slot, token="p"))
    assert [o.failure is not None for o in first + second] == [False, True, False]


def test_a_block_that_is_done_leaves_nothing_behind() -> None:
    class Data:
        pass

    alive: list[weakref.ref[Data]] = []

    class Heavy(Steps):
        def load(self, block: Block) -> Any:
            data = Data()
            alive.append(weakref.ref(data))
            return data

        def compute(self, block: Block, loaded: Any) -> Any:
            assert sum(ref() is not None for ref in alive) <= 2
            return Data()

        def store(self, block: Block, result: Any) -> dict[str, Any]:
            return {}

    outcomes = list(work_through(Heavy(), grid(8)))
    assert [o.failure for o in outcomes] == [None] * 8
