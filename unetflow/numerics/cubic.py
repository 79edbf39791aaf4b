"""Read an array at displaced voxels by cubic B-splines [1]_.

Voxels are turned into coefficients of splines by a filter along each axis, and the splines are
summed at each displaced voxel, 4 along each axis. Axes are as in `resample`.

References
----------
.. [1] Unser, Aldroubi, Eden: B-spline signal processing, part II. IEEE Trans. Signal Process.
   41(2), 1993.
"""

from __future__ import annotations

import numba
import numpy as np

from unetflow.numerics.gridspline import Grid, displace_row, make_room
from unetflow.numerics.resample import Array, Integers, Moved, Singles, Voxel, mirrored, place_row

# The filter from voxels to spline coefficients is sqrt(3) pole^|k|. It ends after so many voxels
# (with an error below 3e-6 of the range), for then no coefficient depends on where a box ends.
REACH = 10
_POLE = np.sqrt(3.0) - 2
_FILTER = _POLE ** np.arange(REACH + 1)
_FILTER = (_FILTER / (2 * _FILTER.sum() - 1)).astype(np.float32)

_ONE, _SIXTH = np.float32(1), np.float32(1 / 6)


def coefficients(source: Array, is_moved: Moved) -> Singles:
    """Return the coefficients of the cubic B-splines through the voxels of (C, Z, Y, X).

    They are the voxels themselves along axes where nothing moves.
    """
    out = source.astype(np.float32, order="C")
    for channel in out:
        _filter(channel, is_moved, _FILTER)
    return out


@numba.njit(cache=True, nogil=True)
def _filter(image: Singles, is_moved: Moved, weights: Singles) -> None:
    """Filter (Z, Y, X) in place; lines wait in a buffer with room for mirrored ones on both sides."""
    n_z, n_y, n_x = image.shape
    reach = len(weights) - 1
    line = np.empty(n_x + 2 * reach, np.float32)
    rows = np.empty((n_y + 2 * reach, n_x), np.float32)
    planes = np.empty((n_z + 2 * reach, n_x), np.float32)
    for z in range(n_z):
        if is_moved[2]:
            for y in range(n_y):
                _copy(image[z, y], line[reach : reach + n_x])
                for k in range(1, reach + 1):
                    line[reach - k] = line[reach + mirrored(-k, n_x)]
                    line[reach + n_x - 1 + k] = line[reach + mirrored(n_x - 1 + k, n_x)]
                _weigh(line[reach : reach + n_x], weights[0], image[z, y])
                for k in range(1, reach + 1):
                    left, right = line[reach - k : reach - k + n_x], line[reach + k : reach + k + n_x]
                    _add_pair(left, right, weights[k], image[z, y])
        if is_moved[1]:
            for y in range(n_y):
                _copy(image[z, y], rows[reach + y])
            _mirror(rows, reach)
            for y in range(n_y):
                _filter_row(rows, y, weights, image[z, y])
    if is_moved[0]:
        for y in range(n_y):
            for z in range(n_z):
                _copy(image[z, y], planes[reach + z])
            _mirror(planes, reach)
            for z in range(n_z):
                _filter_row(planes, z, weights, image[z, y])


@numba.njit(cache=True, nogil=True)
def _mirror(rows: Singles, reach: int) -> None:
    n = len(rows) - 2 * reach
    for k in range(1, reach + 1):
        _copy(rows[reach + mirrored(-k, n)], rows[reach - k])
        _copy(rows[reach + mirrored(n - 1 + k, n)], rows[reach + n - 1 + k])


@numba.njit(cache=True, nogil=True)
def _filter_row(rows: Singles, first: int, weights: Singles, out: Singles) -> None:
    """Sum the rows that lie within reach of the middle one, ``first`` being the farthest before."""
    reach = len(weights) - 1
    middle = first + reach
    _weigh(rows[middle], weights[0], out)
    for k in range(1, reach + 1):
        _add_pair(rows[middle - k], rows[middle + k], weights[k], out)


@numba.njit(cache=True, nogil=True)
def _copy(row: Singles, out: Singles) -> None:
    for x in range(len(out)):
        out[x] = row[x]


@numba.njit(cache=True, nogil=True)
def _weigh(row: Singles, weight: np.float32, out: Singles) -> None:
    for x in range(len(out)):
        out[x] = weight * row[x]


@numba.njit(cache=True, nogil=True)
def _add_pair(left: Singles, right: Singles, weight: np.float32, out: Singles) -> None:
    for x in range(len(out)):
        out[x] += weight * (left[x] + right[x])


@numba.njit(cache=True, nogil=True)
def cubic(source: Singles, grid: Grid, first: Voxel, is_moved: Moved, out: Singles) -> None:
    """Write the sum of the cubic B-splines whose coefficients are (C, Z, Y, X)."""
    n_channels, n_z, n_y, n_x = out.shape
    shape = source.shape[1:]
    room = make_room(grid)
    voxels, starts = np.empty((3, n_x), np.int64), np.empty(n_x, np.int64)
    fractions, weights = np.empty((3, n_x), np.float32), np.empty((3, 4, n_x), np.float32)
    for z in range(n_z):
        for y in range(n_y):
            values = displace_row(grid, z, y, room)
            at = (first[0] + z, first[1] + y, first[2])
            place_row(values, at, is_moved, 1, 2, shape, voxels, fractions, starts)
            for axis in range(3):
                _weigh_taps(fractions[axis], is_moved[axis], weights[axis])
            for c in range(n_channels):
                _cubic_row(source[c], voxels, weights, starts, is_moved, out[c, z, y])


@numba.njit(cache=True, nogil=True)
def _weigh_taps(fractions: Singles, is_moved: bool, weights: Singles) -> None:
    """Write the B-splines of the voxel before a position, and the three behind, (4, X)."""
    if not is_moved:
        weights[:] = 0
        weights[1] = 1
        return
    for x in range(len(fractions)):
        t = fractions[x]
        rest = _ONE - t
        weights[0, x] = rest * rest * rest * _SIXTH
        weights[1, x] = (np.float32(4) + t * t * (np.float32(3) * t - np.float32(6))) * _SIXTH
        weights[2, x] = (np.float32(4) + rest * rest * (np.float32(3) * rest - np.float32(6))) * _SIXTH
        weights[3, x] = t * t * t * _SIXTH


@numba.njit(cache=True, nogil=True)
def _cubic_row(
    source: Singles, voxels: Integers, weights: Singles, starts: Integers, is_moved: Moved, out: Singles
) -> None:
    flat = source.reshape(-1)
    _, n_y, n_x = source.shape
    to_y, to_z = np.uint64(n_x), np.uint64(n_y * n_x)
    # The one voxel along an axis where nothing moves has the second of the four weights.
    first_z, n_planes = (0, 4) if is_moved[0] else (1, 1)
    first_y, n_rows = (0, 4) if is_moved[1] else (1, 1)
    # Unsigned: numba lets a signed index count from the end, and asks so at every voxel.
    a, b, c = np.uint64(1), np.uint64(2), np.uint64(3)
    for x in range(len(out)):
        if starts[x] < 0:
            out[x] = _cubic_at_border(source, voxels[:, x], weights[:, :, x])
            continue
        w0, w1, w2, w3 = weights[2, 0, x], weights[2, 1, x], weights[2, 2, x], weights[2, 3, x]
        start, total = np.uint64(starts[x]), np.float32(0)
        for i in range(first_z, first_z + n_planes):
            at, in_plane = start, np.float32(0)
            for j in range(first_y, first_y + n_rows):
                row = (w0 * flat[at] + w1 * flat[at + a]) + (w2 * flat[at + b] + w3 * flat[at + c])
                in_plane += weights[1, j, x] * row
                at += to_y
            total += weights[0, i, x] * in_plane
            start += to_z
        out[x] = total


@numba.njit(cache=True, nogil=True)
def _cubic_at_border(source: Singles, voxel: Integers, weights: Singles) -> np.float32:
    n_z, n_y, n_x = source.shape
    total = np.float32(0)
    taps = np.empty(4, np.float32)
    for i in range(4):
        in_plane = np.float32(0)
        for j in range(4):
            z, y = mirrored(voxel[0] + i - 1, n_z), mirrored(voxel[1] + j - 1, n_y)
            for k in range(4):
                taps[k] = weights[2, k] * source[z, y, mirrored(voxel[2] + k - 1, n_x)]
            in_plane += weights[1, j] * ((taps[0] + taps[1]) + (taps[2] + taps[3]))
        total += weights[0, i] * in_plane
    return total
