"""Ends workers that hang: dask has no time limit for a task, and a paused worker never wakes by itself.

A worker hangs when it has had work for long and finishes none: a file system that does not answer, a
deadlock in compiled code. A worker is paused (distributed#5999) while memory that is not Dask's own stays
above a share of its limit; clusters that we start have that turned off, others need not. Both are ended,
their nanny starts them anew, and their blocks are tried elsewhere, alone.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

PAUSED_SECONDS = 60.0
GRACE_SECONDS = 10.0  # to end by itself, before its nanny is asked


class Watchdog:
    """Watches the workers of one pass.

    Parameters
    ----------
    client : distributed.Client
    block_seconds : float
        A worker that has work and finishes none of it for so long is ended.
    """

    def __init__(self, client: Client, block_seconds: float) -> None:
        self._client, self._block_seconds = client, block_seconds
        self._finished_at: dict[str, float] = {}
        self._paused_since: dict[str, float] = {}
        self._ended_at: dict[str, float] = {}
        self._why: dict[str, str] = {}

    def note(self, worker: str) -> None:
        """Take in that a worker finished something."""
        self._finished_at[worker] = time.monotonic()

    def why_ended(self, worker: str) -> str:
        """Return why this watchdog ended a worker, or an empty string."""
        self._ended_at.pop(worker, None)  # it is gone: what comes back at this address is another one
        return self._why.get(worker, "")

    def look(self, sent_at: Mapping[Any, float]) -> None:
        """End the workers that hang or are paused.

        Parameters
        ----------
        sent_at : mapping
            When each task in flight was sent, in seconds of the monotonic clock.
        """
        now = time.monotonic()
        patience = min(self._block_seconds, PAUSED_SECONDS)
        if not any(now - at > patience for at in sent_at.values()):
            return
        with suppress(OSError, TimeoutError):  # a scheduler that is away: the executor tells
            for worker, keys in self._client.processing().items():
                self._judge(worker, [sent_at[key] for key in keys if key in sent_at], now)
            for worker in self._paused():  # the scheduler gives it nothing: what waits for it waits for ever
                if now - self._paused_since.setdefault(worker, now) >= PAUSED_SECONDS:
                    self._end(worker, "it was paused, for its memory is nearly full (use fewer --workers)", now)

    def _judge(self, worker: str, sent: list[float], now: float) -> None:
        if worker in self._ended_at:
            if now - self._ended_at[worker] > GRACE_SECONDS:
                self._ended_at[worker] = now
                with suppress(Exception):
                    self._client.restart_workers([worker], timeout=GRACE_SECONDS, raise_for_error=False)
            return
        if not sent:
            return
        # What waits behind another task waits rightly: the clock starts with what the worker finished last.
        idle = now - max(min(sent), self._finished_at.get(worker, 0.0))
        if idle > self._block_seconds:
            self._end(worker, f"nothing was finished for {idle:.0f} s (cluster.block_minutes): it hangs", now)

    def _paused(self) -> list[str]:
        """List the paused workers, and forget when those were paused that are not any more."""
        records = self._client.scheduler_info(n_workers=-1)["workers"].items()
        paused = [w for w, record in records if record.get("status") == "paused" and w not in self._ended_at]
        self._paused_since = {w: at for w, at in self._paused_since.items() if w in paused}
        return paused

    def _end(self, worker: str, why: str, now: float) -> None:
        logger.warning("worker %s is ended: %s", worker, why)
        self._ended_at[worker], self._why[worker] = now, f"the worker was ended at this block: {why}"
        with suppress(Exception):
            self._client.run(_end_process, workers=[worker], wait=False)


def _end_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
