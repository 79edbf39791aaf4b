"""The journal of a remote store, whose objects cannot be added to: a sequence of objects.

::

    ledger-000000   full, about a megabyte    never written again
    ledger-000001   full
    ledger-000002   the tail                  written whole at each commit, until it is full
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO

from unetflow.storage.objects import Objects

FULL_BYTES = 2**20


class ObjectJournal:
    """A journal in the objects below a URL; each is replaced in one step or not at all."""

    def __init__(self, url: str) -> None:
        self._objects = Objects(url)
        self._number = 0
        self._tail: bytes | None = None  # known once the lines were read, or begun

    @property
    def name(self) -> str:
        """The first object."""
        return f"{self._objects.url}/{_name(0)}"

    def lines(self) -> Iterator[bytes]:
        """Yield the lines, one object in memory at a time."""
        number, content = 0, self._objects.get(_name(0))
        while content is not None:
            following = self._objects.get(_name(number + 1))
            if following is None and self._tail is None:
                self._number, self._tail = number, content
            yield from BytesIO(content)
            number, content = number + 1, following

    def start(self, line: bytes) -> None:
        """Begin anew: later objects go first, so that what an interruption leaves is whole."""
        last = 0
        while self._objects.get(_name(last + 1)) is not None:
            last += 1
        for number in range(last, 0, -1):
            self._objects.delete(_name(number))
        self._number, self._tail = 0, b""
        self.append(line)

    def cut(self, n_bytes: int) -> None:
        """Shorten the tail, which the next append writes."""
        tail = self._tail or b""
        self._tail = tail[: len(tail) - n_bytes]

    def append(self, lines: bytes) -> None:
        """Write the tail with the lines at its end, or a new tail where it is full."""
        before = self._tail or b""
        is_full = bool(before) and len(before) + len(lines) > FULL_BYTES
        number, tail = (self._number + 1, lines) if is_full else (self._number, before + lines)
        self._objects.put(_name(number), tail)
        self._number, self._tail = number, tail

    def close(self) -> None:
        """Do nothing: there is nothing open."""


def _name(number: int) -> str:
    return f"ledger-{number:06d}"
