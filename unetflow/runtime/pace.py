"""How many blocks travel together: runs of a few seconds, and short ones where a pass begins and ends."""

from __future__ import annotations

from typing import Literal

RunLength = int | Literal["auto"]

# A task costs its driver and scheduler about a millisecond; a report comes back with its whole run.
RUN_SECONDS, LONGEST_SECONDS = 3.0, 5.0
MAX_RUN = 64
NEW_SHARE = 0.5  # how much the last run says about the next one


class Pace:
    """Seconds that a block takes, from the runs that came back.

    Parameters
    ----------
    run_length : int or "auto"
        Blocks of every run, or as many as take about three seconds.

    Examples
    --------
    >>> pace = Pace("auto")
    >>> pace.run_length(1000, 2)  # nothing is known
    1
    >>> pace.note(2.0, 10)
    >>> pace.run_length(1000, 2), pace.run_length(40, 2)
    (15, 10)
    """

    def __init__(self, run_length: RunLength) -> None:
        if run_length != "auto" and run_length < 1:
            raise ValueError(f"run_length must be 'auto' or at least 1, got {run_length}")
        self.fixed = None if run_length == "auto" else run_length
        self._seconds: float | None = None

    @property
    def longest(self) -> float | None:
        """Seconds after which a run starts no further block; None for any."""
        return LONGEST_SECONDS if self.fixed is None else None

    def note(self, seconds: float, n_blocks: int) -> None:
        """Take in what a run of blocks took."""
        if n_blocks:
            last = seconds / n_blocks
            self._seconds = last if self._seconds is None else NEW_SHARE * last + (1 - NEW_SHARE) * self._seconds

    def run_length(self, n_left: int, n_workers: int) -> int:
        """Return the blocks of the next run, where ``n_left`` were never sent."""
        if self.fixed is not None:
            return self.fixed
        if self._seconds is None:
            return 1
        n_wanted = MAX_RUN if self._seconds * MAX_RUN <= RUN_SECONDS else int(RUN_SECONDS / self._seconds)
        return max(1, min(n_wanted, n_left // (2 * max(1, n_workers))))
