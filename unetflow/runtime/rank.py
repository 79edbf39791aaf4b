"""One rank, on its worker: how it meets the others, tells events, sees a stop, and shows that it lives."""

from __future__ import annotations

import gc
import socket
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from unetflow.runtime.environment import threads_of_a_task
from unetflow.runtime.outcomes import unpack

Event = dict[str, Any]

BEAT_SECONDS = 0.5  # from one sign of life to the next

_asked_to_stop: set[str] = set()  # on a worker: calls that should save and return
_listeners: dict[str, socket.socket] = {}  # on a worker: ports kept for rank 0 of a call


@dataclass(frozen=True, slots=True)
class Rank:
    """What a function that runs on several workers knows of its place among them.

    Parameters
    ----------
    number, world : int
        Its number, and how many there are.
    emit : callable
        ``emit(dict)`` tells the driver an event.
    should_stop : callable
        Whether to save a checkpoint and return; it may be asked at every step.
    beat : callable
        ``beat()`` shows that the rank gets on; to be called at every step.
    wait : callable
        ``wait(True)`` before waiting for other ranks, ``wait(False)`` after.
    host : str
        The address at which this worker is reached.
    meeting : tuple of (str, int), optional
        Host and port of rank 0; absent for a single rank.
    listener : socket, optional
        Rank 0's: it listens on that port.
    device : int, optional
        Which of the accelerators that this worker sees; absent: none.
    threads : int, optional
        Threads to compute with; absent: as many as there are.
    """

    number: int = 0
    world: int = 1
    emit: Callable[[Event], None] = lambda event: None
    should_stop: Callable[[], bool] = lambda: False
    beat: Callable[[], None] = lambda: None
    wait: Callable[[bool], None] = lambda is_waiting: None
    host: str = ""
    meeting: tuple[str, int] | None = None
    listener: socket.socket | None = None
    device: int | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a rank is to run; picklable.

    Parameters
    ----------
    worker : str
        Address of the Dask worker.
    number, world : int
    device, threads : int, optional
        As in `Rank`.
    """

    worker: str
    number: int
    world: int
    device: int | None
    threads: int


@dataclass(frozen=True, slots=True)
class Place:
    """What a worker says of itself: its host, its threads, names of the accelerators that it sees."""

    host: str
    threads: int
    accelerators: tuple[str, ...]


def survey_worker(accelerators: bytes | None) -> Place:
    """Say what this worker has to compute with."""
    found = unpack(accelerators)() if accelerators else ()
    return Place(_own_host(), threads_of_a_task(), tuple(found))


def open_meeting(topic: str) -> tuple[str, int]:
    """Take a free port on this worker's own address, and keep it for rank 0."""
    host = _own_host()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    _listeners[topic] = socket.create_server((host, 0), family=family)
    return host, int(_listeners[topic].getsockname()[1])


def ask_to_stop(topic: str) -> None:
    """Have `Rank.should_stop` be true on this worker."""
    _asked_to_stop.add(topic)


def run_rank(call: bytes, topic: str, seat: Seat, meeting: tuple[str, int] | None) -> Event:
    """Call the function, with signs of life beside it; return its result and the number of its events."""
    from distributed import get_worker

    worker = get_worker()
    pulse = _Pulse(lambda event: worker.log_event(topic, {"rank": seat.number, **event}))
    listener = _listeners.pop(topic, None)
    rank = Rank(
        number=seat.number,
        world=seat.world,
        emit=pulse.emit,
        should_stop=lambda: topic in _asked_to_stop,
        beat=pulse.beat,
        wait=pulse.wait,
        host=_own_host(),
        meeting=meeting,
        listener=listener,
        device=seat.device,
        threads=seat.threads,
    )
    try:
        with pulse.shown():
            fn, kwargs = unpack(call)
            result = fn(rank, **kwargs)
    except BaseException as error:
        _let_go(error)
        raise
    finally:
        _asked_to_stop.discard(topic)
        if listener is not None:
            listener.close()
    return {"result": result, "n_events": pulse.n_events}


def _let_go(error: BaseException | None) -> None:
    """Drop what the function held: Dask keeps the exception, and that would keep connections and memory."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()


@dataclass
class _Pulse:
    """Counts what a rank does, and shows it from a thread of its own."""

    tell: Callable[[Event], None]
    n_events: int = 0
    n_beats: int = 0
    is_waiting: bool = False
    _is_over: threading.Event = field(default_factory=threading.Event)

    def emit(self, event: Event) -> None:
        self.n_events += 1
        self.tell({"event": event})

    def beat(self) -> None:
        self.n_beats += 1

    def wait(self, is_waiting: bool) -> None:
        self.is_waiting = is_waiting

    @contextmanager
    def shown(self) -> Iterator[None]:
        thread = threading.Thread(target=self._show, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()

    def _show(self) -> None:
        while True:
            self.tell({"beats": self.n_beats, "is_waiting": self.is_waiting})
            if self._is_over.wait(BEAT_SECONDS):
                return


def _own_host() -> str:
    """Return the address at which other workers reach this one."""
    from distributed import get_worker

    return str(urlsplit(get_worker().address).hostname)

