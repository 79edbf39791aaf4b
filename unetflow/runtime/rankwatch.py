"""Watch over ranks that run on workers: their events, their signs of life, their ends.

A rank is lost when its worker is gone, when the function raised there, or when it is silent: it
neither works nor waits for another rank. Of ranks that were connected all but the first to fail
say that they lost another one (`unetflow.errors.RankLost`); the first is the cause.
"""

from __future__ import annotations

import queue
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unetflow.errors import InputError, Interrupted, RankLost, StageError
from unetflow.runtime.outcomes import GLOBAL_ERRNOS
from unetflow.runtime.rank import Event, Seat, ask_to_stop, open_meeting, run_rank
from unetflow.runtime.seats import list_workers, restart

if TYPE_CHECKING:
    from distributed import Client, Future


POLL = 1.0  # seconds between two looks at the workers, and two questions whether to stop
LAST_EVENTS = 10.0  # seconds to wait, after the result, for events still on their way
END_SECONDS = 10.0  # for ranks to end by themselves after one was lost
ASLEEP = 10.0  # seconds between two looks that tell that this process was stopped meanwhile
SLACK = 10  # times the longest silence so far is still no loss


@dataclass(frozen=True, slots=True)
class Loss:
    """Why the ranks must begin again: in words, and the exception where there was one."""

    why: str
    error: BaseException | None = None


class Watch:
    """One call of the function on all seats, seen from the driver."""

    def __init__(
        self, client: Client, call: bytes, seats: Sequence[Seat], silence: float, first_silence: float
    ) -> None:
        self._client, self._call, self._seats = client, call, seats
        self._topic = f"unetflow-ranks-{uuid.uuid4().hex}"
        self._messages: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._pulses = [_Heard(silence, first_silence) for _ in seats]
        self._n_told = 0
        self._futures: list[Future[Any]] = []

    def __enter__(self) -> Watch:
        self._client.subscribe_topic(self._topic, lambda message: self._messages.put(message[1]))
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(Exception):
            self._client.unsubscribe_topic(self._topic)
        for future in self._futures:
            with suppress(Exception):
                future.release()

    def follow(self, tell: Callable[[Event], None], should_stop: Callable[[], bool]) -> Any:
        """Start the ranks and pass their events on until they end.

        Returns
        -------
        object or Loss
            What rank 0 returned, or why to begin again.
        """
        loss = self._start()
        looked_at, is_stopping = time.monotonic(), False
        while loss is None and not all(future.status == "finished" for future in self._futures):
            self._drain(tell, 0.1)
            loss = self._failed()
            if loss is None and (gap := time.monotonic() - looked_at) > POLL:
                looked_at = time.monotonic()
                if gap > ASLEEP:  # this process was stopped, and perhaps the workers with it
                    for pulse in self._pulses:
                        pulse.forgive(gap)
                if not is_stopping and should_stop():
                    is_stopping = True
                    self._client.run(ask_to_stop, self._topic, workers=self._addresses(), on_error="ignore")
                loss = self._missing() or self._silent()
        self._drain(tell, 0.0)
        if loss is not None:
            return loss
        values = self._client.gather(self._futures)
        until = time.monotonic() + LAST_EVENTS
        while self._n_told < sum(value["n_events"] for value in values) and time.monotonic() < until:
            self._drain(tell, 0.1)
        return values[0]["result"]

    def end_all(self) -> set[str]:
        """End the ranks that still run; return the workers that could not be freed."""
        # Without those that will not end by themselves, the others lose their connections.
        left = restart(self._client, [self._seats[n].worker for n in self._silent_seats()])
        until = time.monotonic() + END_SECONDS
        while time.monotonic() < until and self._running():
            self._drain(lambda event: None, 0.1)
        return left | restart(self._client, [self._seats[n].worker for n in self._running()])

    def _start(self) -> Loss | None:
        """Send the ranks to their workers; rank 0's takes a port first, where there are others."""
        meeting = None
        if len(self._seats) > 1:
            first = self._client.submit(open_meeting, self._topic, workers=[self._seats[0].worker], pure=False)
            try:
                meeting = first.result(timeout=60)
            except Exception as error:
                return Loss(f"the worker {self._seats[0].worker} opens no port ({error})")
        self._futures = [
            self._client.submit(
                run_rank,
                self._call,
                self._topic,
                seat,
                meeting,
                key=f"{self._topic}-{seat.number}",
                workers=[seat.worker],
                pure=False,
            )
            for seat in self._seats
        ]
        return None

    def _addresses(self) -> list[str]:
        return [seat.worker for seat in self._seats]

    def _is_running(self, number: int) -> bool:
        return bool(self._futures) and self._futures[number].status == "pending"

    def _running(self) -> set[int]:
        """Return the ranks that did not end, on workers that are there."""
        there = set(list_workers(self._client))
        return {seat.number for seat in self._seats if seat.worker in there and self._is_running(seat.number)}

    def _failed(self) -> Loss | None:
        """Look for ranks that ended otherwise than well; what another try cannot mend is raised."""
        failed = [n for n, future in enumerate(self._futures) if future.status not in ("pending", "finished")]
        if not failed:
            return None
        if self._client.status not in ("running", "connecting"):
            raise Interrupted("the Dask scheduler was lost; the same command goes on")
        errors = {n: error for n in failed if (error := self._error_of(n)) is not None}
        for error in errors.values():
            if is_final(error):
                raise error
        causes = [n for n in failed if not isinstance(errors.get(n), RankLost)]
        if not causes and self._wait_for_cause(len(failed)):
            return self._failed()
        number = (causes or failed)[0]
        cause = errors.get(number)
        where = f"rank {number} on {self._seats[number].worker}"
        if cause is None or _is_death(cause):
            return Loss(f"{where} was lost with its worker")
        return Loss(f"{where} failed ({type(cause).__name__}: {cause})", None if isinstance(cause, RankLost) else cause)

    def _wait_for_cause(self, n_failed: int) -> bool:
        """Give the scheduler a moment to notice which worker died; say whether something new happened."""
        until = time.monotonic() + POLL
        while time.monotonic() < until:
            if sum(future.status not in ("pending", "finished") for future in self._futures) > n_failed:
                return True
            time.sleep(0.05)
        return False

    def _error_of(self, number: int) -> BaseException | None:
        future = self._futures[number]
        if future.status != "error":
            return None
        error = future.exception()
        return error if isinstance(error, BaseException) else None

    def _missing(self) -> Loss | None:
        """Look for workers that are gone: where a scheduler is not ours it may wait for them for ever."""
        there = set(list_workers(self._client))
        for seat in self._seats:
            if seat.worker not in there and self._is_running(seat.number):
                return Loss(f"rank {seat.number} on {seat.worker} was lost with its worker")
        return None

    def _silent(self) -> Loss | None:
        silent = self._silent_seats()
        if not silent:
            return None
        names = ", ".join(f"{n} on {self._seats[n].worker}" for n in sorted(silent))
        return Loss(f"rank {names} neither worked nor waited for {self._pulses[min(silent)].limit:.0f} s")

    def _silent_seats(self) -> set[int]:
        """Return the ranks that are stuck: all of them where each waits for the others."""
        running = {n for n in range(len(self._seats)) if self._is_running(n)}
        stuck = {n for n in running if self._pulses[n].is_overdue}
        return {n for n in stuck if not self._pulses[n].is_waiting} or (stuck if stuck == running else set())

    def _drain(self, tell: Callable[[Event], None], timeout: float) -> None:
        """Take the messages that are there, waiting for the first; a slow listener delays nothing else."""
        with suppress(queue.Empty):
            self._take(self._messages.get(timeout=timeout) if timeout else self._messages.get_nowait(), tell)
            until = time.monotonic() + POLL
            while time.monotonic() < until:
                self._take(self._messages.get_nowait(), tell)

    def _take(self, message: Event, tell: Callable[[Event], None]) -> None:
        if "event" in message:
            self._n_told += 1
            tell(message["event"])
        else:
            self._pulses[message["rank"]].hear(message["beats"], message["is_waiting"])


class _Heard:
    """What was heard of a rank: when it last did something, and how long it may be silent."""

    def __init__(self, silence: float, first_silence: float) -> None:
        self._silence, self._first_silence = silence, first_silence
        self._n_beats, self._longest, self._since = 0, 0.0, time.monotonic()
        self.is_waiting = False

    @property
    def limit(self) -> float:
        """Seconds of silence that are no loss yet."""
        return max(self._silence, SLACK * self._longest) if self._n_beats else self._first_silence

    @property
    def is_overdue(self) -> bool:
        """Say whether it has been silent for too long."""
        return time.monotonic() - self._since > self.limit

    def hear(self, n_beats: int, is_waiting: bool) -> None:
        """Take a sign of life."""
        self.is_waiting = is_waiting
        if n_beats != self._n_beats:
            if self._n_beats:
                self._longest = max(self._longest, time.monotonic() - self._since)
            self._n_beats, self._since = n_beats, time.monotonic()

    def forgive(self, seconds: float) -> None:
        """Leave out a time in which nobody listened."""
        self._since += seconds


def is_final(error: BaseException) -> bool:
    """Say whether another try cannot mend it."""
    if isinstance(error, InputError | StageError | Interrupted | FileNotFoundError):
        return True
    if isinstance(error, OSError) and error.errno in GLOBAL_ERRNOS:
        return True
    return not (_is_death(error) or isinstance(error, RuntimeError | OSError | MemoryError))


def _is_death(error: BaseException) -> bool:
    from distributed import KilledWorker

    return isinstance(error, KilledWorker)
