"""Turn signals into a flag: no new block starts, running ones finish."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from unetflow.errors import Interrupted

# SIGUSR1 is what a batch system sends ahead of the time limit (`sbatch --signal=USR1@300`).
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopFlag:
    """A flag that the first signal raises; calling it says whether it is raised.

    Attributes
    ----------
    reason : str or None
        The name of the signal, or what :meth:`set` was given.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(self) -> bool:
        """Say whether a stop was asked for."""
        return self.reason is not None

    def set(self, reason: str) -> None:
        """Ask for a stop; the first reason stays."""
        self.reason = self.reason or reason


_active: list[StopFlag] = []


def stop_requested() -> bool:
    """Say whether a signal arrived in any :func:`stop_on_signals` around this call."""
    return any(flag() for flag in _active)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Catch SIGINT, SIGTERM and SIGUSR1 in a flag; a second SIGINT stops at once.

    Yields
    ------
    StopFlag
        To be handed on as ``should_stop``.

    Raises
    ------
    Interrupted
        At the second SIGINT, wherever the program was.

    Notes
    -----
    Only a main thread can catch signals; in another thread the flag is merely never raised.
    The second SIGINT travels as KeyboardInterrupt, which no ``except Exception`` swallows.
    """
    flag = StopFlag()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if flag() and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.set(signal.Signals(number).name)

    is_main = threading.current_thread() is threading.main_thread()
    earlier = {s: signal.signal(s, on_signal) for s in STOP_SIGNALS} if is_main else {}
    _active.append(flag)
    try:
        yield flag
    except KeyboardInterrupt:
        raise Interrupted("stopped at once by a second signal; the same command goes on") from None
    finally:
        _active.remove(flag)
        for number, handler in earlier.items():
            signal.signal(number, handler)
