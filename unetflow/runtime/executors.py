"""Where runs of blocks are worked on: in this process, or on the workers of a Dask client.

A *run* is a short sequence of neighbouring blocks that travels as one Dask task. Only keys go
out and only small reports come back. What a task raises comes back as a :class:`Failure`,
never as an exception, so that nothing depends on whether an exception can be pickled.
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
import socket
import time
import traceback
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from unetflow.errors import InputError, Interrupted, StageError
from unetflow.geometry import Block

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)

Report = dict[str, Any]
Task = Callable[[Block], Report]

# A full disk or a lost permission meets every block: trying again only takes longer.
GLOBAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS})
# Tasks in flight for each worker thread: enough that none waits, few enough to forget at a stop.
WINDOW = 3


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a block failed: one line, the traceback, and who stopped the pass, if anything did.

    ``verdict`` is "retry", "input" (the user must change something) or "stage" (no block can
    succeed); ``worker`` is an address, or ``host:pid``.
    """

    error: str
    traceback: str
    worker: str
    verdict: str = "retry"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a block that was started: a report or a failure."""

    number: int
    report: Report | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """A run of blocks to be worked on.

    Parameters
    ----------
    blocks : tuple of Block
        One block, or a run of neighbours on the first try.
    n_tried : int
        Failures that count so far; only a single block collects them.
    is_suspect : bool
        Whether a worker died of these blocks, or of others that it held beside them.
    avoid : str
        Address of the worker on which they failed.
    ready_at : float
        Monotonic time before which they are not tried again.
    """

    blocks: tuple[Block, ...]
    n_tried: int = 0
    is_suspect: bool = False
    avoid: str = ""
    ready_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Death:
    """The worker died, or could not even start on the attempt."""

    failure: Failure
    is_killed: bool


Result = tuple[Attempt, "list[Outcome] | Death"]


def work_through(task: Task, blocks: Sequence[Block], is_stopped: Callable[[], bool]) -> list[Outcome]:
    """Do the blocks of a run one after the other; after a stop, leave out the rest."""
    outcomes = []
    for block in blocks:
        if is_stopped():
            break
        try:
            report = task(block)
            if not isinstance(report, dict):
                raise TypeError(f"a task must return a dict, got {type(report).__name__}")
            outcomes.append(Outcome(block.number, report=report))
        except Exception as error:
            outcomes.append(Outcome(block.number, failure=describe(error)))
    return outcomes


def describe(error: BaseException) -> Failure:
    """Put an exception into words, and judge whether another try can help."""
    verdict, text = "retry", f"{type(error).__name__}: {error}"
    cause: BaseException | None = error
    while cause is not None and verdict == "retry":
        if isinstance(cause, InputError | StageError):
            verdict, text = ("input" if isinstance(cause, InputError) else "stage"), str(cause)
        elif isinstance(cause, OSError) and cause.errno in GLOBAL_ERRNOS:
            verdict, text = "stage", f"{text}{_room_left(cause)}"
        cause = cause.__cause__
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return Failure(text, "".join(lines), _whoami(), verdict)


def _room_left(error: OSError) -> str:
    """Name the bytes left where a write found the disk full."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not error.filename:
        return ""
    folder = os.path.dirname(os.path.abspath(os.fsdecode(error.filename)))
    with suppress(OSError):
        return f" ({shutil.disk_usage(folder).free} bytes are free in {folder})"
    return ""


def _whoami() -> str:
    """Name this worker by its address, or by host and process where there is none."""
    with suppress(ImportError, ValueError):
        from distributed import get_worker

        return str(get_worker().address)
    return f"{socket.gethostname()}:{os.getpid()}"


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


def pack(value: Any) -> bytes:
    """Pickle what workers run.

    Dask would pickle it too, but a worker that cannot load a message closes instead of telling
    (distributed 2026.7.1): so it travels as bytes and is loaded by :func:`unpack` in the task.
    """
    from distributed.protocol.pickle import dumps

    return bytes(dumps(value))


@lru_cache(maxsize=4)
def unpack(data: bytes) -> Any:
    """Load what :func:`pack` made, once per worker.

    Raises
    ------
    StageError
        When the code is not there.
    """
    try:
        return pickle.loads(data)
    except Exception as error:
        raise StageError(
            f"a worker cannot load its task ({type(error).__name__}: {error}); "
            "install the same environment on every host"
        ) from error


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
