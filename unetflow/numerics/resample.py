"""Read an array at displaced voxels: the nearest ones, linearly, or by cubic B-splines.

A displaced position is a whole voxel and a fraction. The fraction follows from the displacement
alone, so that a larger box of the same source gives the same bits. What a position asks for
beyond the source is mirrored there; the box that `elastic.source_box` gives has no such position.

Arrays have three axes behind their channels; where space has two, z has one voxel. Along an axis
where nothing moves, voxels are read whole. Every kernel fills one slab of rows of ``out``:

    values      its displacements (3, rows, X)
    place       its plane and its first row
    first       where the first voxel of ``out`` lies in the source
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Singles = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
# One entry for each of z, y and x.
Voxel = tuple[int, int, int]
Moved = tuple[bool, bool, bool]
Place = tuple[int, int]

_ONE, _SIXTH = np.float32(1), np.float32(1 / 6)


@numba.njit(cache=True, nogil=True)
def nearest(source: Array, values: Floats, place: Place, first: Voxel, out: Array) -> None:
    """Copy the nearest voxel of (C, Z, Y, X), and of two as near the one behind."""
    z, shape = place[0], source.shape[1:]
    flat, taken = source.reshape(len(source), -1), np.empty(values.shape[2], np.int64)
    for i in range(values.shape[1]):
        y = place[1] + i
        _find_nearest(values[:, i], (first[0] + z, first[1] + y, first[2]), shape, taken)
        for c in range(len(source)):
            for x in range(len(taken)):
                out[c, z, y, x] = flat[c, np.uint64(taken[x])]


@numba.njit(cache=True, nogil=True)
def linear(source: Singles, values: Floats, place: Place, first: Voxel, is_moved: Moved, out: Singles) -> None:
    """Write the linear interpolation of (C, Z, Y, X)."""
    z, n_x = place[0], values.shape[2]
    voxels, fractions, starts = np.empty((3, n_x), np.int64), np.empty((3, n_x), np.float32), np.empty(n_x, np.int64)
    for i in range(values.shape[1]):
        y = place[1] + i
        at = (first[0] + z, first[1] + y, first[2])
        _split(values[:, i], at, is_moved, 0, 1, source.shape[1:], voxels, fractions, starts)
        for c in range(len(source)):
            _linear_row(source[c], voxels, fractions, starts, is_moved, out[c, z, y])


@numba.njit(cache=True, nogil=True)
def truth(
    target: Array, weight: Singles, smallest: Singles, values: Floats, place: Place, first: Voxel, is_moved: Moved,
    out_target: Array, out_weight: Singles,
) -> None:  # fmt: skip
    """Write the nearest target, and the linear interpolation of the weights (C, Z, Y, X).

    A weight is 0 where the nearest one is, else at least ``smallest`` (C, 256) of its target.
    """
    linear(weight, values, place, first, is_moved, out_weight)
    z, shape = place[0], target.shape[1:]
    flat_target, flat_weight = target.reshape(len(target), -1), weight.reshape(len(weight), -1)
    taken = np.empty(values.shape[2], np.int64)
    for i in range(values.shape[1]):
        y = place[1] + i
        _find_nearest(values[:, i], (first[0] + z, first[1] + y, first[2]), shape, taken)
        for c in range(len(target)):
            for x in range(len(taken)):
                at = np.uint64(taken[x])
                found, mean = flat_target[c, at], out_weight[c, z, y, x]
                least = smallest[c, found]
                kept = least if mean < least else mean
                out_target[c, z, y, x] = found
                out_weight[c, z, y, x] = kept if flat_weight[c, at] != 0 else np.float32(0)


@numba.njit(cache=True, nogil=True)
def cubic(source: Singles, values: Floats, place: Place, first: Voxel, is_moved: Moved, out: Singles) -> None:
    """Write the sum of the cubic B-splines whose coefficients are (C, Z, Y, X)."""
    z, n_x = place[0], values.shape[2]
    voxels, fractions, starts = np.empty((3, n_x), np.int64), np.empty((3, n_x), np.float32), np.empty(n_x, np.int64)
    weights = np.empty((3, 4, n_x), np.float32)
    for i in range(values.shape[1]):
        y = place[1] + i
        at = (first[0] + z, first[1] + y, first[2])
        _split(values[:, i], at, is_moved, 1, 2, source.shape[1:], voxels, fractions, starts)
        for axis in range(3):
            _weigh_taps(fractions[axis], is_moved[axis], weights[axis])
        for c in range(len(source)):
            _cubic_row(source[c], voxels, weights, starts, is_moved, out[c, z, y])


@numba.njit(cache=True, nogil=True)
def _find_nearest(values: Floats, at: Voxel, shape: Voxel, taken: Integers) -> None:
    """Write the flat index of the voxel nearest to each of a row's positions, which start at ``at``."""
    for x in range(len(taken)):
        i = min(max(at[0] + int(np.floor(values[0, x] + 0.5)), 0), shape[0] - 1)
        j = min(max(at[1] + int(np.floor(values[1, x] + 0.5)), 0), shape[1] - 1)
        k = min(max(at[2] + x + int(np.floor(values[2, x] + 0.5)), 0), shape[2] - 1)
        taken[x] = (i * shape[1] + j) * shape[2] + k


@numba.njit(cache=True, nogil=True)
def _split(
    values: Floats, at: Voxel, is_moved: Moved, before: int, after: int, shape: Voxel,
    voxels: Integers, fractions: Singles, starts: Integers,
) -> None:  # fmt: skip
    """Split a row's positions, which start at ``at``, into voxels (3, X) and fractions (3, X).

    ``starts`` (X,) gets the flat index of the first voxel read, so many voxels ``before`` along
    the axes that move; -1 where one of those up to so many ``after`` lies outside.
    """
    for axis in range(3):
        step = 1 if axis == 2 else 0
        for x in range(len(starts)):
            whole = np.floor(values[axis, x])
            fractions[axis, x] = np.float32(values[axis, x] - whole)
            voxels[axis, x] = np.int64(whole) + at[axis] + step * x
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
    planes, corners = np.empty(2, np.float32), np.empty((2, 2), np.float32)
    n_z, n_y, n_x = source.shape
    for i in range(2):
        for j in range(2):
            for k in range(2):
                z, y, x = _mirrored(voxel[0] + i, n_z), _mirrored(voxel[1] + j, n_y), _mirrored(voxel[2] + k, n_x)
                corners[j, k] = source[z, y, x]
        above = corners[0, 0] + fraction[2] * (corners[0, 1] - corners[0, 0])
        below = corners[1, 0] + fraction[2] * (corners[1, 1] - corners[1, 0])
        planes[i] = above + fraction[1] * (below - above)
    value: np.float32 = planes[0] + fraction[0] * (planes[1] - planes[0])
    return value


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
    """Sum the splines along a row of one channel (Z, Y, X)."""
    flat = source.reshape(-1)
    _, n_y, n_x = source.shape
    to_y, to_z = np.uint64(n_x), np.uint64(n_y * n_x)
    # The one voxel along an axis where nothing moves has the second of the four weights.
    first_z, n_planes = (0, 4) if is_moved[0] else (1, 1)
    first_y, n_rows = (0, 4) if is_moved[1] else (1, 1)
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
    total, taps = np.float32(0), np.empty(4, np.float32)
    for i in range(4):
        in_plane = np.float32(0)
        for j in range(4):
            z, y = _mirrored(voxel[0] + i - 1, n_z), _mirrored(voxel[1] + j - 1, n_y)
            for k in range(4):
                taps[k] = weights[2, k] * source[z, y, _mirrored(voxel[2] + k - 1, n_x)]
            in_plane += weights[1, j] * ((taps[0] + taps[1]) + (taps[2] + taps[3]))
        total += weights[0, i] * in_plane
    return total


@numba.njit(cache=True, nogil=True)
def _mirrored(i: int, n: int) -> int:
    """Return the voxel that is seen at ``i`` of an axis mirrored at both ends."""
    if n == 1:
        return 0
    seen = abs(i) % (2 * n - 2)
    return seen if seen < n else 2 * n - 2 - seen
