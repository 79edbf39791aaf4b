"""A stage stops where it lost its lock.

A process that stood still for a minute (a suspended machine, a file system that did not answer) is taken
for dead by other hosts, and one of them may work in its place when it wakes. It must not write beside that one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from unetflow.errors import Interrupted

if TYPE_CHECKING:
    from unetflow.storage.lock import Lock


class WhileHeld:
    """Ask ``should_stop`` as long as a lock is held.

    Parameters
    ----------
    lock : Lock
    place : str
        The folder or URL that it locks, for the message.
    should_stop : callable, optional

    Raises
    ------
    Interrupted
        From each call, once another process holds the lock.
    """

    def __init__(self, lock: Lock, place: str, should_stop: Callable[[], bool] | None) -> None:
        self._lock, self._place, self._should_stop = lock, place, should_stop

    @property
    def reason(self) -> str | None:
        """What ``should_stop`` says of itself."""
        return getattr(self._should_stop, "reason", None)

    def __call__(self) -> bool:
        """Say whether to stop."""
        if self._lock.is_lost:
            raise Interrupted(
                f"this process stood still for so long that another one took '{self._place}' over; once that has "
                "ended, the same command goes on"
            )
        return self._should_stop is not None and self._should_stop()
