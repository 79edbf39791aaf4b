"""The books of a pass: what follows from what comes back."""

from __future__ import annotations

import logging
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from unetflow.errors import BlockError, InputError, Interrupted, StageError, is_away
from unetflow.geometry import Block
from unetflow.runtime.dispatch import Dispatch
from unetflow.runtime.outcomes import Attempt, Death, Failure, Outcome, Report
from unetflow.runtime.progress import Progress

logger = logging.getLogger(__name__)

# Before this many blocks failed, a high share of failures is no evidence.
MIN_FAILED = 20
FIRST_DELAY, MAX_DELAY = 0.1, 5.0  # seconds before a failed block is tried again
FIRST_WAIT, MAX_WAIT = 1.0, 30.0  # seconds before a store that is away is tried again


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


@dataclass
class _Outage:
    """A store that does not answer: since when, at which blocks, and how long is waited."""

    since: float = 0.0
    blocks: set[int] = field(default_factory=set)
    wait: float = FIRST_WAIT
    hold_until: float = 0.0


class Pass:
    """The books of one pass: what came back, and what follows from it."""

    max_failed_share = 0.5
    away_patience = 300.0

    def __init__(
        self,
        dispatch: Dispatch,
        total: int,
        n_before: int,
        record: Callable[[int, Report], None],
        quarantine: Callable[[int, dict[str, Any]], None] | None,
        name: str,
        retries: int,
        progress: Progress,
    ) -> None:
        self.dispatch, self.name, self.retries, self.progress = dispatch, name, retries, progress
        self.record, self.quarantine = record, quarantine
        self.total, self.n_before = total, n_before
        self.n_done = self.n_retries = 0
        self.quarantined = array("q")
        self._outage = _Outage()

    def run(self, clock: Clock) -> PassResult:
        """Send, collect and settle until all blocks are settled or a stop drained the rest."""
        began = time.monotonic()
        self.progress.start(self.name, self.total, self.n_before)
        reason = ""
        while True:
            reason = reason or self._reason_to_stop(clock)
            if not reason:
                self.dispatch.send()
            if (reason and not self.dispatch.in_flight) or self.dispatch.is_over():
                break
            for attempt, result in self.dispatch.collect():
                if isinstance(result, Death):
                    self._settle_death(attempt, result)
                else:
                    self._settle(attempt, result.outcomes)
            self.progress.workers(len(self.dispatch.executor.workers))
        self._check_complete(reason)
        return PassResult(
            n_done=self.n_done,
            n_skipped=self.dispatch.lanes.n_skipped,
            n_retries=self.n_retries,
            quarantined=tuple(sorted(self.quarantined)),
            seconds=time.monotonic() - began,
        )

    def _reason_to_stop(self, clock: Clock) -> str:
        reason = clock.reason()
        if reason and self.dispatch.in_flight:
            logger.warning("%s: stopping (%s); running blocks finish first", self.name, reason)
            self.dispatch.executor.stop()
        return reason

    def _check_complete(self, reason: str) -> None:
        """Compare planned with settled blocks: a pass that lost one must not look finished."""
        lanes = self.dispatch.lanes
        is_empty = lanes.is_empty()  # also counts the done ones at the end
        n_done = self.n_done + lanes.n_skipped
        if not is_empty or n_done + len(self.quarantined) != self.total:
            raise Interrupted(
                f"{self.name}: stopped ({reason or 'blocks were lost'}) after "
                f"{n_done} of {self.total} blocks; the same command goes on"
            )

    def _settle(self, attempt: Attempt, outcomes: list[Outcome]) -> None:
        blocks = {b.number: b for b in attempt.blocks}
        for outcome in outcomes:
            block = blocks.pop(outcome.number)
            if outcome.report is not None:
                self._commit(outcome.number, outcome.report)
            elif outcome.failure is not None:
                self._fail(attempt, block, outcome.failure)
        if blocks:
            self.dispatch.take_back(attempt, tuple(blocks.values()))

    def _commit(self, number: int, report: Report) -> None:
        try:
            self.record(number, report)
        except OSError as error:
            if is_away(error):
                raise Interrupted(f"{self.name}: the ledger's store is away ({error})") from error
            raise StageError(f"{self.name}: could not record block {number}: {error}") from error
        self._outage = _Outage()
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
            self._send_again(
                Attempt((block,), attempt.n_tried, is_suspect=death.is_killed, is_gentle=death.is_killed)
            )

    def _fail(self, attempt: Attempt, block: Block, failure: Failure) -> None:
        """Judge a failure of one block: stop the pass, try again, or quarantine."""
        if failure.verdict == "input":
            raise InputError(failure.error)
        if failure.verdict == "stage":
            raise StageError(f"{self.name}, block {block.number} ({block.inner}): {failure.error}")
        if failure.verdict == "away" and self._wait_for_store(attempt, block, failure):
            return
        n_tried = attempt.n_tried + (len(attempt.blocks) == 1)
        logger.warning("%s, block %d, on %s: %s", self.name, block.number, failure.worker, failure.error)
        if n_tried > self.retries:
            self._give_up(block, failure)
            return
        delay = min(MAX_DELAY, FIRST_DELAY * 4 ** (n_tried - 1)) if n_tried else 0.0
        is_gentle = attempt.is_gentle or failure.verdict == "memory"
        ready_at = time.monotonic() + delay
        self._send_again(Attempt((block,), n_tried, attempt.is_suspect, failure.worker, ready_at, is_gentle))

    def _wait_for_store(self, attempt: Attempt, block: Block, failure: Failure) -> bool:
        """Hold everything back where it is the store that is away, not a block that fails; say whether it is.

        One block that fails in this way, while others succeed, is tried as any other is.
        """
        now = time.monotonic()
        if not self._outage.blocks:
            self._outage.since = now
        self._outage.blocks.add(block.number)
        if len(self._outage.blocks) == 1 and self.total > 1:
            return False
        if now - self._outage.since > self.away_patience:
            raise Interrupted(
                f"{self.name}: the store is away for {now - self._outage.since:.0f} s ({failure.error}); "
                "the same command goes on"
            )
        if now >= self._outage.hold_until:
            self._outage.hold_until = now + self._outage.wait
            logger.warning("%s: the store is away (%s); again in %.0f s", self.name, failure.error, self._outage.wait)
            self._outage.wait = min(MAX_WAIT, 2 * self._outage.wait)
            self.dispatch.hold_until = self._outage.hold_until
        self._send_again(replace(attempt, blocks=(block,), ready_at=self._outage.hold_until, ahead=None))
        return True

    def _send_again(self, attempt: Attempt) -> None:
        self.dispatch.again.append(attempt)
        self.n_retries += 1
        self.progress.retry()

    def _give_up(self, block: Block, failure: Failure) -> None:
        if self.quarantine is None:
            stage, _, pass_name = self.name.rpartition("/")
            raise BlockError(stage or "unetflow", pass_name, block.number, failure.error)
        error: dict[str, Any] = {"error": failure.error, "traceback": failure.traceback, "worker": failure.worker}
        if failure.input is not None:
            error["input"] = failure.input
        self.quarantine(block.number, error)
        self.quarantined.append(block.number)
        self.progress.advance()
        n_failed, n_settled = len(self.quarantined), len(self.quarantined) + self.n_done
        if n_failed > max(MIN_FAILED, self.max_failed_share * n_settled):
            raise StageError(
                f"{self.name}: at most {self.max_failed_share:.0%} of the blocks may fail, {n_failed} of "
                f"{n_settled} did; the last reason was: {failure.error}"
            )
