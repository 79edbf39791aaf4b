"""The table from which scores are made: how many voxels have each pair of labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from unetflow.numerics.packing import pack_integers, unpack_integers

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Contingency:
    """A sparse contingency table; tables of blocks add to that of the volume.

    Parameters
    ----------
    pairs : ndarray of int64, shape (M, 2)
        Label in the segmentation and label in the truth; sorted, each pair once.
    counts : ndarray of int64, shape (M,)
        Voxels that have both.
    """

    pairs: Integers
    counts: Integers

    @classmethod
    def empty(cls) -> Contingency:
        """Return the table of no voxel at all, which changes nothing when added."""
        return cls(np.zeros((0, 2), np.int64), np.zeros(0, np.int64))

    @property
    def n(self) -> int:
        """Number of voxels counted."""
        return int(self.counts.sum())

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Contingency)
            and np.array_equal(self.pairs, other.pairs)
            and np.array_equal(self.counts, other.counts)
        )

    def to_json(self) -> dict[str, Any]:
        """Return a short record for a report."""
        seg, truth = self.pairs.T
        columns = {"seg": seg, "truth": truth, "counts": self.counts}
        return {name: pack_integers(column) for name, column in columns.items()}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Contingency:
        """Read what `to_json` wrote."""
        seg, truth, counts = (unpack_integers(record[name]) for name in ("seg", "truth", "counts"))
        return cls(np.stack([seg, truth], axis=1), counts)


def contingency(seg: Array, truth: Array, valid: npt.NDArray[np.bool_] | None = None) -> Contingency:
    """Count the pairs of labels.

    Parameters
    ----------
    seg, truth : ndarray of int or bool, same shape
        Labels below 2**63.
    valid : ndarray of bool, same shape, optional
        Voxels to count.

    Examples
    --------
    >>> table = contingency(np.array([1, 1, 2]), np.array([5, 5, 0]))
    >>> table.pairs.tolist(), table.counts.tolist()
    ([[1, 5], [2, 0]], [2, 1])
    """
    if seg.shape != truth.shape:
        raise ValueError(f"segmentation and truth must have one shape, got {seg.shape} and {truth.shape}")
    counted = np.ones(seg.size, np.bool_) if valid is None else valid.reshape(-1)
    # Runs of one pair in memory order are counted first: there is far less to sort.
    runs = _runs(seg.reshape(-1), truth.reshape(-1), counted)
    return _group(runs[:, :2], runs[:, 2])


def add(a: Contingency, b: Contingency) -> Contingency:
    """Add two tables, exactly and in any order."""
    return _group(np.concatenate([a.pairs, b.pairs]), np.concatenate([a.counts, b.counts]))


def _group(pairs: Integers, counts: Integers) -> Contingency:
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs, counts = pairs[order], counts[order]
    is_first = np.ones(len(pairs), np.bool_)
    is_first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    starts = np.flatnonzero(is_first)
    return Contingency(pairs[starts], np.add.reduceat(counts, starts) if len(starts) else counts)


@numba.njit(cache=True, nogil=True)
def _runs(seg: Array, truth: Array, valid: npt.NDArray[np.bool_]) -> Integers:
    """List (label in seg, label in truth, voxels) of each run of valid voxels."""
    runs = np.empty((1024, 3), np.int64)
    n = 0
    is_open = False
    for i in range(len(seg)):
        if not valid[i]:
            is_open = False
            continue
        a, b = np.int64(seg[i]), np.int64(truth[i])
        if is_open and runs[n - 1, 0] == a and runs[n - 1, 1] == b:
            runs[n - 1, 2] += 1
            continue
        if n == len(runs):
            longer = np.empty((2 * n, 3), np.int64)
            longer[:n] = runs
            runs = longer
        runs[n, 0], runs[n, 1], runs[n, 2] = a, b, 1
        n += 1
        is_open = True
    return runs[:n]
