"""A natural cubic spline through a coarse grid of vectors, worked out a row of voxels at a time.

The spline is separable: a matrix per axis leads from the grid's points to the voxels. Two of
them are applied once per plane and once per row, to a handful of numbers; what is left for
each voxel is a sum of as many terms as the grid has points along x. Sums run over the points
in their order, so that a voxel gets the same bits in whatever box it is asked for.

Kernels see three axes: where there are two, z has one grid point and nothing moves along it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numba
import numpy as np
import numpy.typing as npt
from scipy.interpolate import CubicSpline

Floats = npt.NDArray[np.float64]

# Vectors (Gz, Gy, 3, Gx), and for z, y and x a matrix (grid, voxels).
Grid = tuple[Floats, Floats, Floats, Floats]
# What a plane and a row leave of the vectors, (Gy, 3, Gx) and (3, Gx), and a row's values (3, X).
Room = tuple[Floats, Floats, Floats]


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
    """Put axes of one point and one voxel, along which nothing moves, before two axes."""
    n_missing = 3 - len(vectors)
    points = (*(1,) * n_missing, *vectors.shape[1:])
    padded = np.zeros((3, *points))
    padded[n_missing:] = vectors.reshape(-1, *points)
    # Fresh copies: kernels would be compiled once more for arrays that are read-only or strided.
    z, y, x = [np.ones((1, 1))] * n_missing + [np.array(matrix, order="C") for matrix in bases]
    return np.ascontiguousarray(np.moveaxis(padded, 0, 2)), z, y, x


@numba.njit(cache=True, nogil=True)
def make_room(grid: Grid) -> Room:
    """Allocate what `displace_row` works in."""
    _, n_y, _, n_x = grid[0].shape
    return np.empty((n_y, 3, n_x)), np.empty((3, n_x)), np.empty((3, grid[3].shape[1]))


@numba.njit(cache=True, nogil=True)
def displace_row(grid: Grid, z: int, y: int, room: Room) -> Floats:
    """Return the values (3, X) of row ``y`` of plane ``z``; rows are asked for in C order."""
    vectors, along_z, along_y, along_x = grid
    plane, row, values = room
    if y == 0:
        contract(vectors.reshape(len(vectors), -1), along_z[:, z], plane.reshape(-1))
    contract(plane.reshape(len(plane), -1), along_y[:, y], row.reshape(-1))
    fill_row(row, along_x, values)
    return values


@numba.njit(cache=True, nogil=True)
def contract(vectors: Floats, weights: Floats, out: Floats) -> None:
    """Sum (grid, N) over the points along the first axis."""
    for i in range(len(out)):
        out[i] = vectors[0, i] * weights[0]
    for point in range(1, len(vectors)):
        for i in range(len(out)):
            out[i] += vectors[point, i] * weights[point]


@numba.njit(cache=True, nogil=True)
def fill_row(row: Floats, along_x: Floats, values: Floats) -> None:
    """Sum (3, Gx) over the points along x, of which there are at least 2, for each voxel of a row."""
    for axis in range(3):
        first, second = row[axis, 0], row[axis, 1]
        for x in range(values.shape[1]):
            values[axis, x] = first * along_x[0, x] + second * along_x[1, x]
        for point in range(2, row.shape[1]):
            weight = row[axis, point]
            for x in range(values.shape[1]):
                values[axis, x] += weight * along_x[point, x]


@numba.njit(cache=True, nogil=True)
def fill(grid: Grid, out: Floats) -> None:
    """Write all values (3, Z, Y, X)."""
    _, n_z, n_y, n_x = out.shape
    room = make_room(grid)
    for z in range(n_z):
        for y in range(n_y):
            values = displace_row(grid, z, y, room)
            for axis in range(3):
                for x in range(n_x):
                    out[axis, z, y, x] = values[axis, x]


def ranges(grid: Grid) -> tuple[Floats, Floats]:
    """Return the lowest and the highest of voxel plus value along z, y and x, (3,) each."""
    n_x = grid[3].shape[1]
    # Voxels of one x share an entry: minima over neighbours would not be vectorised.
    low, high = np.full((3, n_x), np.inf), np.full((3, n_x), -np.inf)
    _widen(grid, low, high)
    at_x = np.reshape([0, 0, 1], (3, 1)) * np.arange(n_x)
    return (low + at_x).min(axis=1), (high + at_x).max(axis=1)


@numba.njit(cache=True, nogil=True)
def _widen(grid: Grid, low: Floats, high: Floats) -> None:
    room = make_room(grid)
    for z in range(grid[1].shape[1]):
        for y in range(grid[2].shape[1]):
            values = displace_row(grid, z, y, room)
            at_row = (float(z), float(y), 0.0)
            for axis in range(3):
                for x in range(low.shape[1]):
                    at = at_row[axis] + values[axis, x]
                    low[axis, x] = at if at < low[axis, x] else low[axis, x]
                    high[axis, x] = at if at > high[axis, x] else high[axis, x]
