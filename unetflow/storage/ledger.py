"""The ledger: which blocks are done, which are quarantined, and for which run this holds.

An append-only text file, a line a record: the crc32 of the JSON, a space, the JSON. One file
however many blocks, and nothing that an interruption can spoil but its last line.

::

    3f2a91c0 {"fingerprint": {...}}                                 always the first
    91b7e004 {"pass": "predict", "done": 17, "report": {...}}
    5c30de11 {"pass": "predict", "failed": 18, "error": {...}}
    07aa4f52 {"pass": "predict", "forgotten": true}                 its failed blocks are tried again
    e19d2b70 {"pass": "predict", "finished": true}
    b2c4d7f3 {"name": "tile", "value": [64, 256, 256]}
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
import zlib
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any

from unetflow.errors import InputError

FILE_NAME = "ledger"
COMMIT_SECONDS = 1.0
_ABSENT = "(absent)"

Json = dict[str, Any]
log = logging.getLogger(__name__)


class Ledger:
    """The record of one run in one folder; its one writer holds the folder's lock.

    A record reaches the operating system at once, so that it survives the process, and the
    disk within a second of the next one, so that a power cut costs a second of work.
    """

    def __init__(self, folder: Path, records: list[Json]) -> None:
        self.folder = folder
        self._done: dict[str, dict[int, Json]] = defaultdict(dict)
        self._failed: dict[str, dict[int, Json]] = defaultdict(dict)
        self._finished: set[str] = set()
        self._values: Json = {}
        for record in records:
            self._take(record)
        self._file = open(folder / FILE_NAME, "ab", buffering=0)  # noqa: SIM115  closed by close()
        self._last_commit = time.monotonic()

    def done(self, pass_name: str) -> dict[int, Json]:
        """Return the reports of the blocks of a pass that are done, by number."""
        return dict(self._done[pass_name])

    def quarantined(self, pass_name: str) -> dict[int, Json]:
        """Return the errors of the blocks of a pass that are set aside, by number."""
        return dict(self._failed[pass_name])

    def record(self, pass_name: str, number: int, report: Json) -> None:
        """Record a block as done, after its data were written."""
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

    def flush(self) -> None:
        """Bring all records to the disk."""
        os.fsync(self._file.fileno())
        self._last_commit = time.monotonic()

    def close(self) -> None:
        """Bring all records to the disk and close the file."""
        if not self._file.closed:
            self.flush()
            self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, record: Json) -> None:
        line = _line(record)
        end = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / FILE_NAME))
        except OSError:
            os.ftruncate(self._file.fileno(), end)  # half a line would spoil the next one
            raise
        self._take(json.loads(line[9:]))  # as it will be read: no tuples, keys are strings
        if time.monotonic() - self._last_commit >= COMMIT_SECONDS:
            self.flush()

    def _take(self, record: Json) -> None:
        if "name" in record:
            self._values[record["name"]] = record["value"]
        elif "done" in record:
            self._done[record["pass"]][record["done"]] = record["report"]
            self._failed[record["pass"]].pop(record["done"], None)
        elif "failed" in record:
            self._failed[record["pass"]][record["failed"]] = record["error"]
        elif "forgotten" in record:
            self._failed[record["pass"]].clear()
        elif "finished" in record:
            self._finished.add(record["pass"])


def open_ledger(folder: str | os.PathLike[str], fingerprint: Json, *, overwrite: bool = False) -> Ledger:
    """Open the ledger of a local folder, or start it.

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
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    wanted: Json = json.loads(json.dumps(fingerprint))
    records = [] if overwrite else _read(place / FILE_NAME)
    if not records:
        _start(place / FILE_NAME, {"fingerprint": wanted})
        return Ledger(place, [])
    found = records[0].get("fingerprint")
    if not isinstance(found, dict):
        raise InputError(
            f"a ledger must start with its fingerprint, got '{place / FILE_NAME}' that is damaged; "
            "--overwrite starts anew"
        )
    differences = _differences(found, wanted)
    if differences:
        raise InputError(
            f"a run goes on only with what it was started with, got in '{place}' "
            f"{'; '.join(differences)}; take the old values, or --overwrite starts anew"
        )
    return Ledger(place, records[1:])


def _line(record: Json) -> bytes:
    content = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(content), content)


def _read(path: Path) -> list[Json]:
    """Return the records; cut off a torn end, so that the next record starts a line of its own."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    lines = content.splitlines(keepends=True)
    records = [_record(line) for line in lines]
    n_torn = len(lines[-1]) if lines and records[-1] is None else 0
    if n_torn:
        os.truncate(path, len(content) - n_torn)
        records.pop()
    n_damaged = sum(record is None for record in records)
    if n_damaged:
        log.warning("%s: %d damaged records are left out; their blocks are done again", path, n_damaged)
        records[:1] = [records[0] or {}]
    return [record for record in records if record is not None]


def _record(line: bytes) -> Json | None:
    content = line[9:].rstrip(b"\n")
    if not line.endswith(b"\n") or line[:9] != b"%08x " % zlib.crc32(content):
        return None
    record = json.loads(content)
    return record if isinstance(record, dict) else None


def _start(path: Path, record: Json) -> None:
    """Write a new file with one record, whole or not at all."""
    temporary = path.with_suffix(".new")
    with open(temporary, "wb") as file:
        file.write(_line(record))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _differences(old: Json, new: Json, above: str = "") -> list[str]:
    """Name each key whose value differs, nested keys with dots."""
    found = []
    for key in [*old, *(k for k in new if k not in old)]:
        before, after = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{above}{key}.")
        elif before != after:
            found.append(f"{above}{key} = {_short(before)} where it is now {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = value if value == _ABSENT else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
