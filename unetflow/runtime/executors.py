"""Where attempts are worked on: what an executor is, and the one of this process.

An *attempt* is a short sequence of neighbouring blocks that travels as one Dask task. Only keys
go out and only small reports come back. The executor of Dask's workers is `oncluster`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from typing import Protocol

from unetflow.geometry import Block
from unetflow.runtime.outcomes import Attempt, Outcome, Result, Task, Worked
from unetflow.runtime.pipeline import PipelinedTask, is_pipelined, work_through

# Tasks in flight for each worker thread: enough that none waits, few enough to forget at a stop.
WINDOW = 3
HERE = "here"  # the address of this process


class Executor(Protocol):
    """Takes attempts and hands back what became of them, in any order.

    Parameters
    ----------
    workers : mapping of str to int
        Address of each worker, and the attempts that it may have in flight.
    longest_run : int
        Blocks of an attempt at most.
    reads_ahead : bool
        Whether a worker makes use of an attempt's ``ahead``.
    """

    workers: Mapping[str, int]
    longest_run: int
    reads_ahead: bool

    def refresh(self) -> None:
        """Count the workers anew."""

    def submit(self, attempt: Attempt) -> None:
        """Take an attempt."""

    def collect(self, timeout: float) -> list[Result]:
        """Return finished attempts, waiting at most ``timeout`` seconds for one.

        Raises
        ------
        Interrupted
            When the scheduler or all workers are gone.
        """

    def stop(self) -> None:
        """Let no further block start, also of attempts already taken."""

    def close(self, error: BaseException | None = None) -> None:
        """Forget what is still in flight; ``error`` is what ended the pass, if anything did."""


class InProcess:
    """Work in this process: the debugger, and the oracle of the tests.

    Nothing travels, so an attempt is one block and each is told as soon as it is written; a task
    of three steps goes through one pipeline from the first block to the last.
    """

    longest_run = 1
    reads_ahead = False

    def __init__(self, task: Task | PipelinedTask, is_stopped: Callable[[], bool]) -> None:
        self._task, self._is_stopped = task, is_stopped
        # One block is read, one is computed and one is written.
        self.workers: Mapping[str, int] = {HERE: 3 if is_pipelined(task) else 1}
        self._waiting: deque[Block] = deque()
        self._taken: deque[Attempt] = deque()
        self._outcomes = self._pipe()

    def _pipe(self) -> Generator[Outcome]:
        return work_through(self._task, self._next_blocks(), self._is_stopped)

    def _next_blocks(self) -> Iterator[Block]:
        while self._waiting:
            yield self._waiting.popleft()

    def refresh(self) -> None:
        """Do nothing: this process stays."""

    def submit(self, attempt: Attempt) -> None:
        """Take an attempt, to be worked on by :meth:`collect`."""
        self._taken.append(attempt)
        self._waiting.extend(attempt.blocks)

    def collect(self, timeout: float) -> list[Result]:
        """Work until a block is finished; after a stop, return the others as not started."""
        if not self._taken:
            time.sleep(timeout)
            return []
        began = time.monotonic()
        outcome = next(self._outcomes, None)
        if outcome is None and not self._is_stopped():  # it had run dry
            self._outcomes = self._pipe()
            outcome = next(self._outcomes, None)
        if outcome is None:
            return [(self._taken.popleft(), Worked([], 0.0)) for _ in range(len(self._taken))]
        return [(self._taken.popleft(), Worked([outcome], time.monotonic() - began))]

    def stop(self) -> None:
        """Do nothing: ``is_stopped`` is asked before each block."""

    def close(self, error: BaseException | None = None) -> None:
        """Wait for the steps in hand, unless the pass was interrupted the hard way."""
        with suppress(BaseException):
            self._outcomes.throw(error or GeneratorExit())
