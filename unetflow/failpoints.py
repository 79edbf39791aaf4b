"""Named lines at which a process kills itself: how tests prove that a kill there loses nothing.

``UNETFLOW_FAILPOINT=name`` kills with SIGKILL at the first pass of the line, ``name:3`` at the third,
``name:3:FILE`` only where FILE is not there yet, which is then made: so that one process of many dies,
and dies once. Unset, which is always but in tests, a fail-point compares a variable with None.
"""

from __future__ import annotations

import os
import signal

VARIABLE = "UNETFLOW_FAILPOINT"


class _Wish:
    """Which line kills, and at which pass."""

    def __init__(self, text: str) -> None:
        self.name, _, rest = text.partition(":")
        number, _, self.file = rest.partition(":")
        self.n_left = int(number or 1)

    def come_by(self) -> None:
        self.n_left -= 1
        if self.n_left == 0 and self._is_first():
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_first(self) -> bool:
        if not self.file:
            return True
        try:
            os.close(os.open(self.file, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


_wish: _Wish | None = None


def arm(text: str) -> None:
    """Let a line kill from now on, as the variable says it; an empty text lets none."""
    global _wish
    _wish = _Wish(text) if text else None


def fail_point(name: str) -> None:
    """Die here if that is wished."""
    if _wish is not None and _wish.name == name:
        _wish.come_by()


arm(os.environ.get(VARIABLE, ""))
