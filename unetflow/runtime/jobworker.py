"""What a worker in a queue's job does first: it begins no block that its job would not outlive.

Dask loads this module as a preload. Ahead of the walltime the worker takes no further block, ends
the one under way, and leaves; the queue gives another job. Dask's own ``--lifetime`` leaves in the
middle of a block, and counts anew when the worker process was restarted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import time
from typing import Any

from unetflow.runtime.signals import STOP_SIGNALS
from unetflow.runtime.walltime import LAST_START

logger = logging.getLogger(__name__)

FETCH_SECONDS = 2.0  # for the driver, to take the last block's report


async def dask_setup(worker: Any) -> None:
    """Leave signals to the nanny, and plan the end."""
    # A queue signals every process at once. The nanny obeys, and gives the block under way a few seconds.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    last, _, stagger = os.environ.get(LAST_START, "").partition(" ")
    if last:
        delay = float(last) - time.time() + random.uniform(-1, 1) * float(stagger or 0)
        worker.loop.call_later(max(0.0, delay), _leave, worker)


async def _leave(worker: Any) -> None:
    """Take no further block, end the one under way, and close; its job ends with it."""
    from distributed.core import Status

    logger.warning("the job's time is nearly over: no further block starts here")
    worker.status = Status.paused
    while worker.state.executing_count:
        await asyncio.sleep(0.2)
    await asyncio.sleep(FETCH_SECONDS)
    await worker.close_gracefully(reason="walltime")
