"""Ends workers that hang: dask has no time limit for a task, and a paused worker never wakes by itself.

A worker hangs when it has had work for long and finishes none: a file system that does not answer, a
deadlock in compiled code. A worker is paused (distributed#5999) while memory that is not Dask's own stays
above a share of its limit; clusters that we start have that turned off, others need not. Both are ended,
their nanny starts them anew, and their blocks are tried elsewhere, alone. One that cannot be ended ends the
pass, so that nobody waits for it without end.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

from unetflow.errors import Interrupted

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

PAUSED_SECONDS = 60.0
GRACE_SECONDS = 10.0  # to be gone after that
_IN_THIS_PROCESS = "inproc://"


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
        return f"the worker was ended at this block: {self._why[worker]}" if worker in self._why else ""

    def look(self, sent_at: Mapping[Any, float]) -> None:
        """End the workers that hang or are paused.

        Parameters
        ----------
        sent_at : mapping
            When each task in flight was sent, in seconds of the monotonic clock.

        Raises
        ------
        Interrupted
            If such a worker cannot be ended.
        """
        now = time.monotonic()
        patience = min(self._block_seconds, PAUSED_SECONDS)
        if not any(now - at > patience for at in sent_at.values()):
            return
        with suppress(OSError, TimeoutError):  # a scheduler that is away: the executor tells
            bad: dict[str, str] = {}
            for worker, keys in self._client.processing().items():
                bad |= self._judge(worker, [sent_at[key] for key in keys if key in sent_at], now)
            records = self._client.scheduler_info(n_workers=-1)["workers"]
            bad |= self._judge_paused([w for w, record in records.items() if record.get("status") == "paused"], now)
            if bad:
                self._end(bad, {worker for worker in bad if records.get(worker, {}).get("nanny")})

    def _judge(self, worker: str, sent: list[float], now: float) -> dict[str, str]:
        if not sent:
            return {}
        ended_at = self._ended_at.get(worker)
        if ended_at is not None:
            if min(sent) < ended_at < now - GRACE_SECONDS:
                raise _survivor(worker, self._why[worker])
            return {}
        # What waits behind another task waits rightly: the clock starts with what the worker finished last.
        idle = now - max(min(sent), self._finished_at.get(worker, 0.0))
        why = f"nothing was finished for {idle:.0f} s (cluster.block_minutes): it hangs"
        return {worker: why} if idle > self._block_seconds else {}

    def _judge_paused(self, paused: list[str], now: float) -> dict[str, str]:
        """Name those paused for long: the scheduler gives them nothing, and what waits for them waits for ever."""
        self._paused_since = {worker: self._paused_since.get(worker, now) for worker in paused}
        bad = {}
        for worker, since in self._paused_since.items():
            ended_at = self._ended_at.get(worker, -math.inf)
            if since <= ended_at < now - GRACE_SECONDS:
                raise _survivor(worker, self._why[worker])
            if now - since >= PAUSED_SECONDS and ended_at < since:
                bad[worker] = "it was paused, for its memory is nearly full (use fewer --workers)"
        return bad

    def _end(self, bad: Mapping[str, str], with_nanny: set[str]) -> None:
        """End workers: by their nannies, which start others, or by themselves."""
        for worker, why in bad.items():
            if worker.startswith(_IN_THIS_PROCESS):
                raise _survivor(worker, why)
            logger.warning("worker %s is ended: %s", worker, why)
            self._ended_at[worker], self._why[worker] = time.monotonic(), why
        alone = [worker for worker in bad if worker not in with_nanny]
        if alone:  # they never answer to that, or to nothing: nobody waits for it
            Thread(target=_ask_to_end, args=(self._client, alone), name="end of workers", daemon=True).start()
        if with_nanny:
            with suppress(Exception):
                self._client.restart_workers(sorted(with_nanny), timeout=GRACE_SECONDS, raise_for_error=False)


def _survivor(worker: str, why: str) -> Interrupted:
    return Interrupted(
        f"worker {worker} cannot be ended, although {why}; end it by hand, or start its cluster anew:"
        " the same command goes on"
    )


def _ask_to_end(client: Client, workers: list[str]) -> None:
    with suppress(Exception):
        client.run(_end_process, workers=workers, on_error="ignore")


def _end_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
