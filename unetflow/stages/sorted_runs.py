"""Put records in order that are more than memory holds: sorted runs on disk, merged a piece at a time.

Records are rows of whole numbers: some keys, what is carried along, and a count. Those of equal keys are one
in the end, with their counts added up. As long as all fit into memory nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

MOST_RECORDS = 2**20
# Runs that are merged at once.
_FAN = 16


@dataclass
class Records:
    """Records in order that are written once, piece by piece, and read any number of times.

    Parameters
    ----------
    path : Path
        File that they go to when they are more than ``most``.
    n_columns : int
    most : int
        Records in memory.
    """

    path: Path
    n_columns: int
    most: int = MOST_RECORDS
    n: int = 0
    _held: list[Integers] = field(default_factory=list)
    _is_stored: bool = False

    def append(self, records: Integers) -> None:
        """Add records, ``(m, n_columns)``, behind those that are there."""
        self._held.append(records)
        self.n += len(records)
        if self._is_stored or self.n > self.most:
            self.store()

    def store(self) -> None:
        """Write what is in memory to the file."""
        with self.path.open("ab" if self._is_stored else "wb") as file:
            for records in self._held:
                np.ascontiguousarray(records, np.int64).tofile(file)
        self._held, self._is_stored = [], True

    def read(self, start: int, stop: int) -> Integers:
        """Return the records ``start`` to ``stop - 1``."""
        if self._is_stored:
            count, offset = (stop - start) * self.n_columns, 8 * start * self.n_columns
            return np.fromfile(self.path, np.int64, count, offset=offset).reshape(-1, self.n_columns)
        if len(self._held) != 1:
            self._held = [np.concatenate([np.zeros((0, self.n_columns), np.int64), *self._held])]
        return self._held[0][start:stop]

    def pieces(self, length: int | None = None) -> Iterator[Integers]:
        """Yield all records, ``length`` at a time."""
        length = length or max(1, self.most // _FAN)
        for start in range(0, self.n, length):
            yield self.read(start, min(start + length, self.n))

    def remove(self) -> None:
        """Let go of the records."""
        self._held = []
        self.path.unlink(missing_ok=True)


@dataclass
class Sorter:
    """Takes records in any order, and gives them back in the order of their keys.

    Parameters
    ----------
    folder : Path
        For runs; it is there.
    name : str
        Of the files.
    n_keys, n_columns : int
        Columns that records are sorted by, the first; all of them, the count the last.
    most : int
        Records in memory.
    """

    folder: Path
    name: str
    n_keys: int
    n_columns: int
    most: int = MOST_RECORDS
    _held: list[Integers] = field(default_factory=list)
    _n_held: int = 0
    _runs: list[Records] = field(default_factory=list)
    _n_runs: int = 0

    def add(self, records: Integers) -> None:
        """Take records, ``(m, n_columns)``."""
        self._held.append(records)
        self._n_held += len(records)
        if self._n_held > self.most:
            whole = self._combine_held()
            if len(whole) > self.most // 2:
                run = self._new_run()
                run.append(whole)
                run.store()
                self._runs.append(run)
                whole = whole[:0]
            self._held, self._n_held = [whole], len(whole)

    def finish(self) -> Records:
        """Return the records in order, those of equal keys as one."""
        last = self._new_run()
        last.append(self._combine_held())
        self._held, self._n_held = [], 0
        runs = [*self._runs, last]
        while len(runs) > 1:
            merged = self._new_run()
            for piece in self._merge(runs[:_FAN]):
                merged.append(piece)
            for run in runs[:_FAN]:
                run.remove()
            runs = [*runs[_FAN:], merged]
        return runs[0]

    def _new_run(self) -> Records:
        self._n_runs += 1
        return Records(self.folder / f"{self.name}-{self._n_runs}", self.n_columns, self.most)

    def _combine_held(self) -> Integers:
        return combine([np.zeros((0, self.n_columns), np.int64), *self._held], self.n_keys)

    def _merge(self, runs: list[Records]) -> Iterator[Integers]:
        """Yield the records of some runs in order; no key is in two pieces."""
        length = max(1, self.most // _FAN)
        waiting = [_Waiting(run.pieces(length)) for run in runs]
        while waiting := [w for w in waiting if w.refill()]:
            # No run has more to come up to the least of what each shows last.
            bound = min(tuple(w.records[-1, : self.n_keys].tolist()) for w in waiting)
            yield combine([w.take(bound) for w in waiting], self.n_keys)


@dataclass
class _Waiting:
    """What was read of a run and is not merged yet."""

    pieces: Iterator[Integers]
    records: Integers = field(default_factory=lambda: np.zeros((0, 1), np.int64))

    def refill(self) -> bool:
        """Read on where nothing waits; say whether anything does."""
        while len(self.records) == 0:
            piece = next(self.pieces, None)
            if piece is None:
                return False
            self.records = piece
        return True

    def take(self, bound: tuple[int, ...]) -> Integers:
        """Return the records up to a key, and keep the others."""
        low, high = 0, len(self.records)
        for column, value in enumerate(bound):
            part = self.records[low:high, column]
            low, high = low + int(np.searchsorted(part, value)), low + int(np.searchsorted(part, value, side="right"))
        taken, self.records = self.records[:high], self.records[high:]
        return taken


def combine(parts: Iterable[Integers], n_keys: int) -> Integers:
    """Sort records by their first columns, and make those of equal keys one: the last column is added up.

    Examples
    --------
    >>> combine([np.array([[2, 5], [1, 1]]), np.array([[2, 3]])], 1).tolist()
    [[1, 1], [2, 8]]
    """
    records = np.concatenate(list(parts))
    keys = records[:, :n_keys]
    order = np.lexsort(keys.T[::-1])
    records, keys = records[order], keys[order]
    is_first = np.ones(len(records), np.bool_)
    is_first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
    starts = np.flatnonzero(is_first)
    if len(starts) < len(records):
        counts = np.add.reduceat(records[:, -1], starts)
        records = records[starts]
        records[:, -1] = counts
    return records
