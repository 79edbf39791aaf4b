"""Where runs of blocks are worked on: in this process, or on the workers of a Dask client.

A *run* is a short sequence of neighbouring blocks that travels as one Dask task. Only keys go
out and only small reports come back.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from unetflow.errors import Interrupted
from unetflow.geometry import Block
from unetflow.runtime.outcomes import (
    Attempt,
    Death,
    Failure,
    Outcome,
    Report,
    Result,
    Task,
    describe,
    pack,
    unpack,
    work_through,
)

if TYPE_CHECKING:
    from distributed import Client, Future

# Tasks in flight for each worker thread: enough that none waits, few enough to forget at a stop.
WINDOW = 3


class Executor(Protocol):
    """Takes attempts and hands back what became of them, in any order."""

    n_workers: int
    window: int

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

    def close(self) -> None:
        """Forget what is still in flight."""


class InProcess:
    """Work in this process, one block at a time: the debugger, and the oracle of the tests."""

    n_workers = 1
    window = 1

    def __init__(self, task: Task, is_stopped: Callable[[], bool]) -> None:
        self._task, self._is_stopped = task, is_stopped
        self._taken: list[Attempt] = []

    def refresh(self) -> None:
        """Do nothing: this process stays."""

    def submit(self, attempt: Attempt) -> None:
        """Take an attempt, to be worked on by :meth:`collect`."""
        self._taken.append(attempt)

    def collect(self, timeout: float) -> list[Result]:
        """Work on what was taken."""
        if not self._taken:
            time.sleep(timeout)
        taken, self._taken = self._taken, []
        return [(a, work_through(self._task, a.blocks, self._is_stopped)) for a in taken]

    def stop(self) -> None:
        """Do nothing: ``is_stopped`` is asked before each block."""

    def close(self) -> None:
        """Do nothing: no attempt is in flight between two calls."""


_stopped_passes: set[str] = set()  # on a worker: passes whose remaining blocks must not start


def _work_on_worker(task: bytes, blocks: Sequence[Block], token: str) -> list[Outcome]:
    def work(block: Block) -> Report:
        report: Report = unpack(task)(block)
        return report

    return work_through(work, blocks, lambda: token in _stopped_passes)


def _stop_on_worker(token: str) -> None:
    _stopped_passes.add(token)


class OnCluster:
    """Work on the workers of a Dask client, with few tasks in flight.

    Parameters
    ----------
    client : distributed.Client
    task : callable
        Picklable; its code is imported on the worker.
    name : str
        What Dask's dashboard calls the tasks.
    patience : float
        Seconds without any worker after which the pass gives up.

    Notes
    -----
    Without a scheduler, ``as_completed`` ends as if all were well: every future comes out of
    it, "cancelled". Hence only the status "finished" counts here.
    """

    def __init__(self, client: Client, task: Task, name: str, patience: float) -> None:
        from distributed import as_completed

        self._client, self._task, self._patience = client, pack(task), patience
        self._token = uuid.uuid4().hex
        self._name = f"{name}-{self._token}"
        self._in_flight: dict[Any, tuple[Future[Any], Attempt]] = {}
        self._n_submitted = 0
        self._completed = as_completed(loop=client.loop, with_results=True, raise_errors=False)
        self._seen_at = time.monotonic()
        self._addresses: list[str] = []
        self.n_workers, self.window = 0, 2
        self.refresh()

    def refresh(self) -> None:
        """Ask the scheduler for its workers."""
        self._check_client()
        try:
            threads = self._client.nthreads()
        except Exception as error:
            raise Interrupted(f"the Dask scheduler does not answer: {error}") from error
        self._addresses = list(threads)
        self._counted_at = time.monotonic()
        self.n_workers = len(threads)
        self.window = max(2, WINDOW * sum(threads.values()))
        if threads:
            self._seen_at = self._counted_at
        elif self._counted_at - self._seen_at > self._patience:
            raise Interrupted(f"no worker was there for {self._patience:.0f} s; the same command goes on")

    def submit(self, attempt: Attempt) -> None:
        """Send an attempt; where it failed before, it goes elsewhere if there is a choice."""
        others = [a for a in self._addresses if a != attempt.avoid] if attempt.avoid else []
        self._n_submitted += 1
        try:
            future = self._client.submit(
                _work_on_worker,
                self._task,
                attempt.blocks,
                self._token,
                # A tuple key groups the tasks of a pass, so that Dask holds back what waits
                # instead of piling it up on workers.
                key=(self._name, self._n_submitted),
                workers=others or None,
                allow_other_workers=bool(others),
            )
        except Exception:
            self._check_client()
            raise
        self._in_flight[future.key] = (future, attempt)
        self._completed.add(future)

    def collect(self, timeout: float) -> list[Result]:
        """Return what finished, and release it at once: results kept on workers die with them."""
        waiting = self._completed.thread_condition
        with waiting:
            if not self._completed.has_ready():
                waiting.wait(timeout)
        if time.monotonic() - self._counted_at > 1.0:
            self.refresh()
        results = []
        while self._completed.has_ready():
            future, value = next(self._completed)
            results.append(self._settle(future, value))
        return results

    def _settle(self, future: Future[Any], value: Any) -> Result:
        status = future.status
        _, attempt = self._in_flight.pop(future.key)
        future.release()
        if status == "finished" and isinstance(value, list):
            return attempt, value
        if status != "error":
            raise Interrupted(f"the Dask scheduler was lost (a task is {status}); the same command goes on")
        return attempt, _death(value[1])

    def _check_client(self) -> None:
        if self._client.status not in ("running", "connecting"):
            raise Interrupted(f"the Dask client is {self._client.status}; the same command goes on")

    def stop(self) -> None:
        """Tell the workers; those that are gone need not know."""
        with suppress(Exception):
            self._client.run(_stop_on_worker, self._token, on_error="ignore")

    def close(self) -> None:
        """Release the futures, so that the scheduler forgets what has not started."""
        for future, _ in self._in_flight.values():
            with suppress(Exception):
                future.release()
        self._in_flight.clear()


def _death(error: BaseException) -> Death:
    """Describe a future that ended in an error: ``work_through`` itself never raises."""
    from distributed import KilledWorker

    if not isinstance(error, KilledWorker):
        return Death(describe(error), is_killed=False)
    text = "the worker process died at this block: out of memory, a crash in compiled code, or the end of its job"
    return Death(Failure(text, "", str(error.last_worker.address)), is_killed=True)
