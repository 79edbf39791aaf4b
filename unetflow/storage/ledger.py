"""The ledger: which blocks are done, which are quarantined, and for which run this holds.

Text that only grows, a line a record: the crc32 of the JSON, a space, the JSON. One file (a few
objects in a remote store) however many blocks, and nothing that an interruption can spoil but
its last line.

::

    3f2a91c0 {"fingerprint": {...}}                                 always the first
    91b7e004 {"pass": "predict", "done": 17, "report": {...}}
    5c30de11 {"pass": "predict", "failed": 18, "error": {...}}
    07aa4f52 {"pass": "predict", "forgotten": true}                 its failed blocks are tried again
    e19d2b70 {"pass": "predict", "finished": true}
    b2c4d7f3 {"name": "tile", "value": [64, 256, 256]}
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from unetflow.errors import InputError
from unetflow.storage import store as stores
from unetflow.storage.fingerprint import require_same
from unetflow.storage.journal import FILE_NAME, FileJournal, Journal
from unetflow.storage.numbers import NumberSet
from unetflow.storage.remote_journal import ObjectJournal

__all__ = ["FILE_NAME", "Ledger", "has_ledger", "open_ledger", "peek_ledger", "read_ledger"]

COMMIT_SECONDS = 1.0

Json = dict[str, Any]
log = logging.getLogger(__name__)


class Ledger:
    """The record of one run in one place; its one writer holds the place's lock.

    Records are committed in groups: at the first record after a second, by a thread of the
    ledger's own where no record comes, and by `flush` and `close`. A process that is killed
    loses a second of records; their blocks are done again.

    Numbers of blocks are kept as bits and reports not at all, so that memory does not grow
    with the volume; `reports` reads them again.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._done: dict[str, NumberSet] = defaultdict(NumberSet)
        self._failed: dict[str, dict[int, Json]] = defaultdict(dict)
        self._finished: set[str] = set()
        self._values: Json = {}
        self._waiting = bytearray()  # lines that are not committed
        self._last_commit = time.monotonic()
        self._lock = threading.Lock()
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None

    def done(self, pass_name: str) -> NumberSet:
        """Return the numbers of the blocks of a pass that are done."""
        return self._done[pass_name] | ()

    def reports(self, pass_name: str) -> Iterator[tuple[int, Json]]:
        """Yield number and report of each block of a pass that is done, read from the store."""
        self.flush()
        start = b'{"pass":%s,"done":' % json.dumps(pass_name).encode()
        seen = NumberSet()
        for line in self._journal.lines():
            if line.startswith(start, 9):
                record = _record(line)
                if record is not None and seen.add(record["done"]):
                    yield record["done"], record["report"]

    def quarantined(self, pass_name: str) -> dict[int, Json]:
        """Return the errors of the blocks of a pass that are set aside, by number."""
        return dict(self._failed[pass_name])

    def record(self, pass_name: str, number: int, report: Json) -> None:
        """Record a block as done, after its data were written; its first report stands."""
        if number not in self._done[pass_name] or number in self._failed[pass_name]:
            self._append({"pass": pass_name, "done": int(number), "report": report})

    def quarantine(self, pass_name: str, number: int, error: Json) -> None:
        """Record a block as failed and set aside."""
        self._append({"pass": pass_name, "failed": int(number), "error": error})

    def forget_quarantine(self, pass_name: str) -> None:
        """Let the failed blocks of a pass be tried again."""
        if self._failed[pass_name]:
            self._append({"pass": pass_name, "forgotten": True})

    def pass_done(self, pass_name: str) -> bool:
        """Say whether a pass was marked as done."""
        return pass_name in self._finished

    def mark_pass_done(self, pass_name: str) -> None:
        """Mark a pass as done."""
        self._append({"pass": pass_name, "finished": True})

    def value(self, name: str) -> Any:
        """Return a named fact, or None."""
        return self._values.get(name)

    def set_value(self, name: str, value: Any) -> None:
        """Record a named fact (JSON)."""
        self._append({"name": name, "value": value})

    def absorb(self, other: Ledger) -> None:
        """Record what another ledger of the same run holds."""
        for pass_name in list(other._done):
            for number, report in other.reports(pass_name):
                self.record(pass_name, number, report)
        for pass_name, failed in other._failed.items():
            for number, error in failed.items():
                self.quarantine(pass_name, number, error)
        for name, value in other._values.items():
            self.set_value(name, value)

    def flush(self) -> None:
        """Bring all records to the store; those that it did not take are kept for the next time."""
        with self._lock:
            if self._waiting:
                self._journal.append(bytes(self._waiting))
                self._waiting.clear()
                self._last_commit = time.monotonic()

    def close(self) -> None:
        """Bring all records to the store and end."""
        self._is_closing.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.flush()
        finally:
            self._journal.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An error on its way out must not be hidden by the same full disk met here again.
        with contextlib.suppress(OSError) if error else contextlib.nullcontext():
            self.close()

    def _append(self, record: Json) -> None:
        line = _line(record)
        with self._lock:
            self._waiting += line
        # Facts and errors are kept as they will be read: no tuples, keys are strings.
        self._take(record if "done" in record else json.loads(line[9:]))
        if time.monotonic() - self._last_commit >= COMMIT_SECONDS:
            self.flush()
        elif self._thread is None:
            self._thread = threading.Thread(target=self._commit_when_idle, name="ledger", daemon=True)
            self._thread.start()

    def _commit_when_idle(self) -> None:
        """Commit what waits while no other record comes, for instance during a long block."""
        while not self._is_closing.wait(COMMIT_SECONDS):
            with contextlib.suppress(OSError):  # met again, and told, by the next record or the end
                self.flush()

    def _take(self, record: Json) -> None:
        if "name" in record:
            self._values[record["name"]] = record["value"]
        elif "done" in record:
            self._done[record["pass"]].add(record["done"])
            self._failed[record["pass"]].pop(record["done"], None)
        elif "failed" in record:
            self._failed[record["pass"]][record["failed"]] = record["error"]
        elif "forgotten" in record:
            self._failed[record["pass"]].clear()
        elif "finished" in record:
            self._finished.add(record["pass"])

    def _load(self, *, mend: bool = True) -> Json | None:
        """Take all records that are there and return the first; None where there is none.

        With ``mend`` a torn end is cut off, so that the next record starts a line of its own.
        """
        first: Json | None = None
        n_lines = n_damaged = n_torn = 0
        for line in self._journal.lines():
            record = _record(line)
            n_damaged += n_torn > 0  # the one before was not the last
            n_torn = len(line) if record is None else 0
            if n_lines == 0:
                first = record or {}
            elif record is not None:
                self._take(record)
            n_lines += 1
        if n_torn and mend:
            self._journal.cut(n_torn)
        if n_damaged:
            log.warning(
                "%s: %d damaged records are left out; their blocks are done again", self._journal.name, n_damaged
            )
        return None if n_lines == bool(n_torn) else first


def open_ledger(folder: str | os.PathLike[str], fingerprint: Json, *, overwrite: bool = False) -> Ledger:
    """Open the ledger of a folder or URL, or start it.

    Parameters
    ----------
    folder : path
        Made if it does not exist.
    fingerprint : dict
        What the bytes depend on, as JSON.
    overwrite : bool
        Start anew, whatever is there.

    Raises
    ------
    InputError
        If the ledger is of another fingerprint; each key that differs is named.
    """
    journal = journal_of(folder)
    ledger = Ledger(journal)
    wanted: Json = json.loads(json.dumps(fingerprint))
    first = None if overwrite else ledger._load()
    if first is None:
        journal.start(_line({"fingerprint": wanted}))
        return ledger
    found = first.get("fingerprint")
    if not isinstance(found, dict):
        raise InputError(
            f"a ledger must start with its fingerprint, got '{journal.name}' that is damaged; --overwrite starts anew"
        )
    require_same(found, wanted, os.fspath(folder))
    return ledger


def peek_ledger(folder: str | os.PathLike[str], fingerprint: Json) -> Ledger | None:
    """Read the ledger of a folder or URL without holding its lock; None where there is none.

    Raises
    ------
    InputError
        If the ledger is of another fingerprint.
    """
    found = read_ledger(folder)
    if found is None:
        return None
    require_same(found[0], json.loads(json.dumps(fingerprint)), os.fspath(folder))
    return found[1]


def read_ledger(folder: str | os.PathLike[str]) -> tuple[Json, Ledger] | None:
    """Read fingerprint and ledger of a folder or URL, whatever run it is of; None where there is none."""
    ledger = Ledger(journal_of(folder))
    first = ledger._load(mend=False)
    return None if first is None else (dict(first.get("fingerprint") or {}), ledger)


def has_ledger(folder: str | os.PathLike[str]) -> bool:
    """Say whether a run was begun in a folder or URL."""
    return any(True for _ in journal_of(folder).lines())


def journal_of(folder: str | os.PathLike[str]) -> Journal:
    """Return where the ledger of a folder or URL lies."""
    place = stores.normalise(folder)
    return ObjectJournal(place) if stores.is_url(place) else FileJournal(place)


def _line(record: Json) -> bytes:
    content = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(content), content)


def _record(line: bytes) -> Json | None:
    content = line[9:].rstrip(b"\n")
    if not line.endswith(b"\n") or line[:9] != b"%08x " % zlib.crc32(content):
        return None
    record = json.loads(content)
    return record if isinstance(record, dict) else None
