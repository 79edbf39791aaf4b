"""From voxels to the coefficients of the cubic B-splines through them [1]_.

References
----------
.. [1] Unser, Aldroubi, Eden: B-spline signal processing, part II. IEEE Trans. Signal Process.
   41(2), 1993.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from unetflow.geometry import mirror_indices

Singles = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

# The filter is sqrt(3) pole^|k|. It ends after so many voxels (with an error below 3e-6 of the
# range), so that no coefficient depends on what lies farther, or on where a box ends.
REACH = 10
_POLE = np.sqrt(3.0) - 2
_FILTER = _POLE ** np.arange(REACH + 1)
_FILTER = (_FILTER / (2 * _FILTER.sum() - 1)).astype(np.float32)


def coefficients(source: npt.NDArray[Any], is_moved: tuple[bool, bool, bool]) -> Singles:
    """Filter (C, Z, Y, X), mirrored at its ends, along the axes where something moves.

    Along the others nothing is interpolated: there the coefficients are the voxels.
    """
    out = source.astype(np.float32, order="C")
    n_z, n_y, n_x = source.shape[1:]
    for channel in out:
        if is_moved[2]:
            _filter_lines(channel.reshape(-1, n_x), _mirrored(n_x), _FILTER)
        if is_moved[1]:
            _filter_rows(channel, _mirrored(n_y), _FILTER)
        if is_moved[0]:
            _filter_planes(channel, _mirrored(n_z), _FILTER)
    return out


def _mirrored(n: int) -> Integers:
    """Return which voxel is seen at each place of an axis with the filter's reach on both sides."""
    return mirror_indices(-REACH, n + REACH, n)


@numba.njit(cache=True, nogil=True)
def _filter_lines(image: Singles, seen: Integers, weights: Singles) -> None:
    """Filter (N, X) along x, in place."""
    n_x = image.shape[1]
    line, reach = np.empty(len(seen), np.float32), len(weights) - 1
    for i in range(len(image)):
        row = image[i]
        for x in range(len(seen)):
            line[x] = row[seen[x]]
        for x in range(n_x):
            row[x] = weights[0] * line[reach + x]
        for k in range(1, reach + 1):
            before, behind, weight = line[reach - k :], line[reach + k :], weights[k]
            for x in range(n_x):
                row[x] += weight * (before[x] + behind[x])


@numba.njit(cache=True, nogil=True)
def _filter_rows(image: Singles, seen: Integers, weights: Singles) -> None:
    """Filter (Z, Y, X) along y, in place."""
    n_z, n_y, n_x = image.shape
    rows = np.empty((len(seen), n_x), np.float32)
    for z in range(n_z):
        for i in range(len(seen)):
            for x in range(n_x):
                rows[i, x] = image[z, seen[i], x]
        for y in range(n_y):
            _sum_rows(rows, y, weights, image[z, y])


@numba.njit(cache=True, nogil=True)
def _filter_planes(image: Singles, seen: Integers, weights: Singles) -> None:
    """Filter (Z, Y, X) along z, in place."""
    n_z, n_y, n_x = image.shape
    rows = np.empty((len(seen), n_x), np.float32)
    for y in range(n_y):
        for i in range(len(seen)):
            for x in range(n_x):
                rows[i, x] = image[seen[i], y, x]
        for z in range(n_z):
            _sum_rows(rows, z, weights, image[z, y])


@numba.njit(cache=True, nogil=True)
def _sum_rows(rows: Singles, first: int, weights: Singles, out: Singles) -> None:
    """Weigh the rows from ``first`` to twice the reach behind by how far they are from the middle."""
    reach = len(weights) - 1
    middle = rows[first + reach]
    for x in range(len(out)):
        out[x] = weights[0] * middle[x]
    for k in range(1, reach + 1):
        before, behind, weight = rows[first + reach - k], rows[first + reach + k], weights[k]
        for x in range(len(out)):
            out[x] += weight * (before[x] + behind[x])
