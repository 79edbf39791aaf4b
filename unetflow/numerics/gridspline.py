"""A natural cubic spline through a coarse grid of vectors, worked out slab by slab.

The spline is separable: a matrix per axis leads from the grid's points to the voxels. Two of
them are applied once per plane and once per row, to a handful of numbers; what is left for
each voxel is a sum of as many terms as the grid has points along x. Sums run over the points
in their order, so that a voxel gets the same bits in whatever box it is asked for.

There are always three axes: where space has two, z has one grid point and nothing moves along it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numba
import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline

Floats = npt.NDArray[np.float64]

# Vectors (Gz, Gy, 3, Gx), and for z, y and x a matrix (grid, voxels).
Grid = tuple[Floats, Floats, Floats, Floats]

# Voxels of a slab: what is worked out for them stays in a core's cache until it is used.
_SLAB = 2**13


@lru_cache(maxsize=64)
def basis(n: int, grid: int, derivative: int = 0) -> Floats:
    """Return the (grid, n) matrix from values at grid points to n voxels, or to their slopes.

    The first and the last point stand on the first and the last voxel. Along a single voxel
    everything has the first point's value, and no slope.
    """
    at = np.linspace(0.0, 1.0, n) if n > 1 else np.zeros(1)
    spline = CubicSpline(np.linspace(0.0, 1.0, grid), np.eye(grid), bc_type="natural")
    found = spline(at, derivative) / (n - 1) ** derivative if n > 1 else spline(at) * (1 - derivative)
    matrix: Floats = np.ascontiguousarray(found.T)
    matrix.flags.writeable = False
    return matrix


def in_three_axes(vectors: Floats, bases: Sequence[Floats]) -> Grid:
    """Bring vectors (ndim, *grid) and ndim matrices into the form of the kernels."""
    n_missing = 3 - len(vectors)
    points = (*(1,) * n_missing, *vectors.shape[1:])
    padded = np.zeros((3, *points))
    padded[n_missing:] = vectors.reshape(-1, *points)
    # Fresh copies: kernels would be compiled once more for arrays that are read-only or strided.
    z, y, x = [np.ones((1, 1))] * n_missing + [np.array(matrix, order="C") for matrix in bases]
    return np.ascontiguousarray(np.moveaxis(padded, 0, 2)), z, y, x


def slabs(*grids: Grid) -> Iterator[tuple[int, int, Floats]]:
    """Work out several grids over the same voxels.

    Yields
    ------
    z, y : int
        The plane and the first row of a slab.
    values : ndarray of float64, shape (grids, 3, rows, X)
        Good until the next slab is asked for.
    """
    n_z, n_y, n_x = (matrix.shape[1] for matrix in grids[0][1:])
    n_rows = min(max(1, _SLAB // n_x), n_y)
    room = np.empty(len(grids) * 3 * n_rows * n_x)
    for z in range(n_z):
        for y in range(0, n_y, n_rows):
            shape = len(grids), 3, min(n_rows, n_y - y), n_x
            values = room[: math.prod(shape)].reshape(shape)
            for grid, out in zip(grids, values, strict=True):
                _evaluate(grid, z, y, out)
            yield z, y, values


@numba.njit(cache=True, nogil=True)
def _evaluate(grid: Grid, z: int, y: int, out: Floats) -> None:
    vectors, along_z, along_y, along_x = grid
    n_z, n_y, _, n_x = vectors.shape
    plane, row = np.empty((n_y, 3 * n_x)), np.empty(3 * n_x)
    _contract(vectors.reshape(n_z, -1), along_z[:, z], plane.reshape(-1))
    for i in range(out.shape[1]):
        _contract(plane, along_y[:, y + i], row)
        for axis in range(3):
            _fill_row(row[axis * n_x : axis * n_x + n_x], along_x, out[axis, i])


@numba.njit(cache=True, nogil=True)
def _contract(vectors: Floats, weights: Floats, out: Floats) -> None:
    """Sum (grid, N) over the points along the first axis."""
    for i in range(len(out)):
        total = vectors[0, i] * weights[0]
        for point in range(1, len(vectors)):
            total += vectors[point, i] * weights[point]
        out[i] = total


@numba.njit(cache=True, nogil=True)
def _fill_row(row: Floats, along_x: Floats, values: Floats) -> None:
    """Sum (Gx,) over the points along x, of which there are at least 2, for each voxel."""
    first, second = row[0], row[1]
    for x in range(len(values)):
        values[x] = first * along_x[0, x] + second * along_x[1, x]
    for point in range(2, len(row)):
        weight = row[point]
        for x in range(len(values)):
            values[x] += weight * along_x[point, x]


def ranges(grid: Grid) -> tuple[Floats, Floats]:
    """Return the lowest and the highest of voxel plus value along z, y and x, (3,) each."""
    n_x = grid[3].shape[1]
    # Voxels of one x share an entry: minima over neighbours would not be vectorised.
    low, high = np.full((3, n_x), np.inf), np.full((3, n_x), -np.inf)
    for z, y, (values,) in slabs(grid):
        _widen(values, z, y, low, high)
    at_x = np.reshape([0, 0, 1], (3, 1)) * np.arange(n_x)
    return (low + at_x).min(axis=1), (high + at_x).max(axis=1)


@numba.njit(cache=True, nogil=True)
def _widen(values: Floats, z: int, y: int, low: Floats, high: Floats) -> None:
    for i in range(values.shape[1]):
        place = (float(z), float(y + i), 0.0)
        for axis in range(3):
            row, lowest, highest, offset = values[axis, i], low[axis], high[axis], place[axis]
            for x in range(len(row)):
                at = offset + row[x]
                lowest[x] = at if at < lowest[x] else lowest[x]
                highest[x] = at if at > highest[x] else highest[x]
