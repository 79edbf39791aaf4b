"""The books of a pass: which block goes out next, and what follows from what comes back."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from unetflow.errors import BlockError, InputError, Interrupted, StageError
from unetflow.geometry import Block
from unetflow.runtime.executors import Executor
from unetflow.runtime.outcomes import Attempt, Death, Failure, Outcome, Report
from unetflow.runtime.progress import Progress

logger = logging.getLogger(__name__)

# Before this many blocks failed, a high share of failures is no evidence.
MIN_FAILED = 20
FIRST_DELAY, MAX_DELAY = 0.1, 5.0  # seconds before a failed block is tried again


class Blocks(Protocol):
    """A sized iterable of blocks: a :class:`~unetflow.geometry.BlockGrid` or a sequence."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Block]: ...


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a finished pass did.

    Parameters
    ----------
    n_done : int
        Blocks done by this run.
    n_skipped : int
        Blocks that were in ``done``.
    n_retries : int
        How often a block was sent out again.
    quarantined : tuple of int
        Numbers of the blocks that failed for good, in order.
    seconds : float
        Wall time.
    """

    n_done: int
    n_skipped: int
    n_retries: int
    quarantined: tuple[int, ...]
    seconds: float


class Clock:
    """Says whether, and why, no new block may start."""

    def __init__(self, should_stop: Callable[[], bool] | None, deadline: float | None) -> None:
        self._should_stop, self._deadline = should_stop, deadline

    def reason(self) -> str:
        """Return what stops the pass, or an empty string."""
        if self._should_stop is not None and self._should_stop():
            return str(getattr(self._should_stop, "reason", None) or "request")
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "deadline"
        return ""

    def is_over(self) -> bool:
        """Say whether no new block may start."""
        return bool(self.reason())


class Pass:
    """The books of one pass: what is fresh, in flight, to be tried again, and settled."""

    max_failed_share = 0.5

    def __init__(
        self,
        executor: Executor,
        blocks: Blocks,
        done: Collection[int],
        record: Callable[[int, Report], None],
        quarantine: Callable[[int, dict[str, Any]], None] | None,
        name: str,
        retries: int,
        progress: Progress,
    ) -> None:
        self.executor, self.name, self.retries, self.progress = executor, name, retries, progress
        self.record, self.quarantine = record, quarantine
        self.total = len(blocks)
        self.n_done = self.n_skipped = self.n_retries = 0
        self.quarantined: list[int] = []
        self.again: deque[Attempt] = deque()
        self.in_flight = self.suspects_in_flight = 0
        self.n_before = min(len(done), self.total)
        self.fresh = self._not_done(iter(blocks), done)

    def _not_done(self, blocks: Iterator[Block], done: Collection[int]) -> Iterator[Block]:
        for block in blocks:
            if block.number in done:
                self.n_skipped += 1
            else:
                yield block

    def run(self, run_length: int, clock: Clock) -> PassResult:
        """Send, collect and settle until all blocks are settled or a stop drained the rest."""
        began = time.monotonic()
        self.progress.start(self.name, self.total, self.n_before)
        reason = ""
        while True:
            if not reason:
                reason = clock.reason()
                if reason and self.in_flight:
                    logger.warning("%s: stopping (%s); running blocks finish first", self.name, reason)
                    self.executor.stop()
            if not reason:
                self._fill(run_length)
            if not self.in_flight and (reason or not self.again):
                break
            self._collect(is_stopping=bool(reason))
        self._check_complete(reason)
        return PassResult(
            n_done=self.n_done,
            n_skipped=self.n_skipped,
            n_retries=self.n_retries,
            quarantined=tuple(sorted(self.quarantined)),
            seconds=time.monotonic() - began,
        )

    def _check_complete(self, reason: str) -> None:
        """Compare planned with settled blocks: a pass that lost one must not look finished."""
        left_out = next(self.fresh, None)  # also counts the done ones at the end
        settled = self.n_done + self.n_skipped + len(self.quarantined)
        if left_out is not None or settled != self.total:
            raise Interrupted(
                f"{self.name}: stopped ({reason or 'blocks were lost'}) after "
                f"{self.n_done + self.n_skipped} of {self.total} blocks; the same command goes on"
            )

    def _fill(self, run_length: int) -> None:
        """Send attempts while there is room.

        A suspect, whose worker died, is sent only when some worker has nothing to do, and
        nothing else is sent while one is out: so no innocent block dies beside it.
        """
        while (attempt := self._next(run_length)) is not None:
            self.executor.submit(attempt)
            self.in_flight += 1
            self.suspects_in_flight += attempt.is_suspect

    def _next(self, run_length: int) -> Attempt | None:
        now = time.monotonic()
        suspect = next((a for a in self.again if a.is_suspect), None)
        if suspect or self.suspects_in_flight:
            self.executor.refresh()
            if suspect is None or suspect.ready_at > now or self.in_flight >= self.executor.n_workers:
                return None
            self.again.remove(suspect)
            return suspect
        if self.in_flight >= self.executor.window:
            return None
        if self.again and self.again[0].ready_at <= now:
            return self.again.popleft()
        run: list[Block] = []
        while len(run) < run_length and (block := next(self.fresh, None)) is not None:
            run.append(block)
        return Attempt(tuple(run)) if run else None

    def _collect(self, is_stopping: bool) -> None:
        for attempt, result in self.executor.collect(self._patience()):
            self.in_flight -= 1
            self.suspects_in_flight -= attempt.is_suspect
            if isinstance(result, Death):
                self._settle_death(attempt, result)
            else:
                self._settle(attempt, result, is_stopping)
        self.progress.workers(self.executor.n_workers)

    def _patience(self) -> float:
        """Seconds to wait for a result before looking again for something to send."""
        next_at = min((a.ready_at for a in self.again), default=0.0)
        wait = next_at - time.monotonic()
        return min(wait, 0.5) if wait > 0 else 0.25

    def _settle(self, attempt: Attempt, outcomes: list[Outcome], is_stopping: bool) -> None:
        started = {o.number for o in outcomes}
        for block in attempt.blocks:
            if block.number not in started and not is_stopping:
                self._send_again(replace(attempt, blocks=(block,)))
        by_number = {b.number: b for b in attempt.blocks}
        for outcome in outcomes:
            if outcome.report is not None:
                self._commit(outcome.number, outcome.report)
            elif outcome.failure is not None:
                self._fail(attempt, by_number[outcome.number], outcome.failure)

    def _commit(self, number: int, report: Report) -> None:
        try:
            self.record(number, report)
        except OSError as error:
            raise StageError(f"{self.name}: could not record block {number}: {error}") from error
        self.n_done += 1
        self.progress.advance()

    def _settle_death(self, attempt: Attempt, death: Death) -> None:
        """Split a run; count a death only against a block that was alone on its worker."""
        is_counted = len(attempt.blocks) == 1 and (attempt.is_suspect or not death.is_killed)
        if is_counted:
            self._fail(attempt, attempt.blocks[0], death.failure)
            return
        logger.warning("%s: %s lost; its blocks are tried one by one", self.name, death.failure.worker)
        for block in attempt.blocks:
            self._send_again(Attempt((block,), attempt.n_tried, is_suspect=death.is_killed))

    def _fail(self, attempt: Attempt, block: Block, failure: Failure) -> None:
        """Judge a failure of one block: stop the pass, try again, or quarantine."""
        if failure.verdict == "input":
            raise InputError(failure.error)
        if failure.verdict == "stage":
            raise StageError(f"{self.name}, block {block.number} ({block.inner}): {failure.error}")
        n_tried = attempt.n_tried + (len(attempt.blocks) == 1)
        logger.warning("%s, block %d, on %s: %s", self.name, block.number, failure.worker, failure.error)
        if n_tried > self.retries:
            self._give_up(block, failure)
            return
        delay = min(MAX_DELAY, FIRST_DELAY * 4 ** (n_tried - 1)) if n_tried else 0.0
        self._send_again(Attempt((block,), n_tried, attempt.is_suspect, failure.worker, time.monotonic() + delay))

    def _send_again(self, attempt: Attempt) -> None:
        self.again.append(attempt)
        self.n_retries += 1
        self.progress.retry()

    def _give_up(self, block: Block, failure: Failure) -> None:
        if self.quarantine is None:
            stage, _, pass_name = self.name.rpartition("/")
            raise BlockError(stage or "unetflow", pass_name, block.number, failure.error)
        error = {"error": failure.error, "traceback": failure.traceback, "worker": failure.worker}
        self.quarantine(block.number, error)
        self.quarantined.append(block.number)
        self.progress.advance()
        n_failed, n_settled = len(self.quarantined), len(self.quarantined) + self.n_done
        if n_failed > max(MIN_FAILED, self.max_failed_share * n_settled):
            raise StageError(
                f"{self.name}: at most {self.max_failed_share:.0%} of the blocks may fail, {n_failed} of "
                f"{n_settled} did; the last reason was: {failure.error}"
            )
