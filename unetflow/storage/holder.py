"""Who holds a lock: a process, whether it lives, and what another one is told."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from unetflow.errors import InputError

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

    @classmethod
    def from_json(cls, content: str | bytes) -> Holder | None:
        """Read what `to_json` wrote; None for anything else."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def to_json(self) -> str:
        """Write the record as text."""
        return json.dumps(asdict(self))

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


def is_stale(found: Holder | None, age: float) -> bool:
    """Say whether a lock may be taken over: its holder is dead, or a stranger silent for a minute.

    Parameters
    ----------
    found : Holder, optional
        None where the record cannot be read.
    age : float
        Seconds since the lock was last touched.
    """
    if found is not None and found.is_neighbour():
        return not found.is_alive()
    return age > STALE_SECONDS


def held(folder: str, found: Holder | None, age: float) -> LockedError:
    """Return the error that names holder and age of a held lock."""
    who = f"process {found.pid} on host {found.host}" if found else "a process that has just started"
    return LockedError(
        f"one run at a time writes to a folder, got '{folder}' held by {who}, last heard of "
        f"{max(0.0, age):.0f} s ago; wait for it, or end it"
    )


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
