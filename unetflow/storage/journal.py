"""Lines that only grow in number, kept in one local file: what a `Ledger` writes through.

A journal knows bytes and lines, not records; the journal of a remote store is
`remote_journal.ObjectJournal`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from unetflow.failpoints import fail_point

FILE_NAME = "ledger"


class Journal(Protocol):
    """Where the lines of a ledger lie, in order."""

    @property
    def name(self) -> str:
        """The place, for messages."""
        ...

    def lines(self) -> Iterator[bytes]:
        """Yield what is there, line by line, ends included; nothing where there is no journal."""
        ...

    def start(self, line: bytes) -> None:
        """Begin anew with one line, whole or not at all."""
        ...

    def cut(self, n_bytes: int) -> None:
        """Take the last bytes away."""
        ...

    def append(self, lines: bytes) -> None:
        """Add whole lines; durable, all of them or none, when this returns or raises OSError."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


class FileJournal:
    """A journal in a local file, to which each append adds."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._path = Path(folder, FILE_NAME)
        self._file = -1

    @property
    def name(self) -> str:
        """The file."""
        return str(self._path)

    def lines(self) -> Iterator[bytes]:
        """Yield the lines; those that are added meanwhile may be among them."""
        try:
            with open(self._path, "rb") as file:
                yield from file
        except FileNotFoundError:
            return

    def start(self, line: bytes) -> None:
        """Put a new file in the place of the old one."""
        self.close()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".new")
        with open(temporary, "wb") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        fail_point("before-ledger")
        os.replace(temporary, self._path)
        fail_point("after-ledger")

    def cut(self, n_bytes: int) -> None:
        """Shorten the file."""
        os.truncate(self._path, self._path.stat().st_size - n_bytes)

    def append(self, lines: bytes) -> None:
        """Write at the end and wait for the disk; a part of what does not fit is taken back."""
        if self._file < 0:
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        end = os.fstat(self._file).st_size
        fail_point("before-record")
        try:
            for part in (lines[: len(lines) // 2], lines[len(lines) // 2 :]):
                if os.write(self._file, part) != len(part):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.name)
                fail_point("half-record")
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, end)  # half a line would spoil the next one
            raise
        fail_point("after-record")

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
