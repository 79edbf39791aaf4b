"""Distances to the two nearest objects, exact, one axis after the other.

Squared distances split by axis, so the nearest object of a voxel is found along one axis from
what was found along the axes before. The same holds for the two nearest *distinct* objects if
both travel: an object that is not among the two nearest of a voxel cannot become one of the
two nearest through that voxel, for those two come along. Only the nearest needs its name. A
second distance is passed on without one: should it belong to the listener's own nearest, then
the first distance of the same voxel, which is no longer, belongs to another and has set the
listener's second already.

Along an axis each voxel hears its neighbours, one step farther at a time on both sides, until
the step alone is longer than its second best, or than ``cut``. Voxels listen in runs of 64,
which vector instructions serve at once. Distances are float32 sums in the order of the axes,
of terms that depend on the offset alone; the minimum of the same terms is the same bits
whatever box of voxels surrounds them, and whichever thread takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Squared = npt.NDArray[np.float32]
Objects = npt.NDArray[np.int32]
Index = np.uint64

# Voxels that listen together.
_RUN = 64
# What a run knows is three planes in one array, so that the compiler sees that they lie apart:
# first and second distance, and the nearest object. Distances are there as their bits, which
# order as the distances do while those are not negative.
# All indices of the inner loops are unsigned: numba bends a signed one below 0 round to the
# end of the array, and then the compiler finds no vector instructions.
_SECOND, _NAME = np.uint64(_RUN), np.uint64(2 * _RUN)
_LANES = np.uint64(_RUN)
_FAR = np.float32(np.inf).view(np.int32)

# More pieces than threads, for lines with many objects near are done sooner.
_PIECES_PER_THREAD = 4


def two_nearest_squared(
    ids: Array, voxel_size: Sequence[float], cut: float, planar: Sequence[bool] | None = None, threads: int = 1
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
    threads : int
        Threads that share the lines of an axis; the result does not depend on it.

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
    nearest = _numbered(ids)
    first, second = np.full(ids.shape, np.inf, np.float32), np.full(ids.shape, np.inf, np.float32)
    first[nearest > 0] = 0
    flags = [False] * ids.ndim if planar is None else planar
    flat = first.reshape(-1), second.reshape(-1), nearest.reshape(-1)
    for axis, (size, is_planar) in enumerate(zip(voxel_size, flags, strict=True)):
        length = ids.shape[axis]
        if is_planar or length == 1 or ids.size == 0:
            continue
        steps = np.arange(length, dtype=np.float64)
        along = ((steps * float(size)) ** 2).astype(np.float32)
        limit = np.float32(cut * cut)
        along = along[: np.searchsorted(along, limit, side="right")]
        n_after = int(np.prod(ids.shape[axis + 1 :]))
        n_abreast = min(n_after, int(_RUN))
        n_bundles = ids.size // (length * n_after) * -(-n_after // n_abreast)
        share_out(partial(_spread, *flat, length, n_after, n_abreast, along, limit), n_bundles, threads)
    return first, second


def share_out(work: Callable[[int, int], object], n_items: int, threads: int) -> None:
    """Call ``work(begin, end)`` for pieces that cover ``n_items``, on so many threads.

    ``work`` must let go of the interpreter, as kernels with ``nogil`` do.

    Raises
    ------
    ValueError
        If ``threads`` is below 1.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if threads == 1:
        work(0, n_items)
        return
    bounds = np.linspace(0, n_items, _PIECES_PER_THREAD * threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))


def _numbered(ids: Array) -> Objects:
    """Return the ids as fresh int32, renumbered where they do not fit; 0 or less is 0."""
    numbers = np.zeros(ids.shape, np.int32)
    if ids.size == 0 or ids.max() <= np.iinfo(np.int32).max:
        np.copyto(numbers, ids, where=ids > 0, casting="unsafe")
        return numbers
    # In slices, or sorting would take many times the memory of the ids.
    axis = int(np.argmax(ids.shape))
    parts = np.array_split(ids, 16, axis)
    values = np.zeros(0, ids.dtype)
    for part in parts:
        values = np.union1d(values, part[part > 0])
    for part, out in zip(parts, np.array_split(numbers, 16, axis), strict=True):
        out[...] = np.where(part > 0, np.searchsorted(values, part) + 1, 0)
    return numbers


@numba.njit(cache=True, nogil=True)
def _spread(
    first: Squared, second: Squared, nearest: Objects, n: int, n_after: int, n_abreast: int,
    along: Squared, limit: np.float32, begin: int, end: int,
) -> None:  # fmt: skip
    """Carry the two nearest of each voxel along one axis, in place, as far as ``along`` reaches.

    The arrays are flat views of (before, n, n_after). Lines that lie side by side in memory are
    done abreast: bundles ``begin`` to ``end`` of up to ``n_abreast`` of them.
    """
    reach, edge = len(along), len(along) * n_abreast  # at the edge nobody is there to tell
    n_runs = -(-n * n_abreast // _RUN)
    d1 = np.full(2 * edge + n_runs * _RUN, np.inf, np.float32)
    d2, name = d1.copy(), np.zeros(len(d1), np.int32)
    tells = np.zeros(len(d1) // _RUN + 2, np.bool_)
    known, heard = np.empty(3 * _RUN, np.int32), np.empty(3 * _RUN, np.int32)
    n_across = -(-n_after // n_abreast)
    # Lines that fill their memory are one row of all their voxels.
    n_rows = 1 if n_abreast == n_after else n
    for bundle in range(begin, end):
        across = bundle % n_across * n_abreast
        start = bundle // n_across * n * n_after + across
        width = n * n_after if n_rows == 1 else min(n_abreast, n_after - across)
        for row in range(n_rows):
            here, there = start + row * n_after, edge + row * n_abreast
            _copy(first, here, d1, there, width)
            _copy(second, here, d2, there, width)
            _copy(nearest, here, name, there, width)
        if not _find_who_tells(d1, tells):
            continue
        for i in range(n_runs):
            middle = edge + i * _RUN
            farthest = _begin(d1, d2, name, np.uint64(middle), known)
            for k in range(1, reach):
                if np.float32(along[k]).view(np.int32) >= farthest:
                    break
                left, right = middle - k * n_abreast, middle + k * n_abreast
                if not (_is_told(tells, left) or _is_told(tells, right)):
                    continue
                _hear(d1, d2, name, np.uint64(left), along[k], known, heard)
                farthest = _hear(d1, d2, name, np.uint64(right), along[k], heard, known)
            here, width_of_run = start + i * n_after, width
            if n_rows == 1:
                here, width_of_run = start + i * _RUN, min(_RUN, width - i * _RUN)
            _end(known, limit, first, second, nearest, np.uint64(here), np.uint64(width_of_run))


@numba.njit(cache=True, nogil=True)
def _copy(source: Array, start: int, target: Array, to: int, width: int) -> None:
    for i in range(np.uint64(width)):
        target[np.uint64(to) + i] = source[np.uint64(start) + i]


@numba.njit(cache=True, nogil=True)
def _find_who_tells(d1: Squared, tells: npt.NDArray[np.bool_]) -> bool:
    """Mark the runs with any voxel that knows an object, and say whether there are any."""
    is_any = False
    for run in range(len(d1) // _RUN + 1):
        is_told = False
        for i in range(run * _RUN, min((run + 1) * _RUN, len(d1))):
            is_told |= d1[i] < np.inf
        tells[run] = is_told
        is_any |= is_told
    return is_any


@numba.njit(cache=True, nogil=True)
def _is_told(tells: npt.NDArray[np.bool_], start: int) -> bool:
    return bool(tells[start // _RUN] or tells[start // _RUN + 1])


@numba.njit(cache=True, nogil=True)
def _begin(d1: Squared, d2: Squared, name: Objects, at: Index, known: Objects) -> np.int32:
    """Fill in what the voxels of a run know by themselves; return their longest distance."""
    farthest = np.int32(0)
    for i in range(_LANES):
        best2 = np.float32(d2[at + i]).view(np.int32)
        known[i], known[_SECOND + i] = np.float32(d1[at + i]).view(np.int32), best2
        farthest = max(farthest, best2)
    for i in range(_LANES):
        known[_NAME + i] = name[at + i]
    return farthest


@numba.njit(cache=True, nogil=True)
def _hear(
    d1: Squared, d2: Squared, name: Objects, at: Index, step: np.float32, known: Objects, heard: Objects
) -> np.int32:
    """Take in what the voxels from ``at`` know, a step away; return the longest distance left.

    Without branches, and out of place: else the compiler stores under a mask, which is slow.
    """
    farthest = np.int32(0)
    for i in range(_LANES):
        near, far = np.float32(d1[at + i] + step).view(np.int32), np.float32(d2[at + i] + step).view(np.int32)
        best1, best2, own = known[i], known[_SECOND + i], known[_NAME + i]
        # Of two nearest, the farther may be second, unless both are one object.
        lost = _FAR if name[at + i] == own else max(near, best1)
        best2 = min(best2, min(lost, far))
        heard[i], heard[_SECOND + i] = min(near, best1), best2
        heard[_NAME + i] = name[at + i] if near < best1 else own
        farthest = max(farthest, best2)
    return farthest


@numba.njit(cache=True, nogil=True)
def _end(
    known: Objects, limit: np.float32, first: Squared, second: Squared, nearest: Objects, start: Index, width: Index
) -> None:
    """Write what a run knows; what lies beyond the cut may or may not be in the box, and leaves no trace."""
    for i in range(width):
        best1, best2 = np.int32(known[i]).view(np.float32), np.int32(known[_SECOND + i]).view(np.float32)
        first[start + i] = best1 if best1 <= limit else np.float32(np.inf)
        second[start + i] = best2 if best2 <= limit else np.float32(np.inf)
    for i in range(width):
        nearest[start + i] = known[_NAME + i] if first[start + i] <= limit else 0
