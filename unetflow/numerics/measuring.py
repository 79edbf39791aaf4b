"""Measure objects in whole numbers, so that parts of blocks add up to the same, however they are cut."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from unetflow.geometry import Box

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

# A probability that is no byte is added up in units of this: sums of whole numbers do not depend on their order.
PROBABILITY_UNIT = 2.0**-24


def n_columns(ndim: int) -> int:
    """Return the columns of `measure_objects`: voxels, sums, starts and stops per axis, and the probabilities."""
    return 2 + 3 * ndim


def fixed_probability(stored: Array) -> tuple[npt.NDArray[np.int32], float]:
    """Turn stored probabilities into whole numbers of the foreground's, and tell their unit.

    Parameters
    ----------
    stored : ndarray of uint8, float16 or float32, shape (C, [T, ][Z, ]Y, X)
        Of the foreground where C is 1, else of each class, background first.

    Examples
    --------
    >>> values, unit = fixed_probability(np.array([[51], [204]], np.uint8))
    >>> values.tolist(), float(values[0] * unit)
    ([204], 0.8)
    """
    if stored.dtype == np.uint8:
        whole, unit, first = 255, 1 / 255, stored[0].astype(np.int32)
    else:
        whole, unit = int(1 / PROBABILITY_UNIT), PROBABILITY_UNIT
        first = np.rint(stored[0].astype(np.float64) / PROBABILITY_UNIT).astype(np.int32)
    return (first if len(stored) == 1 else whole - first), unit


def measure_objects(
    ids: Array, box: Box, probability: npt.NDArray[np.int32] | None = None
) -> tuple[Integers, Integers]:
    """Measure the part of each object that lies in a block.

    Parameters
    ----------
    ids : ndarray of int, shape of ``box``
        0 outside objects.
    box : Box
        Where the block lies in the volume.
    probability : ndarray of int32, shape of ``box``, optional
        See `fixed_probability`.

    Returns
    -------
    found : ndarray of int64, shape (n,)
        Ids, sorted.
    columns : ndarray of int64, shape (2 + 3 * ndim, n)
        Voxels; per axis the sum of their positions, the first position and the one beyond the last, in
        the volume; the sum of the probabilities.

    Examples
    --------
    >>> found, columns = measure_objects(np.array([[0, 8, 8], [3, 3, 8]]), Box((0, 10), (2, 13)))
    >>> found.tolist(), columns[:3].tolist()
    ([3, 8], [[2, 3], [2, 1], [21, 35]])
    >>> columns[3:5].tolist(), columns[5:7].tolist()
    ([[1, 0], [10, 11]], [[2, 2], [12, 13]])
    """
    length = ids.shape[-1]
    values = np.zeros((0,), np.int32) if probability is None else np.ascontiguousarray(probability).reshape(-1)
    runs = _runs(np.ascontiguousarray(ids).reshape(-1), values, length)
    found, at = np.unique(runs[:, 0], return_inverse=True)
    n, ndim = len(found), ids.ndim
    voxels, total = np.zeros(n, np.int64), np.zeros(n, np.int64)
    sums = np.zeros((ndim, n), np.int64)
    start, stop = np.full((ndim, n), np.iinfo(np.int64).max), np.zeros((ndim, n), np.int64)
    lengths = runs[:, 2]
    np.add.at(voxels, at, lengths)
    np.add.at(total, at, runs[:, 3])
    for axis, position in enumerate(np.unravel_index(runs[:, 1], ids.shape)):
        first = position + box.start[axis]
        is_along = axis == ndim - 1
        last = first + lengths - 1 if is_along else first
        # The sum over a run along the axis is that of its ends, times half its length.
        np.add.at(sums[axis], at, (first + last) * lengths // 2)
        np.minimum.at(start[axis], at, first)
        np.maximum.at(stop[axis], at, last + 1)
    return found, np.concatenate([voxels[None], sums, start, stop, total[None]])


def add_measures(into: Integers, ids: Integers, columns: Integers, ndim: int) -> None:
    """Add the parts of objects to what is known of them, in place.

    Parameters
    ----------
    into : ndarray of int64, shape (2 + 3 * ndim, N)
        Made by `no_measures`.
    ids : ndarray of int64, shape (m,)
        Which column each part belongs to, any number of times.
    """
    is_start = np.arange(1 + ndim, 1 + 2 * ndim)
    is_stop = np.arange(1 + 2 * ndim, 1 + 3 * ndim)
    for row, values in enumerate(columns):
        reduce: np.ufunc = np.minimum if row in is_start else np.maximum if row in is_stop else np.add
        reduce.at(into[row], ids, values)


def no_measures(n: int, ndim: int) -> Integers:
    """Return the measures of ``n`` objects of which no part is known yet."""
    empty = np.zeros((n_columns(ndim), n), np.int64)
    empty[1 + ndim : 1 + 2 * ndim] = np.iinfo(np.int64).max
    return empty


@numba.njit(cache=True, nogil=True)
def _runs(ids: Array, values: npt.NDArray[np.int32], length: int) -> Integers:
    """List (id, first index, voxels, sum of values) of each run of one id in a line."""
    runs = np.empty((1024, 4), np.int64)
    n = 0
    has_values = len(values) > 0
    for begin in range(0, len(ids), length):
        before = np.int64(0)
        for i in range(begin, begin + length):
            value = np.int64(ids[i])
            if value == 0:
                before = value
                continue
            if value != before:
                if n == len(runs):
                    longer = np.empty((2 * n, 4), np.int64)
                    longer[:n] = runs
                    runs = longer
                runs[n, 0], runs[n, 1], runs[n, 2], runs[n, 3] = value, i, 0, 0
                n += 1
                before = value
            runs[n - 1, 2] += 1
            if has_values:
                runs[n - 1, 3] += values[i]
    return runs[:n]
