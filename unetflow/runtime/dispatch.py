"""What goes out next, and to whom: suspects alone, failed blocks elsewhere, else a run of the worker's lane."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import replace

from unetflow.geometry import Block
from unetflow.runtime.executors import Executor
from unetflow.runtime.lanes import Lanes
from unetflow.runtime.outcomes import Attempt, Result, Worked
from unetflow.runtime.pace import Pace

MAX_AGAIN = 1000  # blocks to be tried again, beyond which no new one is sent


class Dispatch:
    """The attempts of a pass, from being due to coming back.

    Parameters
    ----------
    executor : Executor
    lanes : Lanes
        Blocks that were never sent.
    pace : Pace
        How many of them travel together.
    n_left : int
        How many they are, about.
    """

    def __init__(self, executor: Executor, lanes: Lanes, pace: Pace, n_left: int) -> None:
        self.executor, self.lanes, self.pace, self.n_left = executor, lanes, pace, n_left
        self.again: deque[Attempt] = deque()
        self.load: Counter[str] = Counter()  # attempts in flight, by worker
        self.in_flight = self.suspects_in_flight = 0
        self.hold_until = 0.0  # monotonic time before which nothing is sent

    def is_over(self) -> bool:
        """Say whether nothing is in flight and nothing is left to send."""
        return not self.in_flight and not self.again and self.lanes.is_empty()

    def send(self) -> None:
        """Send attempts while there is room.

        A suspect, whose worker died, is sent only to a worker that has nothing to do, and
        nothing else is sent while one is out: so no innocent block dies beside it.
        """
        self.lanes.keep(self.executor.workers)
        while (attempt := self._next()) is not None:
            self.executor.submit(attempt)
            self.in_flight += 1
            self.load[attempt.worker] += 1
            self.suspects_in_flight += attempt.is_suspect

    def collect(self) -> list[Result]:
        """Return what came back, waiting a moment for it."""
        results = self.executor.collect(self._patience())
        for attempt, result in results:
            self.in_flight -= 1
            self.load[attempt.worker] -= 1
            if not self.load[attempt.worker]:
                del self.load[attempt.worker]
            self.suspects_in_flight -= attempt.is_suspect
            if isinstance(result, Worked):
                self.pace.note(result.seconds, len(result.outcomes))
        return results

    def take_back(self, attempt: Attempt, blocks: tuple[Block, ...]) -> None:
        """Put blocks back that were not started: their time was over, or a stop came."""
        if attempt.is_fresh:
            self.lanes.give_back(attempt.worker, blocks)
            self.n_left += len(blocks)
        else:
            self.again.append(replace(attempt, blocks=blocks))

    def _next(self) -> Attempt | None:
        now = time.monotonic()
        if now < self.hold_until:
            return None
        suspect = next((a for a in self.again if a.is_suspect), None)
        if suspect or self.suspects_in_flight:
            return None if suspect is None or suspect.ready_at > now else self._alone(suspect)
        worker = self._emptiest()
        if worker is None:
            return None
        if self.again and self.again[0].ready_at <= now:
            attempt = self.again.popleft()
            return replace(attempt, worker=self._emptiest(attempt.avoid) or worker)
        return self._fresh(worker) if len(self.again) < MAX_AGAIN else None

    def _alone(self, suspect: Attempt) -> Attempt | None:
        """Give a suspect to a worker that has nothing to do, if there is one."""
        self.executor.refresh()
        if self.in_flight >= len(self.executor.workers):
            return None
        for worker in (self._emptiest(suspect.avoid), self._emptiest()):
            if worker is not None and not self.load[worker]:
                self.again.remove(suspect)
                return replace(suspect, worker=worker)
        return None

    def _emptiest(self, avoid: str = "") -> str | None:
        """Return the worker with the smallest share of its room taken, or None where all are full."""
        rooms = self.executor.workers.items()
        shares = ((self.load[w] / room, w) for w, room in rooms if self.load[w] < room and w != avoid)
        return min(shares, default=(0.0, None))[1]

    def _fresh(self, worker: str) -> Attempt | None:
        """Take a run of a worker's lane."""
        n_workers = len(self.executor.workers)
        length = min(self.pace.run_length(self.n_left, n_workers), self.executor.longest_run)
        run = self.lanes.take(worker, length, n_workers)
        self.n_left -= len(run)
        ahead = self.lanes.peek(worker) if self.executor.reads_ahead else None
        return Attempt(tuple(run), worker=worker, ahead=ahead) if run else None

    def _patience(self) -> float:
        """Seconds to wait for a result before looking again for something to send."""
        next_at = min((a.ready_at for a in self.again), default=0.0)
        wait = next_at - time.monotonic()
        return min(wait, 0.5) if wait > 0 else 0.25
