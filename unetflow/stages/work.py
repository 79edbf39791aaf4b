"""What every stage shares: the place where it works, its record, and its totals."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetflow.errors import InputError, StageError
from unetflow.geometry import Block, Shape

if TYPE_CHECKING:
    from unetflow.runtime.pace import RunLength
    from unetflow.stages.parts import Part

log = logging.getLogger(__name__)

Report = dict[str, Any]

_IS_CLEAN = "is_clean"  # in the ledger: the last run ended, and nothing of it can lie half-written


@dataclass(frozen=True)
class Conditions:
    """How a stage runs; none of it changes a byte of the result.

    Parameters
    ----------
    client : distributed.Client, optional
        Where blocks run; None is a plain loop in this process.
    progress : unetflow.runtime.progress.Progress, optional
        Told of passes and blocks.
    should_stop : callable, optional
        Asked before each new block; true ends the stage so that the same command goes on.
    deadline : float, optional
        Monotonic time after which no new block starts.
    block_seconds : float
        A worker that finishes nothing for so long is ended, and its blocks are tried elsewhere.
    """

    client: Any = None
    progress: Any = None
    should_stop: Callable[[], bool] | None = None
    deadline: float | None = None
    block_seconds: float = 3600.0

    @property
    def n_workers(self) -> int:
        """Number of workers that blocks can run on."""
        return 1 if self.client is None else max(1, len(self.client.scheduler_info(n_workers=-1)["workers"]))


@dataclass(frozen=True)
class PassFigures:
    """What one pass took.

    Parameters
    ----------
    seconds : float
        Wall time of this run.
    blocks, skipped, retries : int
        Blocks of the pass, those that an earlier run did, and how often one was sent again.
    """

    seconds: float
    blocks: int
    skipped: int
    retries: int


@dataclass
class Work:
    """One stage at work in one place: its ledger, and what its passes did.

    `run_pass` runs what the ledger does not hold yet, and hands every report, old or new,
    to ``on_report``, so that sums over blocks come out whole after a restart.

    ``before`` is the ledger of an earlier whole run, where this one does a part; ``start`` holds the
    ledger that says whether the output was created.
    """

    stage: str
    ledger: Any
    conditions: Conditions
    retry_failed: bool = False
    before: Any = None
    start: Callable[[], contextlib.AbstractContextManager[Any]] | None = None
    blocks: int = 0
    skipped: int = 0
    retries: int = 0
    quarantined: list[tuple[str, int]] = field(default_factory=list)
    passes: dict[str, PassFigures] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def run_pass(
        self,
        name: str,
        task: Callable[[Block], Report],
        blocks: Any,
        on_report: Callable[[int, Report], None] | None = None,
        *,
        must_be_whole: bool = True,
        run_length: RunLength = "auto",
        brick: Shape | Sequence[Shape] | None = None,
    ) -> None:
        """Run ``task`` over the blocks that are not recorded as done.

        ``run_length`` and ``brick`` say how blocks travel, as in `unetflow.runtime.blockwise.run_pass`;
        neither changes a byte.

        Raises
        ------
        StageError
            If a block stays without a result and the pass needs all of them.
        """
        from unetflow.runtime.blockwise import run_pass

        if self.retry_failed:
            self.ledger.forget_quarantine(name)
        done = self.ledger.done(name)
        failed = self.ledger.quarantined(name)
        if on_report is not None:
            for number, report in self.ledger.reports(name):
                on_report(number, report)
        if self.before is not None:
            if on_report is not None:
                for number, report in self.before.reports(name):
                    if number not in done:
                        on_report(number, report)
            done |= self.before.done(name)

        def record(number: int, report: Report) -> None:
            self.ledger.record(name, number, report)
            if on_report is not None:
                on_report(number, report)

        result = run_pass(
            task,
            blocks,
            client=self.conditions.client,
            done=done | failed,
            record=record,
            quarantine=lambda number, error: self.ledger.quarantine(name, number, error),
            name=name,
            run_length=run_length,
            brick=brick,
            progress=self.conditions.progress,
            should_stop=self.conditions.should_stop,
            deadline=self.conditions.deadline,
            block_seconds=self.conditions.block_seconds,
        )
        self.ledger.flush()
        # A part may find blocks of other parts done, in the ledger of a whole run.
        n_skipped = len(done) if self.before is None else sum(block.number in done for block in blocks)
        self.blocks += len(blocks)
        self.skipped += n_skipped
        self.retries += result.n_retries
        self.passes[name] = PassFigures(result.seconds, len(blocks), n_skipped, result.n_retries)
        if len(blocks) > n_skipped:
            self._remember(name)
        failed = self.ledger.quarantined(name)
        self.quarantined += [(name, number) for number in sorted(failed)]
        if failed and must_be_whole:
            number = min(failed)
            raise StageError(
                f"{self.stage}: pass {name} needs every block, and {len(failed)} failed; the first is block {number}: "
                f"{failed[number].get('error')}. Mend the cause and give the same command with --retry-failed"
            )

    def _remember(self, name: str) -> None:
        """Keep what a pass took, over all starts that finished it, for reports."""
        now, before = self.passes[name], (self.ledger.value("passes") or {})
        known = before.get(name, {"seconds": 0.0, "retries": 0})
        took = {
            "blocks": now.blocks,
            "seconds": round(known["seconds"] + now.seconds, 3),
            "retries": known["retries"] + now.retries,
        }
        self.ledger.set_value("passes", {**before, name: took})

    def first_start(self) -> contextlib.AbstractContextManager[Any]:
        """Hold the ledger that says whether the output was created: this one, or that of all parts."""
        return contextlib.nullcontext(self.ledger) if self.start is None else self.start()

    def once(self, name: str, passes: Callable[[], Any]) -> Any:
        """Return what some passes gave (JSON), and do them unless an earlier run finished them all.

        For passes whose temporary arrays are gone when they are finished. Their blocks count as skipped then.
        """
        known = self.ledger.value(name)
        if known is not None:
            self.blocks += known["blocks"]
            self.skipped += known["blocks"]
            return known["result"]
        before = self.blocks
        result = passes()
        self.ledger.set_value(name, {"result": result, "blocks": self.blocks - before})
        self.ledger.flush()
        return result

    def totals(self) -> Report:
        """Return what ``--json`` prints of the blocks."""
        return {
            "blocks": self.blocks,
            "blocks_skipped": self.skipped,
            "retries": self.retries,
            "quarantined": [f"{name}:{number}" for name, number in self.quarantined],
            "seconds": round(time.monotonic() - self.started, 3),
        }


@contextmanager
def open_work(
    stage: str,
    folder: str | Path,
    fingerprint: Report,
    conditions: Conditions,
    *,
    overwrite: bool = False,
    retry_failed: bool = False,
    part: Part | None = None,
) -> Iterator[Work]:
    """Hold the lock and the ledger of ``folder``, or those of one part, while a stage works there.

    Parameters
    ----------
    folder : path or URL
        The result's own folder; the record lies in its ``.unetflow``.
    fingerprint : dict
        What the bytes depend on.
    part : Part, optional
        Do only a part of the blocks; the ledger of an earlier whole run counts too.
    """
    from unetflow.stages.holding import WhileHeld
    from unetflow.stages.parts import first_start, open_part, take_over
    from unetflow.storage import folders
    from unetflow.storage.ledger import has_ledger, open_ledger
    from unetflow.storage.lock import acquire_lock

    place = private_place(folder)
    own = private_place(folder, stage)
    if part is not None:
        with open_part(part, place, own, fingerprint) as (ledger, before, lock):
            start = partial(first_start, place, fingerprint)
            held = replace(conditions, should_stop=WhileHeld(lock, place, conditions.should_stop))
            yield Work(stage, ledger, held, retry_failed, before, start)
        return
    is_new = False
    try:
        with acquire_lock(place) as lock:
            conditions = replace(conditions, should_stop=WhileHeld(lock, place, conditions.should_stop))
            is_new = not has_ledger(own)
            try:
                with open_ledger(own, fingerprint, overwrite=overwrite) as ledger:
                    take_over(ledger, place, fingerprint, overwrite=overwrite)
                    _sweep_if_unclean(folder, ledger)
                    work = Work(stage, ledger, conditions, retry_failed)
                    yield work
                    if work.retries:  # a worker that died may have left half a file
                        _sweep_if_unclean(folder, ledger)
                    ledger.set_value(_IS_CLEAN, True)
            except InputError:
                # Only who holds the lock may take a record away: it may be another's otherwise.
                if is_new:
                    folders.remove(own)
                raise
    except InputError:
        if is_new and "://" not in place:
            _leave_nothing(Path(place))
        raise


def _sweep_if_unclean(folder: str | Path, ledger: Any) -> None:
    """Remove the halves of files that a killed run left, and note that there may be new ones from now on."""
    from unetflow.storage import store
    from unetflow.storage.atomic import sweep

    place = store.normalise(folder)
    if not ledger.value(_IS_CLEAN) and not store.is_url(place):
        n_removed = sweep(place)
        if n_removed:
            log.info("%s: removed %d unfinished files of an earlier run", place, n_removed)
    ledger.set_value(_IS_CLEAN, False)
    ledger.flush()


def private_place(folder: str | Path, *names: str) -> str:
    """Return where a stage keeps what it did, apart from the result: a path or URL."""
    from unetflow.storage import folders, store

    return store.join(store.normalise(folder), folders.PRIVATE_FOLDER, *names)


def _leave_nothing(place: Path) -> None:
    """Remove the folders that a refused start made, where nothing else came into them."""
    from unetflow.storage.lock import GUARD_NAME

    with contextlib.suppress(OSError):  # a folder that holds something else stays
        if all(entry.name == GUARD_NAME for entry in place.iterdir()):
            (place / GUARD_NAME).unlink(missing_ok=True)
        place.rmdir()
        place.parent.rmdir()


def refuse_foreign(target: str | Path, stage: str, *, overwrite: bool) -> None:
    """Refuse to write where something lies that this stage did not make.

    Raises
    ------
    InputError
        If ``target`` exists, was not made by ``stage``, and ``overwrite`` is false; or if the
        store behind a URL cannot be listed.
    """
    from unetflow.stages.parts import was_begun
    from unetflow.storage import folders, store
    from unetflow.storage.ledger import has_ledger

    path = store.normalise(target)
    try:
        is_foreign = not overwrite and bool(folders.content_of(path)) and not has_ledger(private_place(path, stage))
        is_foreign = is_foreign and not was_begun(private_place(path))
    except (OSError, NotImplementedError) as cause:
        raise InputError(
            f"an output needs a store that can be listed and written, got '{path}' ({cause}); check address, "
            "permissions and credentials, or write to a folder and copy it"
        ) from cause
    if is_foreign:
        raise InputError(f"{path} must be new or an output of `unetflow {stage}`; name another, or give --overwrite")


def digest_of(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    from importlib.metadata import version

    names = ("unetflow", "numpy", "scipy", "torch", "zarr")
    return {name: version(name) for name in names}
