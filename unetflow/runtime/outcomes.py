"""What a block's work comes to: a report, or a failure in words, and a verdict on it.

What a task raises comes back as a :class:`Failure`, never as an exception, so that nothing
depends on whether an exception can be pickled.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import socket
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from unetflow.errors import InputError, StageError, is_away
from unetflow.geometry import Block

Report = dict[str, Any]
Task = Callable[[Block], Report]

# A full disk or a lost permission meets every block: trying again only takes longer.
GLOBAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a block failed: one line, the traceback, and who stopped the pass, if anything did.

    ``verdict`` is "retry", "memory" (try again with less at once), "away" (a store that may come back),
    "input" (the user must change something) or "stage" (no block can succeed); ``worker`` is an address,
    or ``host:pid``; ``input`` is what the task says of what it reads for the block.
    """

    error: str
    traceback: str
    worker: str
    verdict: str = "retry"
    input: dict[str, Any] | None = None


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
    is_gentle : bool
        Whether they are to be done with little memory: one at a time, one tile at a time.
    worker : str
        Address of the worker that is to do them.
    ahead : Block, optional
        What that worker will do next, and may read while it computes the last of these blocks.
    """

    blocks: tuple[Block, ...]
    n_tried: int = 0
    is_suspect: bool = False
    avoid: str = ""
    ready_at: float = 0.0
    is_gentle: bool = False
    worker: str = ""
    ahead: Block | None = None

    @property
    def is_fresh(self) -> bool:
        """Say whether nothing ever went wrong with these blocks."""
        return not (self.n_tried or self.is_suspect or self.is_gentle or self.avoid or self.ready_at)


@dataclass(frozen=True, slots=True)
class Death:
    """The worker died, or could not even start on the attempt."""

    failure: Failure
    is_killed: bool


@dataclass(frozen=True, slots=True)
class Worked:
    """What became of the blocks of an attempt that were started, how long they took, and where."""

    outcomes: list[Outcome]
    seconds: float
    worker: str = ""


Result = tuple[Attempt, Worked | Death]


def describe(error: BaseException, task: Any = None, block: Block | None = None) -> Failure:
    """Put an exception into words, and judge whether another try can help.

    A task with a method ``inspect(block)`` says what it had before it: that goes into quarantine too.
    """
    verdict, text = _judge(error)
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    seen = _inspect(task, block) if verdict == "retry" else None
    return Failure(text, "".join(lines), whoami(), verdict, seen)


def _judge(error: BaseException) -> tuple[str, str]:
    text = f"{type(error).__name__}: {error}"
    cause: BaseException | None = error
    while cause is not None:
        if is_away(cause):
            return "away", text
        if isinstance(cause, InputError | StageError):
            return ("input" if isinstance(cause, InputError) else "stage"), str(cause)
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":  # torch's own
            return "memory", text
        if isinstance(cause, OSError) and cause.errno in GLOBAL_ERRNOS:
            return "stage", f"{text}{_room_left(cause)}"
        cause = cause.__cause__
    return "retry", text


def _inspect(task: Any, block: Block | None) -> dict[str, Any] | None:
    """Ask the task about its input; what cannot be read says why."""
    look = getattr(task, "inspect", None)
    if look is None or block is None:
        return None
    try:
        return dict(look(block))
    except Exception as error:
        return {"unreadable": f"{type(error).__name__}: {error}"}


def _room_left(error: OSError) -> str:
    """Name the bytes left where a write found the disk full, and the cure."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not error.filename:
        return ""
    folder = os.path.dirname(os.path.abspath(os.fsdecode(error.filename)))
    with suppress(OSError):
        free = shutil.disk_usage(folder).free
        return f" ({free} bytes are free in {folder}; make room, then give the same command again)"
    return ""


def whoami() -> str:
    """Name this worker by its address, or by host and process where there is none."""
    with suppress(ImportError, ValueError):
        from distributed import get_worker

        return str(get_worker().address)
    return f"{socket.gethostname()}:{os.getpid()}"


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
