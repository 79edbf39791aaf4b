"""The lock of a folder: one run at a time writes there.

The lock is a file that names its holder, made with O_EXCL, and touched every ten seconds. It
is taken over at once where its holder is dead (the same host can tell), and after a minute
without a touch where the holder is on another host. Take-overs are serialised by flock on a
second file, which the operating system drops when a process dies; where a file system knows no
flock, O_EXCL alone decides.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from unetflow.errors import InputError

FILE_NAME = "lock"
GUARD_NAME = "lock.guard"
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


class LockedError(InputError):
    """Say who holds the lock of a folder."""


@dataclass(frozen=True)
class Holder:
    """A process: host, number, start (in the kernel's ticks) and the space its number is of."""

    host: str
    pid: int
    started: str
    space: str

    @classmethod
    def this_process(cls) -> Holder:
        """Describe this process."""
        return cls(socket.gethostname(), os.getpid(), _started(os.getpid()), _pid_space())

    def is_neighbour(self) -> bool:
        """Say whether this process can tell if the holder lives: same host, same boot, same container."""
        return (self.host, self.space) == (socket.gethostname(), _pid_space())

    def is_alive(self) -> bool:
        """Say whether a neighbour lives; a later process of the same number is another one."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # another user's process
        return _started(self.pid) in (self.started, "")


class Lock:
    """A held lock, with the thread that keeps it fresh.

    Attributes
    ----------
    is_lost : bool
        Whether another process took the lock over, which happens only to one that stood still
        for a minute or whose disk was away.
    """

    def __init__(self, folder: Path, holder: Holder) -> None:
        self.is_lost = False
        self._path = folder / FILE_NAME
        self._holder = holder
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lock heartbeat", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lock up; only its own."""
        self._stop.set()
        self._thread.join()
        if _read(self._path) == self._holder:
            self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # a disk that is away for a moment
                if _read(self._path) != self._holder:
                    self.is_lost = True
                    return
                os.utime(self._path)


@contextlib.contextmanager
def acquire_lock(folder: str | os.PathLike[str]) -> Iterator[Lock]:
    """Hold the lock of a local folder, which is made if it does not exist.

    Raises
    ------
    LockedError
        If a living process holds it; the message names host, process and age of its last touch.
    """
    place = Path(folder)
    holder = Holder.this_process()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _guard(place) as now:
            _take(place / FILE_NAME, holder, now)
    except OSError as cause:
        raise InputError(
            f"a run needs a folder that it may write to, got '{place}' ({cause}); name another, or mend it"
        ) from cause
    lock = Lock(place, holder)
    try:
        yield lock
    finally:
        lock.release()


def _take(path: Path, holder: Holder, now: float) -> None:
    """Make the lock file, after the removal of one that is stale."""
    with contextlib.suppress(FileNotFoundError):
        age = now - path.stat().st_mtime
        found = _read(path)
        if not _is_stale(found, age):
            raise LockedError(_held(path, found, age))
        path.unlink()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        raise LockedError(_held(path, _read(path), 0.0)) from None
    with open(descriptor, "w") as file:
        json.dump(asdict(holder), file)
        file.flush()
        os.fsync(file.fileno())


def _is_stale(found: Holder | None, age: float) -> bool:
    if found is not None and found.is_neighbour():
        return not found.is_alive()
    return age > STALE_SECONDS


def _held(path: Path, found: Holder | None, age: float) -> str:
    who = f"process {found.pid} on host {found.host}" if found else "a process that has just started"
    return (
        f"one run at a time writes to a folder, got '{path.parent}' held by {who}, last heard of "
        f"{max(0.0, age):.0f} s ago; wait for it, or end it"
    )


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
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


def _started(pid: int) -> str:
    """Return when a process started, in ticks since the boot; empty where it cannot be told."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = content.rpartition(")")[2].split()
    return fields[19] if fields[0] not in "ZX" else "ended"  # only its parent has not looked yet


def _pid_space() -> str:
    """Name the boot and the container that process numbers are of."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""
