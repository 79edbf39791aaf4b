"""Run one long function on a worker: it tells events, can be stopped, and survives its worker.

The function keeps its own checkpoints. When its worker dies it is called again, on another
worker or the restarted one, and goes on from the latest of them.
"""

from __future__ import annotations

import logging
import queue
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from unetflow.errors import Interrupted, StageError
from unetflow.runtime.outcomes import pack, unpack

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)

Event = dict[str, Any]
RankFunction = Callable[..., Any]

POLL = 1.0  # seconds between two questions whether to stop
LAST_EVENTS = 10.0  # seconds to wait, after the result, for events still on their way


def run_ranks(
    fn: RankFunction,
    kwargs: dict[str, Any],
    client: Client | None = None,
    *,
    on_event: Callable[[Event], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    restarts: int = 3,
    patience: float = 600.0,
) -> Any:
    """Call ``fn(rank, world, emit, should_stop, **kwargs)`` on one worker and return its result.

    Parameters
    ----------
    fn : callable
        Importable on workers. ``emit(dict)`` tells an event; ``should_stop()`` says whether to
        save a checkpoint and return; it may be asked at every step.
    kwargs : dict
        Further arguments; small and picklable.
    client : distributed.Client, optional
        None calls ``fn`` in this process.
    on_event : callable, optional
        Called in this thread with each event, in order.
    should_stop : callable, optional
        Asked in this process; its truth travels to the worker within about a second.
    restarts : int
        How often a lost worker is made good.
    patience : float
        Seconds without any worker after which the call gives up.

    Returns
    -------
    object
        What ``fn`` returned. An exception of ``fn`` is raised here.

    Raises
    ------
    Interrupted
        When the scheduler, or every worker, is lost.
    StageError
        When the worker died more than ``restarts`` times.
    """
    tell = on_event or (lambda event: None)
    if client is None:
        return fn(0, 1, tell, should_stop or (lambda: False), **kwargs)
    for attempt in range(restarts + 1):
        with _Remote(client, fn, kwargs, patience) as remote:
            if remote.follow(tell, should_stop):
                return remote.result(tell)
        logger.warning("the worker was lost; starting again, %d of %d restarts", attempt + 1, restarts)
    raise StageError(
        f"a training worker may be lost at most {restarts} times, and was lost {restarts + 1} times; "
        "look at its memory and its log"
    )


class _Remote:
    """One call of the function on a worker, seen from the driver."""

    def __init__(self, client: Client, fn: RankFunction, kwargs: dict[str, Any], patience: float) -> None:
        from distributed import Event as StopEvent

        self._client, self._patience = client, patience
        self._topic = f"unetflow-rank-{uuid.uuid4().hex}"
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._n_told = 0
        self._stop = StopEvent(self._topic, client=client)
        client.subscribe_topic(self._topic, lambda event: self._events.put(event[1]))
        self._future: Future[Any] = client.submit(
            _call_on_worker, pack((fn, kwargs)), self._topic, key=self._topic, pure=False
        )

    def __enter__(self) -> _Remote:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self._client.unsubscribe_topic(self._topic)
        with suppress(Exception):
            self._future.release()

    def follow(self, tell: Callable[[Event], None], should_stop: Callable[[], bool] | None) -> bool:
        """Pass events on until the call ends; false if its worker was lost."""
        from distributed import KilledWorker

        is_stopping, looked_at, seen_at = False, 0.0, time.monotonic()
        while not self._future.done():
            self._drain(tell, 0.2)
            if time.monotonic() - looked_at < POLL:
                continue
            looked_at = time.monotonic()
            if should_stop is not None and not is_stopping and should_stop():
                is_stopping = True
                self._stop.set()
            if self._count_workers():
                seen_at = looked_at
            elif looked_at - seen_at > self._patience:
                raise Interrupted(f"no worker was there for {self._patience:.0f} s; the same command goes on")
        if self._future.status == "error":
            return not isinstance(self._future.exception(), KilledWorker)
        return True

    def result(self, tell: Callable[[Event], None]) -> Any:
        """Pass the last events on, and return the function's result or raise what it raised."""
        if self._future.status not in ("finished", "error"):
            raise Interrupted("the Dask scheduler was lost; the same command goes on")
        value = self._future.result()
        until = time.monotonic() + LAST_EVENTS
        while self._n_told < value["n_events"] and time.monotonic() < until:
            self._drain(tell, 0.2)
        return value["result"]

    def _drain(self, tell: Callable[[Event], None], timeout: float) -> None:
        with suppress(queue.Empty):
            while True:
                tell(self._events.get(timeout=timeout))
                self._n_told += 1
                timeout = 0.0

    def _count_workers(self) -> int:
        try:
            return len(self._client.nthreads())
        except Exception as error:
            raise Interrupted(f"the Dask scheduler does not answer: {error}") from error


def _call_on_worker(call: bytes, topic: str) -> dict[str, Any]:
    """Give the function its means to tell events and to see a stop, and call it."""
    from distributed import Event as StopEvent
    from distributed import get_worker

    fn, kwargs = unpack(call)
    worker = get_worker()
    stop = StopEvent(topic)
    asked_at, answer, n_events = 0.0, False, 0

    def should_stop() -> bool:
        nonlocal asked_at, answer
        if not answer and time.monotonic() - asked_at >= POLL:
            asked_at, answer = time.monotonic(), bool(stop.is_set())
        return answer

    def emit(event: Event) -> None:
        nonlocal n_events
        n_events += 1
        worker.log_event(topic, event)

    result = fn(0, 1, emit, should_stop, **kwargs)
    return {"result": result, "n_events": n_events}
