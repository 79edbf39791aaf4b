"""What every stage shares: the place where it works, its record, and its totals."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetflow.errors import InputError, StageError
from unetflow.geometry import Block, Shape

if TYPE_CHECKING:
    from unetflow.runtime.pace import RunLength

log = logging.getLogger(__name__)

Report = dict[str, Any]


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
    """

    client: Any = None
    progress: Any = None
    should_stop: Callable[[], bool] | None = None
    deadline: float | None = None

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
    """

    stage: str
    ledger: Any
    conditions: Conditions
    retry_failed: bool = False
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
        )
        self.ledger.flush()
        self.blocks += len(blocks)
        self.skipped += len(done)
        self.retries += result.n_retries
        self.passes[name] = PassFigures(result.seconds, len(blocks), len(done), result.n_retries)
        failed = self.ledger.quarantined(name)
        self.quarantined += [(name, number) for number in sorted(failed)]
        if failed and must_be_whole:
            number = min(failed)
            raise StageError(
                f"{self.stage}: pass {name} needs every block, and {len(failed)} failed; the first is block {number}: "
                f"{failed[number].get('error')}. Mend the cause and give the same command with --retry-failed"
            )

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
) -> Iterator[Work]:
    """Hold the lock and the ledger of ``folder`` while a stage works there.

    Parameters
    ----------
    folder : path or URL
        The result's own folder; the record lies in its ``.unetflow``.
    fingerprint : dict
        What the bytes depend on.
    """
    from unetflow.storage import folders
    from unetflow.storage.ledger import has_ledger, open_ledger
    from unetflow.storage.lock import acquire_lock

    place = private_place(folder)
    own = private_place(folder, stage)
    is_new = False
    try:
        with acquire_lock(place):
            is_new = not has_ledger(own)
            try:
                with open_ledger(own, fingerprint, overwrite=overwrite) as ledger:
                    yield Work(stage, ledger, conditions, retry_failed)
            except InputError:
                # Only who holds the lock may take a record away: it may be another's otherwise.
                if is_new:
                    folders.remove(own)
                raise
    except InputError:
        if is_new and "://" not in place:
            _leave_nothing(Path(place))
        raise


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
    from unetflow.storage import folders, store
    from unetflow.storage.ledger import has_ledger

    path = store.normalise(target)
    try:
        is_foreign = not overwrite and bool(folders.content_of(path)) and not has_ledger(private_place(path, stage))
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
