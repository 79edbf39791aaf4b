"""Tell how far a pass is: a bar on a terminal, a line a minute elsewhere, or nothing."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import rich.progress

logger = logging.getLogger(__name__)


class Progress(Protocol):
    """What a pass tells while it runs."""

    def start(self, name: str, total: int, done: int = 0) -> None:
        """Begin a pass of ``total`` blocks, ``done`` of which an earlier run finished."""

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more blocks as finished."""

    def retry(self) -> None:
        """Count a block that is tried again."""

    def workers(self, n: int) -> None:
        """Tell how many workers there are now."""

    def finish(self) -> None:
        """End the pass, finished or not."""


class Silent:
    """Count, and say nothing."""

    def __init__(self) -> None:
        self.name, self.total, self.done, self.n_retries, self.n_workers = "", 0, 0, 0, 0

    def start(self, name: str, total: int, done: int = 0) -> None:
        """Begin a pass."""
        self.name, self.total, self.done, self.n_retries, self.n_workers = name, total, done, 0, 0

    def advance(self, n: int = 1) -> None:
        """Count ``n`` more blocks as finished."""
        self.done += n

    def retry(self) -> None:
        """Count a block that is tried again."""
        self.n_retries += 1

    def workers(self, n: int) -> None:
        """Note the number of workers."""
        self.n_workers = n

    def finish(self) -> None:
        """End the pass."""

    @property
    def details(self) -> str:
        """Retries and workers in words, empty where there is nothing to say."""
        words = [f"{self.n_retries} retries"] if self.n_retries else []
        words += [f"{self.n_workers} workers"] if self.n_workers else []
        return ", ".join(words)


class LogLines(Silent):
    """Log a line every ``interval`` seconds and one at the end."""

    def __init__(self, interval: float = 60.0) -> None:
        super().__init__()
        self.interval = interval

    def start(self, name: str, total: int, done: int = 0) -> None:
        """Begin a pass and its clock."""
        super().start(name, total, done)
        self._first, self._began = done, time.monotonic()
        self._told = self._began

    def advance(self, n: int = 1) -> None:
        """Count, and log when the interval is over."""
        super().advance(n)
        if time.monotonic() - self._told >= self.interval:
            self._tell()

    def finish(self) -> None:
        """Log the pass's last line."""
        self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        seconds = self._told - self._began
        rate = (self.done - self._first) / seconds if seconds > 0 else 0.0
        n_left = self.total - self.done
        left = f", {_clock(n_left / rate)} left" if rate > 0 and n_left > 0 else ""
        details = f", {self.details}" if self.details else ""
        logger.info("%s: %d of %d blocks, %.3g/s%s%s", self.name, self.done, self.total, rate, left, details)


class Bar(Silent):
    """Draw one bar a pass on stderr: blocks, rate, time left, retries, workers."""

    def start(self, name: str, total: int, done: int = 0) -> None:
        """Begin a pass and draw its bar."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        super().start(name, total, done)
        self._first, self._began = done, time.monotonic()
        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[details]}"),
            console=Console(stderr=True),
        )
        self._task: rich.progress.TaskID = self._bar.add_task(name, total=total, completed=done, rate="", details="")
        self._bar.start()

    def advance(self, n: int = 1) -> None:
        """Count, and move the bar."""
        super().advance(n)
        rate = (self.done - self._first) / max(1e-3, time.monotonic() - self._began)
        self._bar.update(self._task, completed=self.done, rate=f"{rate:.3g}/s", details=self.details)

    def retry(self) -> None:
        """Count, and show it."""
        super().retry()
        self._bar.update(self._task, details=self.details)

    def workers(self, n: int) -> None:
        """Show the number of workers."""
        super().workers(n)
        self._bar.update(self._task, details=self.details)

    def finish(self) -> None:
        """Leave the bar as it stands."""
        self._bar.stop()


def make_progress(quiet: bool = False) -> Progress:
    """Return the progress that suits stderr: a bar, log lines, or silence for ``quiet``."""
    if quiet:
        return Silent()
    return Bar() if sys.stderr.isatty() else LogLines()


def _clock(seconds: float) -> str:
    """Write a duration as ``h:mm:ss``."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
