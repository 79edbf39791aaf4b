"""Distances to the two nearest objects, exact, one axis after the other.

Squared distances split by axis, so the nearest object of a voxel is found along one axis from
what was found along the axes before. The same holds for the two nearest *distinct* objects if
both travel: an object that is not among the two nearest of a voxel cannot become one of the
two nearest through that voxel, for those two come along.

Along an axis each voxel hears the others, nearest first, and stops as soon as the distance
along the axis alone is longer than its second best, or than ``cut``. A voxel in between whose
word is at least as good silences those behind it: the inside of an object says nothing that
its surface does not. Distances are
float32 sums in the order of the axes, of terms that depend on the offset alone; the minimum
of the same terms is the same bits whatever box of voxels surrounds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Squared = npt.NDArray[np.float32]
Objects = npt.NDArray[np.int32]
Integers = npt.NDArray[np.int64]

# Lines are copied to a buffer in groups, or each voxel of a line would cost a cache line.
_N_LINES = 16


def two_nearest_squared(
    ids: Array, voxel_size: Sequence[float], cut: float, planar: Sequence[bool] | None = None
) -> tuple[Squared, Squared]:
    """Return the squared distances to the two nearest objects, infinite beyond ``cut``.

    Parameters
    ----------
    ids : ndarray of int, shape ([T, ][Z, ]Y, X)
        Objects are the ids above 0.
    voxel_size : sequence of float
        Per axis, in the unit of ``cut``.
    cut : float
        Longest distance of interest.
    planar : sequence of bool, optional
        True for axes along which no distance is measured.

    Returns
    -------
    first, second : ndarray of float32
        Of the shape of ``ids``.

    Examples
    --------
    >>> first, second = two_nearest_squared(np.array([4, 0, 0, 7]), (2.0,), cut=10.0)
    >>> first.tolist(), second.tolist()
    ([0.0, 4.0, 4.0, 0.0], [36.0, 16.0, 16.0, 36.0])
    """
    nearest = _as_int32(ids)
    next_nearest = np.zeros(ids.shape, np.int32)
    first = np.where(nearest > 0, np.float32(0), np.float32(np.inf))
    second = np.full(ids.shape, np.inf, np.float32)
    flags = [False] * ids.ndim if planar is None else planar
    for axis, (size, is_planar) in enumerate(zip(voxel_size, flags, strict=True)):
        if is_planar or ids.shape[axis] == 1:
            continue
        steps = np.arange(ids.shape[axis], dtype=np.float64)
        along = ((steps * float(size)) ** 2).astype(np.float32)
        limit = np.float32(cut * cut)
        along = along[: np.searchsorted(along, limit, side="right")]
        lines = [_in_lines(array, axis) for array in (first, second, nearest, next_nearest)]
        _spread(lines[0], lines[1], lines[2], lines[3], along, limit)
    return first, second


def _as_int32(ids: Array) -> Objects:
    """Return the ids as fresh int32, renumbered where they do not fit; 0 or less is 0."""
    if ids.size and ids.max() > np.iinfo(np.int32).max:
        values, inverse = np.unique(ids, return_inverse=True)
        numbers = np.where(values > 0, np.arange(1, len(values) + 1), 0)
        return np.asarray(numbers[inverse].reshape(ids.shape), np.int32)
    return np.array(np.maximum(ids, ids.dtype.type(0)), np.int32)


def _in_lines(array: Array, axis: int) -> Array:
    """View a C-contiguous array as (before, axis, after)."""
    return array.reshape(int(np.prod(array.shape[:axis])), array.shape[axis], -1)


@numba.njit(cache=True, nogil=True)
def _spread(
    first: Squared, second: Squared, nearest: Objects, next_nearest: Objects, along: Squared, limit: np.float32
) -> None:
    """Carry the two nearest of each voxel along axis 1, in place, as far as ``along`` reaches."""
    n_before, n, n_after = first.shape
    line = (np.empty((_N_LINES, n), np.float32), np.empty((_N_LINES, n), np.float32))
    names = (np.empty((_N_LINES, n), np.int32), np.empty((_N_LINES, n), np.int32))
    links = (np.empty(n, np.int64), np.empty(n, np.int64))
    for before in range(n_before):
        for start in range(0, n_after, _N_LINES):
            n_lines = min(_N_LINES, n_after - start)
            for i in range(n):
                for k in range(n_lines):
                    line[0][k, i] = first[before, i, start + k]
                    line[1][k, i] = second[before, i, start + k]
                    names[0][k, i] = nearest[before, i, start + k]
                    names[1][k, i] = next_nearest[before, i, start + k]
            for k in range(n_lines):
                _spread_line(
                    line[0][k], line[1][k], names[0][k], names[1][k], along, limit, links[0], links[1],
                    first[before, :, start + k], second[before, :, start + k],
                    nearest[before, :, start + k], next_nearest[before, :, start + k],
                )  # fmt: skip


@numba.njit(cache=True, nogil=True)
def _spread_line(
    d1: Squared, d2: Squared, name1: Objects, name2: Objects,
    along: Squared, limit: np.float32, before: Integers, behind: Integers,
    out_d1: Squared, out_d2: Squared, out_name1: Objects, out_name2: Objects,
) -> None:  # fmt: skip
    n_steps = len(along)
    _link(d1, d2, name1, name2, along, before, behind)
    for i in range(len(d1)):
        best1, best2, object1, object2 = d1[i], d2[i], name1[i], name2[i]
        left, right = before[i], behind[i]
        while True:
            if i - left <= right - i:
                j, k = left, i - left
                left = before[max(left, 0)]
            else:
                j, k = right, right - i
                right = behind[min(right, len(d1) - 1)]
            if k >= n_steps or along[k] >= best2:
                break
            near = d1[j] + along[k]
            if near >= best2:
                continue
            if name1[j] == object1:
                best1 = min(best1, near)
            elif near < best1:
                best2, object2 = best1, object1
                best1, object1 = near, name1[j]
            else:
                best2, object2 = near, name1[j]
            far = d2[j] + along[k]
            if far < best2 and name2[j] != object1:
                best2, object2 = far, name2[j]
        # What lies beyond the cut may or may not be in the box: it must leave no trace.
        out_d1[i] = best1 if best1 <= limit else np.inf
        out_d2[i] = best2 if best2 <= limit else np.inf
        out_name1[i], out_name2[i] = object1 if best1 <= limit else 0, object2 if best2 <= limit else 0


@numba.njit(cache=True, nogil=True)
def _link(
    d1: Squared, d2: Squared, name1: Objects, name2: Objects, along: Squared,
    before: Integers, behind: Integers,
) -> None:  # fmt: skip
    """Link each voxel to the next ones on both sides that have something to tell."""
    n, n_steps = len(d1), len(along)
    nobody = -n_steps - n
    for i in range(n):
        before[i] = nobody
        if i > 0:
            is_heard = _tells_more(d1, d2, name1, name2, i - 1, i, along)
            before[i] = i - 1 if is_heard else before[i - 1]
    nobody = n_steps + 2 * n
    for i in range(n - 1, -1, -1):
        behind[i] = nobody
        if i < n - 1:
            is_heard = _tells_more(d1, d2, name1, name2, i + 1, i, along)
            behind[i] = i + 1 if is_heard else behind[i + 1]


@numba.njit(cache=True, nogil=True)
def _tells_more(
    d1: Squared, d2: Squared, name1: Objects, name2: Objects, j: int, neighbour: int, along: Squared
) -> bool:
    """Say whether voxel ``j`` knows what its neighbour, and all behind that, do not.

    The neighbour is one step nearer to them. If it knows the same object at most one step's
    square farther, its own word is at least as good: (k + 1)^2 is at least k^2 + 1.
    """
    step = along[1] if len(along) > 1 else along[0]
    for d, name in ((d1[j], name1[j]), (d2[j], name2[j])):
        if name == 0:
            continue
        known = np.float32(np.inf)
        if name == name1[neighbour]:
            known = d1[neighbour]
        elif name == name2[neighbour]:
            known = d2[neighbour]
        if known > d + step:
            return True
    return False
