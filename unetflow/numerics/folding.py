"""By how much a displacement must shrink so that the patch does not fold over itself.

At a voxel the map x -> x + f u(x) has the Jacobian det(I + f G), G being the slopes of u: a
polynomial of f whose coefficients are G's invariants. Every voxel is asked, slab by slab, unless
the slopes' bounds over the whole patch already tell that none can fold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt

from unetflow.numerics.gridspline import Grid, basis, in_three_axes, slabs

Floats = npt.NDArray[np.float64]

SMALLEST_JACOBIAN = 0.2

# A bound is a sum of a few rounded terms: it must pass by more than that.
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
    if smallest_possible(vectors, shape) > SMALLEST_JACOBIAN + _ROUNDING:
        return 1.0
    grids = [_slopes(vectors, shape, axis) for axis in range(len(shape))]
    factor, before = 1.0, 2.0
    # A smaller factor may again be too much for a voxel that passed: ask until all agree.
    while factor < before:
        before = factor
        for _, _, gradient in slabs(*grids):
            factor = _shrink(gradient.reshape(len(shape), 3, -1), factor, SMALLEST_JACOBIAN)
    return float(factor)


def smallest_possible(vectors: Floats, shape: Sequence[int]) -> float:
    """Return what no Jacobian of the patch can be less than; minus infinity if nothing is known.

    Slopes of at most m give a determinant of at least that of I - diag(m), less all products
    of the other slopes at their largest.
    """
    m = np.zeros((3, 3))
    for along in range(len(shape)):
        reach = 1.0
        for axis, (n, points) in enumerate(zip(shape, vectors.shape[1:], strict=True)):
            reach *= float(np.abs(basis(n, points, int(axis == along))).sum(axis=0).max())
        # A constant has no slope: only the spread about the middle counts along that axis.
        spread = np.ptp(vectors, axis=1 + along).reshape(len(shape), -1).max(axis=1) / 2
        m[3 - len(shape) + along, 3 - len(shape) :] = reach * spread
    a, b, c = m.diagonal()
    if max(a, b, c) >= 1:
        return -np.inf
    pairs = (1 + a) * m[1, 2] * m[2, 1] + (1 + b) * m[0, 2] * m[2, 0] + (1 + c) * m[0, 1] * m[1, 0]
    rounds = m[0, 1] * m[1, 2] * m[2, 0] + m[0, 2] * m[1, 0] * m[2, 1]
    return float((1 - a) * (1 - b) * (1 - c) - pairs - rounds)


def _slopes(vectors: Floats, shape: Sequence[int], axis: int) -> Grid:
    """Return the grid whose values are the slopes along ``axis``."""
    bases = [basis(n, g, int(a == axis)) for a, (n, g) in enumerate(zip(shape, vectors.shape[1:], strict=True))]
    return in_three_axes(vectors, bases)


@numba.njit(cache=True, nogil=True)
def _shrink(gradient: Floats, factor: float, bound: float) -> float:
    """Ask each voxel of (ndim, 3, N) once, with the factor that those before it left."""
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
    """Return trace, sum of the principal minors and determinant of a voxel's slopes.

    The first axis of ``g`` lacks what space lacks, the second is always of three.
    """
    if len(g) == 2:
        return g[0, 1, x] + g[1, 2, x], g[0, 1, x] * g[1, 2, x] - g[0, 2, x] * g[1, 1, x], 0.0
    yz = g[1, 1, x] * g[2, 2, x] - g[1, 2, x] * g[2, 1, x]
    xz = g[0, 0, x] * g[2, 2, x] - g[0, 2, x] * g[2, 0, x]
    xy = g[0, 0, x] * g[1, 1, x] - g[0, 1, x] * g[1, 0, x]
    determinant = (
        g[0, 0, x] * yz
        - g[0, 1, x] * (g[1, 0, x] * g[2, 2, x] - g[1, 2, x] * g[2, 0, x])
        + g[0, 2, x] * (g[1, 0, x] * g[2, 1, x] - g[1, 1, x] * g[2, 0, x])
    )
    return g[0, 0, x] + g[1, 1, x] + g[2, 2, x], yz + xz + xy, determinant
