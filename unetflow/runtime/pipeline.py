r"""Work through blocks: read the next, compute this one, write the last, all at the same time.

::

    reader thread   load 1 | load 2    | load 3    | load A ............ for the next run
    task thread            | compute 1 | compute 2 | compute 3 |
    writer thread                      | store 1   | store 2   | store 3

At most one block is read ahead and one is written behind, so that a process holds no more than
two blocks as read and two as computed. What goes wrong with a block is that block's outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Protocol, TypeGuard

from unetflow.geometry import Block
from unetflow.runtime.outcomes import Outcome, Report, Task, describe

Step = tuple[Block, "Future[Any]"]
Call = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


class PipelinedTask(Protocol):
    """A task in three steps; called, it does them one after the other.

    ``load`` and ``store`` run on threads of their own beside ``compute``, each for one block at a
    time: what they share must bear that.
    """

    def load(self, block: Block) -> Any:
        """Read what the block needs."""

    def compute(self, block: Block, loaded: Any) -> Any:
        """Make the block's data; this is the thread that called."""

    def store(self, block: Block, result: Any) -> Report:
        """Write the block's data and report."""

    def __call__(self, block: Block) -> Report:
        """Load, compute and store."""


class Slot:
    """Room for one block that is read before its run begins."""

    def __init__(self) -> None:
        self._held: tuple[str, int, Future[Any]] | None = None
        self._lock = Lock()

    def put(self, token: str, number: int, future: Future[Any]) -> None:
        """Keep what is read of a block of the pass ``token``, in place of what was here."""
        with self._lock:
            self._held = (token, number, future)

    def take(self, token: str, number: int) -> Future[Any] | None:
        """Return what was read of a block, if it is here; the slot is empty afterwards."""
        with self._lock:
            held, self._held = self._held, None
        return held[2] if held is not None and held[:2] == (token, number) else None

    def drop(self, token: str) -> None:
        """Forget a block of the pass ``token``."""
        with self._lock:
            if self._held is not None and self._held[0] == token:
                self._held = None


def is_pipelined(task: Any) -> TypeGuard[PipelinedTask]:
    """Say whether a task has the three steps."""
    return all(callable(getattr(task, step, None)) for step in ("load", "compute", "store"))


def work_through(
    task: Task | PipelinedTask,
    blocks: Iterable[Block],
    is_stopped: Callable[[], bool] = lambda: False,
    *,
    ahead: Block | None = None,
    slot: Slot | None = None,
    token: str = "",
    is_gentle: bool = False,
) -> Generator[Outcome]:
    """Do blocks one after the other, and yield what became of each, in order.

    Parameters
    ----------
    blocks : iterable of Block
        Asked for the next one when there is room for it.
    is_stopped : callable
        Asked before each block; once true no further one is started.
    ahead : Block, optional
        Read while the last block is computed, and left in ``slot``.
    slot : Slot, optional
        Where ``ahead`` is left, and where the first block is taken from.
    token : str
        The pass, by which both are known.
    is_gentle : bool
        Use little memory: hold one block at a time, and take what the task's ``gently()`` returns, if it has
        that, for the task.

    Notes
    -----
    Reader and writer finish what they began before an exception leaves; but KeyboardInterrupt and
    its like leave at once, and the threads end by themselves after the step in hand.
    """
    if is_gentle:
        task = getattr(task, "gently", lambda: task)()
        return _one_by_one(task, blocks, is_stopped)
    if is_pipelined(task):
        return _Pipeline(task, iter(blocks), is_stopped, ahead, slot or Slot(), token).run()
    return _one_by_one(task, blocks, is_stopped)


def _one_by_one(
    task: Task | PipelinedTask, blocks: Iterable[Block], is_stopped: Callable[[], bool]
) -> Generator[Outcome]:
    remaining = iter(blocks)
    while not is_stopped() and (block := next(remaining, None)) is not None:
        try:
            outcome = Outcome(block.number, report=_checked(task(block)))
        except Exception as error:
            outcome = Outcome(block.number, failure=describe(error, task, block))
        yield outcome


class _Pipeline:
    """Three threads over one sequence of blocks."""

    def __init__(
        self,
        task: PipelinedTask,
        blocks: Iterator[Block],
        is_stopped: Callable[[], bool],
        ahead: Block | None,
        slot: Slot,
        token: str,
    ) -> None:
        self.task, self.blocks, self.is_stopped = task, blocks, is_stopped
        self.ahead, self.slot, self.token = ahead, slot, token

    def run(self) -> Generator[Outcome]:
        # Not before the first block is asked for: nobody would end the threads of a run that never began.
        self.reader, self.writer = Helper("read ahead"), Helper("write behind")
        try:
            yield from self._outcomes()
        except BaseException as error:
            self._close(wait=isinstance(error, Exception | GeneratorExit))
            raise
        self._close(wait=self.ahead is None)  # what is read ahead goes on after this run

    def _close(self, *, wait: bool) -> None:
        for helper in (self.reader, self.writer):
            helper.close()
        for helper in (self.reader, self.writer):
            if wait:
                helper.thread.join()

    def _outcomes(self) -> Iterator[Outcome]:
        """Keep a block in each of the three hands."""
        loading, storing = self._load_next(is_first=True), None
        while loading is not None:
            block, loaded = loading
            if storing is not None:
                wait([loaded, storing[1]], return_when=FIRST_COMPLETED)
                if storing[1].done():  # told before the next one is computed, which may take long
                    yield _outcome(self.task, *storing)
                    storing = None
            wait([loaded])
            loading = self._load_next()
            result, error = self._compute(block, loaded)
            if storing is not None:
                yield _outcome(self.task, *storing)
            storing = block, self.writer.call(self.task.store, block, result) if error is None else _failed(error)
            del loaded, result, error  # a block that is done takes no memory while the next one is computed
        if storing is not None:
            yield _outcome(self.task, *storing)

    def _load_next(self, *, is_first: bool = False) -> Step | None:
        """Start to read one more block, or the one ahead where this run is at its end."""
        if self.is_stopped():
            return None
        block = next(self.blocks, None)
        if block is not None:
            read = self.slot.take(self.token, block.number) if is_first else None
            return block, read or self.reader.call(self.task.load, block)
        if self.ahead is not None:
            self.slot.put(self.token, self.ahead.number, self.reader.call(self.task.load, self.ahead))
        return None

    def _compute(self, block: Block, loaded: Future[Any]) -> tuple[Any, Exception | None]:
        try:
            return self.task.compute(block, loaded.result()), None
        except Exception as error:
            return None, error


class Helper:
    """A thread that makes calls, one after the other, until it is closed."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        # A daemon: a process that is told to end does not wait for a store that hangs.
        self.thread = Thread(target=_serve, args=(self._calls,), name=name, daemon=True)
        self.thread.start()

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Have a call made."""
        future: Future[Any] = Future()
        self._calls.put((future, function, args))
        return future

    def close(self) -> None:
        """Let the thread end after the calls that it has."""
        self._calls.put(None)


def _serve(calls: SimpleQueue[Call | None]) -> None:
    while _serve_one(calls):
        pass


def _serve_one(calls: SimpleQueue[Call | None]) -> bool:
    """Make one call; its arguments are forgotten on return, before the next one is waited for."""
    call = calls.get()
    if call is None:
        return False
    future, function, args = call
    try:
        future.set_result(function(*args))
    except BaseException as error:  # raised again by whoever asks for the result
        future.set_exception(error)
    return True


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _outcome(task: PipelinedTask, block: Block, stored: Future[Any]) -> Outcome:
    """Wait for a block's last step, and tell what became of it."""
    try:
        return Outcome(block.number, report=_checked(stored.result()))
    except Exception as error:
        return Outcome(block.number, failure=describe(error, task, block))


def _checked(report: Any) -> Report:
    if not isinstance(report, dict):
        raise TypeError(f"a task must return a dict, got {type(report).__name__}")
    return report
