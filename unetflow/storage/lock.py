"""The lock of a folder: one run at a time writes there.

The lock is a file that names its holder, made by a hard link (which fails where it exists; O_EXCL where
a file system has no links), and touched every ten seconds. It
is taken over at once where its holder is dead (the same host can tell), and after a minute
without a touch where the holder is on another host. Take-overs are serialised by flock on a
second file, which the operating system drops when a process dies; where a file system knows no
flock, O_EXCL alone decides. `remote_lock` does the same with objects behind a URL.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from unetflow.errors import InputError
from unetflow.failpoints import fail_point
from unetflow.storage import store as stores
from unetflow.storage.holder import Holder, LockedError, held, is_stale
from unetflow.storage.remote_lock import LockObject

__all__ = ["FILE_NAME", "GUARD_NAME", "Holder", "Lock", "LockedError", "acquire_lock"]

FILE_NAME = "lock"
GUARD_NAME = "lock.guard"
HEARTBEAT_SECONDS = 10.0


class LockRecord(Protocol):
    """Where a lock is recorded: a file or an object."""

    def take(self) -> None:
        """Write the record, after the removal of one that is stale, or raise LockedError."""
        ...

    def refuse_living(self) -> None:
        """Raise LockedError where a living process holds the lock; take nothing."""
        ...

    def is_ours(self) -> bool:
        """Say whether the record is still what `take` wrote."""
        ...

    def touch(self) -> None:
        """Show that the holder lives."""
        ...

    def remove(self) -> None:
        """Take the record away."""
        ...


class Lock:
    """A held lock, with the thread that keeps it fresh.

    Attributes
    ----------
    is_lost : bool
        Whether another process took the lock over, which happens only to one that stood still
        for a minute or whose disk was away.
    """

    def __init__(self, record: LockRecord) -> None:
        self.is_lost = False
        self._record = record
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock heartbeat", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lock up; only its own."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # a store that is away: the lock goes stale by itself
            if self._record.is_ours():
                self._record.remove()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # a disk that is away for a moment
                if not self._record.is_ours():
                    self.is_lost = True
                    return
                self._record.touch()


@contextlib.contextmanager
def acquire_lock(folder: str | os.PathLike[str]) -> Iterator[Lock]:
    """Hold the lock of a folder or URL; a folder is made if it does not exist.

    Raises
    ------
    LockedError
        If a living process holds it; the message names host, process and age of its last touch.
    """
    place = stores.normalise(folder)
    record = _record(place)
    try:
        record.take()
    except OSError as cause:
        raise InputError(
            f"a run needs a folder that it may write to, got '{place}' ({cause}); name another, or mend it"
        ) from cause
    lock = Lock(record)
    try:
        yield lock
    finally:
        lock.release()


def refuse_held(folder: str | os.PathLike[str]) -> None:
    """Refuse where a living process holds the lock of a folder or URL; nothing is taken or made.

    Raises
    ------
    LockedError
        As `acquire_lock` would.
    """
    _record(stores.normalise(folder)).refuse_living()


def _record(place: str) -> LockRecord:
    holder = Holder.this_process()
    return LockObject(place, holder) if stores.is_url(place) else LockFile(Path(place), holder)


class LockFile:
    """A lock recorded in a local or shared folder."""

    def __init__(self, folder: Path, holder: Holder) -> None:
        self._folder, self._path, self._holder = folder, folder / FILE_NAME, holder

    def take(self) -> None:
        """Make the lock file, after the removal of one that is stale."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with _guard(self._folder) as now:
            with contextlib.suppress(FileNotFoundError):
                self._refuse_living(now)
                self._path.unlink()
            fail_point("before-lock")
            self._make()

    def refuse_living(self) -> None:
        """Refuse where the file names a living holder."""
        if self._path.exists():
            with _guard(self._folder) as now, contextlib.suppress(FileNotFoundError):
                self._refuse_living(now)

    def _refuse_living(self, now: float) -> None:
        age = now - self._path.stat().st_mtime
        found = _read(self._path)
        if not is_stale(found, age):
            raise held(str(self._folder), found, age)

    def is_ours(self) -> bool:
        """Say whether the file names this process."""
        return _read(self._path) == self._holder

    def touch(self) -> None:
        """Set the file's time."""
        os.utime(self._path)

    def remove(self) -> None:
        """Remove the file."""
        fail_point("before-unlock")
        self._path.unlink(missing_ok=True)

    def _make(self) -> None:
        """Make the file with its content in one step, so that whoever finds it can tell whose it is."""
        temporary = self._folder / f".{FILE_NAME}.{os.getpid()}.tmp"
        try:
            _write(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), self._holder)
            fail_point("half-lock")
            try:
                os.link(temporary, self._path)
            except FileExistsError:
                raise
            except OSError:  # a file system without hard links
                _write(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), self._holder)
        except FileExistsError:
            raise held(str(self._folder), _read(self._path), 0.0) from None
        finally:
            temporary.unlink(missing_ok=True)
        fail_point("after-lock")


def _write(descriptor: int, holder: Holder) -> None:
    with open(descriptor, "w") as file:
        file.write(holder.to_json())
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> Holder | None:
    try:
        return Holder.from_json(path.read_text())
    except (FileNotFoundError, UnicodeDecodeError):
        return None  # just being written, or none


@contextlib.contextmanager
def _guard(folder: Path) -> Iterator[float]:
    """Let one process at a time look at the lock; yields the time by the clock of the file system."""
    import fcntl

    with open(folder / GUARD_NAME, "w") as file:
        with contextlib.suppress(OSError):  # no flock on this file system
            fcntl.flock(file, fcntl.LOCK_EX)
        os.utime(file.fileno())
        yield os.fstat(file.fileno()).st_mtime
