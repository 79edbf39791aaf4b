"""Bring together what blocks told of objects by id, a range of ids in memory at a time.

Each block stores a row of its objects, sorted by id, and reports which *buckets* (ranges of
`BUCKET` ids) it holds and where they begin. The driver then reads of each bucket what all blocks
have of it. Objects are numbered by first voxel, so the blocks of one bucket are near each other,
but for objects that are long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetflow.stages.tables import BUCKET, Rows

if TYPE_CHECKING:
    from unetflow.stages.work import Report

Integers = npt.NDArray[np.int64]


def buckets_of(ids: Integers) -> list[list[int]]:
    """Return [bucket, first entry, entry beyond] of each bucket among sorted ids, which start at 1.

    Examples
    --------
    >>> buckets_of(np.array([1, 5, 2**18 + 1]))
    [[0, 0, 2], [1, 2, 3]]
    """
    found, start = np.unique((ids - 1) // BUCKET, return_index=True)
    parts: list[list[int]] = np.stack([found, start, np.append(start[1:], len(ids))[: len(found)]], axis=1).tolist()
    return parts


@dataclass
class Gatherer:
    """Collects, from the reports of a pass, where each bucket's parts lie."""

    rows: Rows
    parts: list[npt.NDArray[np.int64]] = field(default_factory=list)

    def add(self, number: int, report: Report) -> None:
        """Take the buckets of one block."""
        if report["buckets"]:
            parts = np.array(report["buckets"], np.int64)
            self.parts.append(np.column_stack([parts[:, 0], np.full(len(parts), number), parts[:, 1:]]))

    def buckets(self, blocks: range, n: int) -> Iterator[tuple[Integers, Integers]]:
        """Yield, of each bucket of 1..n, its ids from 0 and the rows of all objects in it.

        Parameters
        ----------
        blocks : range
            Numbers of the blocks of one volume.
        n : int
            Ids of that volume.

        Yields
        ------
        ids : ndarray of int64, shape (m,)
            Id minus the first id of the bucket, any number of times.
        columns : ndarray of int64, shape (C, m)
            The columns behind that of the ids.
        """
        parts = np.concatenate([np.zeros((0, 4), np.int64), *self.parts])
        parts = parts[(parts[:, 1] >= blocks.start) & (parts[:, 1] < blocks.stop)]
        parts = parts[np.lexsort((parts[:, 1], parts[:, 0]))]
        n_columns = self.rows.volume.n_channels
        for bucket in range(-(-n // BUCKET)):
            own = parts[np.searchsorted(parts[:, 0], bucket) : np.searchsorted(parts[:, 0], bucket + 1)]
            read = [self.rows.part(number, start, stop) for _, number, start, stop in own.tolist()]
            row = np.concatenate([np.zeros((n_columns, 0), np.int64), *read], axis=1)
            yield row[0] - 1 - bucket * BUCKET, row[1:]


def bucket_length(bucket: int, n: int) -> int:
    """Return how many of ``n`` ids a bucket holds."""
    return min(BUCKET, n - bucket * BUCKET)
