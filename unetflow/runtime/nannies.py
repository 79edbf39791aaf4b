"""Sees that each nanny of a cluster on this machine has a worker.

A nanny brings a lost worker back, but not one that dies while the nanny itself still starts: after the worker
said that it is there, and before the cluster is told (``Nanny._on_worker_exit`` of distributed 2026.7.1). Nobody
notices then, and everybody waits for a worker that never comes.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Any

logger = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
PATIENCE = 3  # looks after which a nanny is not about to bring its worker back by itself


def watch_nannies(cluster: Any) -> None:
    """Start workers for nannies that have none, until the cluster is closed.

    Parameters
    ----------
    cluster : distributed.deploy.SpecCluster
        Its nannies are objects of this process.
    """
    from tornado.ioloop import PeriodicCallback

    n_looks: dict[Any, int] = {}

    async def look() -> None:
        for name, nanny in list(cluster.workers.items()):
            n_looks[name] = n_looks.get(name, 0) + 1 if _has_no_worker(nanny) else 0
            if n_looks[name] >= PATIENCE:
                logger.warning("a worker died while it was started; its nanny starts another")
                n_looks[name] = 0
                with suppress(Exception):  # it tells, and the next look tries again
                    await nanny.instantiate()

    def start() -> None:
        callback = PeriodicCallback(look, LOOK_SECONDS * 1000)
        cluster.periodic_callbacks["nannies"] = callback  # the cluster stops it when it is closed
        callback.start()

    cluster.loop.add_callback(start)


def _has_no_worker(nanny: Any) -> bool:
    from distributed.core import Status

    return nanny.status == Status.running and (nanny.process is None or nanny.process.status == Status.stopped)
