"""Work on the workers of a Dask client: attempts go out as tasks, few at a time."""

from __future__ import annotations

import math
import pickle
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from unetflow.errors import Interrupted
from unetflow.geometry import Block
from unetflow.runtime.executors import WINDOW
from unetflow.runtime.outcomes import (
    Attempt,
    Death,
    Failure,
    Outcome,
    Result,
    Task,
    Worked,
    describe,
    pack,
    unpack,
    whoami,
)
from unetflow.runtime.pipeline import PipelinedTask, Slot, is_pipelined, work_through
from unetflow.runtime.watchdog import Watchdog

if TYPE_CHECKING:
    from distributed import Client, Future

REFRESH_SECONDS = 1.0  # how often the workers are counted
_DEATH = (
    "the worker process died at this block, which it had alone and with one tile at a time: out of memory (use fewer "
    "--workers, or a smaller [segment] memory, tile or shard), a crash in compiled code, or the end of its job"
)

_stopped_passes: set[str] = set()  # on a worker: passes whose remaining blocks must not start
_ahead = Slot()  # on a worker: the block that its next run begins with


def _work_on_worker(task: bytes, packed: bytes, token: str, longest: float | None) -> Worked:
    """Do the blocks of an attempt; the code is loaded here, so that what fails is told as an outcome."""
    began = time.monotonic()
    blocks, ahead, is_gentle = pickle.loads(packed)
    try:
        work = unpack(task)
    except Exception as error:
        return Worked([Outcome(blocks[0].number, failure=describe(error))], 0.0)
    outcomes = work_through(
        work,
        _within(blocks, longest),
        lambda: token in _stopped_passes,
        ahead=ahead,
        slot=_ahead,
        token=token,
        is_gentle=is_gentle,
    )
    return Worked(list(outcomes), time.monotonic() - began, whoami())


def _within(blocks: Sequence[Block], longest: float | None) -> Iterator[Block]:
    """Yield the first block, and further ones until ``longest`` seconds are over."""
    until = math.inf if longest is None else time.monotonic() + longest
    for position, block in enumerate(blocks):
        if position and time.monotonic() > until:
            return
        yield block


def _stop_on_worker(token: str) -> None:
    _stopped_passes.add(token)


def _forget_on_worker(token: str) -> None:
    _stopped_passes.discard(token)
    _ahead.drop(token)


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
    longest : float, optional
        Seconds after which an attempt starts no further block.
    block_seconds : float
        A worker that finishes nothing for so long is taken for hanging, and ended.

    Notes
    -----
    Without a scheduler, ``as_completed`` ends as if all were well: every future comes out of
    it, "cancelled". Hence only the status "finished" counts here.
    """

    longest_run = sys.maxsize

    def __init__(
        self,
        client: Client,
        task: Task | PipelinedTask,
        name: str,
        patience: float,
        longest: float | None = None,
        block_seconds: float = math.inf,
    ) -> None:
        from distributed import as_completed

        self._client, self._task, self._patience, self._longest = client, pack(task), patience, longest
        self.reads_ahead = is_pipelined(task)
        self.workers: Mapping[str, int] = {}
        self._token = uuid.uuid4().hex
        self._name = f"{name}-{self._token}"
        self._in_flight: dict[Any, tuple[Future[Any], Attempt, float]] = {}
        self._n_submitted = 0
        self._completed = as_completed(loop=client.loop, with_results=True, raise_errors=False)
        self._seen_at = self._looked_at = time.monotonic()
        self._watchdog = Watchdog(client, block_seconds)
        self.refresh()

    def refresh(self) -> None:
        """Ask the scheduler for its workers."""
        self._check_client()
        try:
            threads = self._client.nthreads()
        except Exception as error:
            raise Interrupted(f"the Dask scheduler does not answer: {error}") from error
        self._counted_at = time.monotonic()
        self.workers = {address: WINDOW * n for address, n in threads.items()}
        if threads:
            self._seen_at = self._counted_at
        elif self._counted_at - self._seen_at > self._patience:
            raise Interrupted(f"no worker was there for {self._patience:.0f} s; the same command goes on")

    def _stranded(self) -> list[Result]:
        """Take back what no worker has: tasks for a worker that is gone, sent while no other was there.

        The scheduler keeps those for ever (distributed 2026.7.1), although they may go elsewhere.
        """
        old = time.monotonic() - REFRESH_SECONDS  # younger ones may still be on their way
        keys = [k for k, (_, a, sent_at) in self._in_flight.items() if a.worker not in self.workers and sent_at < old]
        if not keys or not self.workers:
            return []
        placed = {key for of_worker in self._client.processing().values() for key in of_worker}
        # "lost": it was done, and its worker died before the report was fetched.
        waiting = [k for k in keys if self._in_flight[k][0].status in ("pending", "lost")]
        stranded = [k for k in waiting if k not in placed]
        return [(self._forget(key), Worked([], 0.0)) for key in stranded]

    def _forget(self, key: Any) -> Attempt:
        future, attempt, _ = self._in_flight.pop(key)
        future.release()
        return attempt

    def submit(self, attempt: Attempt) -> None:
        """Send an attempt to its worker; Dask moves it where that one is gone, or others are idle."""
        self._n_submitted += 1
        try:
            future = self._client.submit(
                _work_on_worker,
                self._task,
                # As bytes: the scheduler, which logs its last messages, would make objects of them.
                pickle.dumps((attempt.blocks, attempt.ahead, attempt.is_gentle)),
                self._token,
                self._longest,
                key=(self._name, self._n_submitted),  # a tuple: the tasks of a pass are one group
                fifo_timeout="0 ms",  # a worker takes them in this order: what it read ahead is what comes next
                workers=[attempt.worker],
                allow_other_workers=True,
            )
        except Exception:
            self._check_client()
            raise
        self._in_flight[future.key] = (future, attempt, time.monotonic())
        self._completed.add(future)

    def collect(self, timeout: float) -> list[Result]:
        """Return what finished, and release it at once: results kept on workers die with them."""
        waiting = self._completed.thread_condition
        with waiting:
            if not self._completed.has_ready():
                waiting.wait(timeout)
        results: list[Result] = []
        if time.monotonic() - self._counted_at > REFRESH_SECONDS:
            self.refresh()
        if time.monotonic() - self._looked_at > REFRESH_SECONDS:
            self._looked_at = time.monotonic()
            results += self._stranded()
            self._watchdog.look({key: sent_at for key, (_, _, sent_at) in self._in_flight.items()})
        while self._completed.has_ready():
            future, value = next(self._completed)
            if future.key in self._in_flight:
                results.append(self._settle(future, value))
        return results

    def _settle(self, future: Future[Any], value: Any) -> Result:
        status = future.status
        attempt = self._forget(future.key)
        if isinstance(value, Worked):  # here by now, even where its worker has died since: the task is lost then
            self._watchdog.note(value.worker)
            return attempt, value
        if status != "error":
            raise Interrupted(f"the Dask scheduler was lost (a task is {status}); the same command goes on")
        return attempt, _death(value[1], self._watchdog)

    def _check_client(self) -> None:
        if self._client.status not in ("running", "connecting"):
            raise Interrupted(f"the Dask client is {self._client.status}; the same command goes on")

    def stop(self) -> None:
        """Tell the workers; those that are gone need not know."""
        with suppress(Exception):
            self._client.run(_stop_on_worker, self._token, on_error="ignore")

    def close(self, error: BaseException | None = None) -> None:
        """Release the futures, so that the scheduler forgets what has not started."""
        for future, *_ in self._in_flight.values():
            with suppress(Exception):
                future.release()
        self._in_flight.clear()
        is_urgent = error is not None and not isinstance(error, Exception)
        if self.reads_ahead and not is_urgent and self._client.status == "running":
            with suppress(Exception):
                self._client.run(_forget_on_worker, self._token, on_error="ignore")


def _death(error: BaseException, watchdog: Watchdog) -> Death:
    """Describe a future that ended in an error: ``work_through`` itself never raises an Exception."""
    from distributed import KilledWorker

    if not isinstance(error, KilledWorker):
        return Death(describe(error), is_killed=False)
    worker = str(error.last_worker.address)
    return Death(Failure(watchdog.why_ended(worker) or _DEATH, "", worker), is_killed=True)
