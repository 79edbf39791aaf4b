"""Read an array at displaced voxels: nearest, or linear.

A displaced position is a whole voxel and a fraction. The fraction follows from the displacement
alone, so that a larger box of the same source gives the same bits. What a position asks for
beyond the source is mirrored there; the box that `elastic.source_box` gives has no such position.

All arrays have three axes behind their channels; where there are two, z has one voxel. Along an
axis where nothing moves, voxels are read whole.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from unetflow.numerics.gridspline import Floats, Grid, displace_row, make_room

Array = npt.NDArray[Any]
Singles = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
# One entry for each of z, y and x.
Voxel = tuple[int, int, int]
Moved = tuple[bool, bool, bool]


@numba.njit(cache=True, nogil=True)
def mirrored(i: int, n: int) -> int:
    """Return the voxel that is seen at ``i`` of an axis mirrored at both ends."""
    if n == 1:
        return 0
    seen = abs(i) % (2 * n - 2)
    return seen if seen < n else 2 * n - 2 - seen


@numba.njit(cache=True, nogil=True)
def place_row(
    values: Floats, first: Voxel, is_moved: Moved, before: int, after: int,
    shape: Voxel, voxels: Integers, fractions: Singles, starts: Integers,
) -> None:  # fmt: skip
    """Split a row's positions, which start at ``first``, into voxels (3, X) and fractions (3, X).

    ``starts`` (X,) gets the flat index of the first voxel read, so many voxels ``before`` along
    the axes that move; -1 where one of those up to so many ``after`` lies outside.
    """
    for axis in range(3):
        step = 1 if axis == 2 else 0
        for x in range(len(starts)):
            whole = np.floor(values[axis, x])
            fractions[axis, x] = np.float32(values[axis, x] - whole)
            voxels[axis, x] = np.int64(whole) + first[axis] + step * x
    n_z, n_y, n_x = shape
    low_z, high_z = (before, after) if is_moved[0] else (0, 0)
    low_y, high_y = (before, after) if is_moved[1] else (0, 0)
    for x in range(len(starts)):
        z, y = voxels[0, x] - low_z, voxels[1, x] - low_y
        is_inside = (z >= 0) & (voxels[0, x] + high_z < n_z) & (y >= 0) & (voxels[1, x] + high_y < n_y)
        is_inside &= (voxels[2, x] >= before) & (voxels[2, x] + after < n_x)
        start = (z * n_y + y) * n_x + voxels[2, x] - before
        starts[x] = start if is_inside else -1


@numba.njit(cache=True, nogil=True)
def nearest(source: Array, grid: Grid, first: Voxel, out: Array) -> None:
    """Copy the nearest voxel of (C, Z, Y, X), and of two as near the one behind."""
    n_channels, n_z, n_y, n_x = out.shape
    room = make_room(grid)
    for z in range(n_z):
        for y in range(n_y):
            values = displace_row(grid, z, y, room)
            for x in range(n_x):
                i = _nearest_voxel(values[0, x], first[0] + z, source.shape[1])
                j = _nearest_voxel(values[1, x], first[1] + y, source.shape[2])
                k = _nearest_voxel(values[2, x], first[2] + x, source.shape[3])
                for c in range(n_channels):
                    out[c, z, y, x] = source[c, i, j, k]


@numba.njit(cache=True, nogil=True)
def _nearest_voxel(displacement: float, voxel: int, n: int) -> int:
    at = int(np.floor(displacement + 0.5)) + voxel
    return min(max(at, 0), n - 1)


@numba.njit(cache=True, nogil=True)
def linear(source: Singles, grid: Grid, first: Voxel, is_moved: Moved, out: Singles) -> None:
    """Write the linear interpolation of (C, Z, Y, X)."""
    n_channels, n_z, n_y, n_x = out.shape
    shape = source.shape[1:]
    room = make_room(grid)
    voxels, starts = np.empty((3, n_x), np.int64), np.empty(n_x, np.int64)
    fractions = np.empty((3, n_x), np.float32)
    for z in range(n_z):
        for y in range(n_y):
            values = displace_row(grid, z, y, room)
            at = (first[0] + z, first[1] + y, first[2])
            place_row(values, at, is_moved, 0, 1, shape, voxels, fractions, starts)
            for c in range(n_channels):
                _linear_row(source[c], voxels, fractions, starts, is_moved, out[c, z, y])


@numba.njit(cache=True, nogil=True)
def _linear_row(
    source: Singles, voxels: Integers, fractions: Singles, starts: Integers, is_moved: Moved, out: Singles
) -> None:
    """Interpolate a row of one channel (Z, Y, X)."""
    flat = source.reshape(-1)
    _, n_y, n_x = source.shape
    to_y = np.uint64(n_x if is_moved[1] else 0)
    to_z = np.uint64(n_y * n_x)
    for x in range(len(out)):
        if starts[x] < 0:
            out[x] = _linear_at_border(source, voxels[:, x], fractions[:, x])
            continue
        start = np.uint64(starts[x])
        value = _in_plane(flat, start, start + to_y, fractions[2, x], fractions[1, x])
        if is_moved[0]:
            behind = _in_plane(flat, start + to_z, start + to_z + to_y, fractions[2, x], fractions[1, x])
            value += fractions[0, x] * (behind - value)
        out[x] = value


@numba.njit(cache=True, nogil=True)
def _in_plane(
    flat: Singles, upper: np.uint64, lower: np.uint64, to_right: np.float32, to_lower: np.float32
) -> np.float32:
    # Unsigned: numba lets a signed index count from the end, and asks so at every voxel.
    step = np.uint64(1)
    a, b, c, d = flat[upper], flat[upper + step], flat[lower], flat[lower + step]
    above = a + to_right * (b - a)
    below = c + to_right * (d - c)
    value: np.float32 = above + to_lower * (below - above)
    return value


@numba.njit(cache=True, nogil=True)
def _linear_at_border(source: Singles, voxel: Integers, fraction: Singles) -> np.float32:
    planes = np.empty(2, np.float32)
    corners = np.empty((2, 2), np.float32)
    n_z, n_y, n_x = source.shape
    for i in range(2):
        for j in range(2):
            for k in range(2):
                corners[j, k] = source[
                    mirrored(voxel[0] + i, n_z), mirrored(voxel[1] + j, n_y), mirrored(voxel[2] + k, n_x)
                ]
        above = corners[0, 0] + fraction[2] * (corners[0, 1] - corners[0, 0])
        below = corners[1, 0] + fraction[2] * (corners[1, 1] - corners[1, 0])
        planes[i] = above + fraction[1] * (below - above)
    value: np.float32 = planes[0] + fraction[0] * (planes[1] - planes[0])
    return value


@numba.njit(cache=True, nogil=True)
def truth(
    target: Array, weight: Singles, smallest: Singles, grid: Grid, first: Voxel, is_moved: Moved,
    out_target: Array, out_weight: Singles,
) -> None:  # fmt: skip
    """Write the nearest target, and the linear interpolation of the weights (C, Z, Y, X).

    A weight is 0 where the nearest one is, else at least ``smallest`` (C, 256) of its target.
    """
    n_channels, n_z, n_y, n_x = out_target.shape
    shape = target.shape[1:]
    room = make_room(grid)
    voxels, starts = np.empty((3, n_x), np.int64), np.empty(n_x, np.int64)
    fractions = np.empty((3, n_x), np.float32)
    for z in range(n_z):
        for y in range(n_y):
            values = displace_row(grid, z, y, room)
            at = (first[0] + z, first[1] + y, first[2])
            place_row(values, at, is_moved, 0, 1, shape, voxels, fractions, starts)
            for c in range(n_channels):
                _linear_row(weight[c], voxels, fractions, starts, is_moved, out_weight[c, z, y])
            for x in range(n_x):
                i = _nearest_voxel(values[0, x], at[0], shape[0])
                j = _nearest_voxel(values[1, x], at[1], shape[1])
                k = _nearest_voxel(values[2, x], at[2] + x, shape[2])
                starts[x] = (i * shape[1] + j) * shape[2] + k
            for c in range(n_channels):
                _truth_row(target[c], weight[c], smallest[c], starts, out_target[c, z, y], out_weight[c, z, y])


@numba.njit(cache=True, nogil=True)
def _truth_row(
    target: Array, weight: Singles, smallest: Singles, nearest_voxels: Integers, out_target: Array, out_weight: Singles
) -> None:
    flat_target, flat_weight = target.reshape(-1), weight.reshape(-1)
    for x in range(len(nearest_voxels)):
        at = np.uint64(nearest_voxels[x])
        found = flat_target[at]
        out_target[x] = found
        least = smallest[found]
        kept = least if out_weight[x] < least else out_weight[x]
        out_weight[x] = kept if flat_weight[at] != 0 else np.float32(0)
