"""By how much a displacement must shrink so that the patch does not fold over itself.

At a voxel the map x -> x + f u(x) has the Jacobian det(I + f G), G being the slopes of u: a
polynomial of f whose coefficients are G's invariants. Every voxel is asked, a row at a time.
Most rows need no voxel: what is left of the grid's vectors there bounds the slopes along it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt

from unetflow.numerics.gridspline import basis, contract, fill_row, in_three_axes

Floats = npt.NDArray[np.float64]

SMALLEST_JACOBIAN = 0.2

# Bounds are sums of a few rounded terms: they must pass by more than that.
_ROUNDING = 1e-6


def largest_factor(vectors: Floats, shape: Sequence[int]) -> float:
    """Return the largest factor in [0, 1] at which every voxel's Jacobian exceeds the bound.

    Parameters
    ----------
    vectors : ndarray of float64, shape (ndim, *grid)
        In voxels, on a grid over the patch.
    shape : sequence of int
        Of the patch.

    Examples
    --------
    >>> vectors = np.zeros((2, 2, 2))
    >>> vectors[1, :, 1] = -10  # the last column moves onto the first
    >>> round(largest_factor(vectors, (5, 11)), 6)
    0.8
    """
    points = vectors.shape[1:]
    grid, *values = in_three_axes(vectors, [basis(n, g) for n, g in zip(shape, points, strict=True)])
    _, *slopes = in_three_axes(vectors, [basis(n, g, 1) for n, g in zip(shape, points, strict=True)])
    slopes[: 3 - len(shape)] = [np.zeros((1, 1))] * (3 - len(shape))
    # Three sets of bases, each with the slopes of one axis.
    z, y, x = (
        np.stack([slopes[axis] if axis == along else values[axis] for along in range(3)]) for axis in range(3)
    )
    factor, before = 1.0, 2.0
    # A smaller factor may again be too much for a voxel that passed: ask until all agree.
    while factor < before:
        before = factor
        factor = _shrink(grid, (z, y, x), factor, SMALLEST_JACOBIAN)
    return float(factor)


@numba.njit(cache=True, nogil=True)
def _shrink(vectors: Floats, bases: tuple[Floats, Floats, Floats], factor: float, bound: float) -> float:
    """Ask each voxel once, with the factor that those before it left."""
    to_z, to_y, to_x = bases
    n_z, n_y, _, n_x = vectors.shape
    # First index: the axis of the slope. Second: the axis of the displacement.
    planes, rows = np.empty((3, n_y, 3 * n_x)), np.empty((3, 3, n_x))
    gradient, room = np.empty((3, 3, to_x.shape[2])), np.empty((3, 3))
    reach = np.array([np.abs(to_x[along]).sum(axis=0).max() for along in range(3)])
    for z in range(to_z.shape[2]):
        for along in range(3):
            contract(vectors.reshape(n_z, -1), to_z[along, :, z], planes[along].reshape(-1))
        for y in range(to_y.shape[2]):
            for along in range(3):
                contract(planes[along], to_y[along, :, y], rows[along].reshape(-1))
            if _is_tame(rows, reach, factor, bound, room):
                continue
            for along in range(3):
                fill_row(rows[along], to_x[along], gradient[along])
            factor = _shrink_row(gradient, factor, bound)
    return factor


@numba.njit(cache=True, nogil=True)
def _is_tame(rows: Floats, reach: Floats, factor: float, bound: float, m: Floats) -> bool:
    """Say whether no Jacobian along a row can come down to the bound.

    With slopes of at most m, the determinant is at least that of the diagonal less all other
    products at their largest. ``m`` (3, 3) is room for them.
    """
    for along in range(3):
        for axis in range(3):
            low, high = rows[along, axis, 0], rows[along, axis, 0]
            for point in range(1, rows.shape[2]):
                low, high = min(low, rows[along, axis, point]), max(high, rows[along, axis, point])
            # Slopes along x of a constant are zero: only the spread about the middle counts.
            largest = (high - low) / 2 if along == 2 else max(high, -low)
            m[along, axis] = factor * reach[along] * largest
    a, b, c = m[0, 0], m[1, 1], m[2, 2]
    if max(a, b, c) >= 1:
        return False
    lowest = (
        (1 - a) * (1 - b) * (1 - c)
        - (1 + a) * m[1, 2] * m[2, 1]
        - (1 + b) * m[0, 2] * m[2, 0]
        - (1 + c) * m[0, 1] * m[1, 0]
        - m[0, 1] * m[1, 2] * m[2, 0]
        - m[0, 2] * m[1, 0] * m[2, 1]
    )
    return bool(lowest > bound + _ROUNDING)


@numba.njit(cache=True, nogil=True)
def _shrink_row(gradient: Floats, factor: float, bound: float) -> float:
    n_folded = 0
    for x in range(gradient.shape[2]):
        trace, minors, determinant = _invariants(gradient, x)
        n_folded += not 1 + factor * (trace + factor * (minors + factor * determinant)) > bound
    if n_folded == 0:
        return factor
    for x in range(gradient.shape[2]):
        trace, minors, determinant = _invariants(gradient, x)
        if 1 + factor * (trace + factor * (minors + factor * determinant)) > bound:
            continue
        high, low = factor, factor
        while low > 0 and not 1 + low * (trace + low * (minors + low * determinant)) > bound:
            high, low = low, max(0.0, low - factor / 64)
        for _ in range(50):
            middle = (low + high) / 2
            if 1 + middle * (trace + middle * (minors + middle * determinant)) > bound:
                low = middle
            else:
                high = middle
        factor = low
    return factor


@numba.njit(cache=True, nogil=True)
def _invariants(g: Floats, x: int) -> tuple[float, float, float]:
    """Return trace, sum of the principal minors and determinant of a voxel's slopes."""
    yz = g[1, 1, x] * g[2, 2, x] - g[1, 2, x] * g[2, 1, x]
    xz = g[0, 0, x] * g[2, 2, x] - g[0, 2, x] * g[2, 0, x]
    xy = g[0, 0, x] * g[1, 1, x] - g[0, 1, x] * g[1, 0, x]
    determinant = (
        g[0, 0, x] * yz
        - g[0, 1, x] * (g[1, 0, x] * g[2, 2, x] - g[1, 2, x] * g[2, 0, x])
        + g[0, 2, x] * (g[1, 0, x] * g[2, 1, x] - g[1, 1, x] * g[2, 0, x])
    )
    return g[0, 0, x] + g[1, 1, x] + g[2, 2, x], yz + xz + xy, determinant
