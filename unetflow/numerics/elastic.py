"""Smooth random displacement: one field moves image, target and weight of a patch.

Random vectors stand on a coarse grid whose corners are the corners of the patch; a natural
cubic spline runs between them [1]_. The spline is separable, so a field is a small matrix per
axis. Where it would fold the patch over itself, the vectors are scaled down.

All positions are in voxels, from the patch's first voxel.

References
----------
.. [1] Ronneberger, Fischer, Brox: U-Net. MICCAI 2015, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.interpolate import CubicSpline

from unetflow.geometry import Box

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

SMALLEST_JACOBIAN = 0.2

# Context around the displaced positions: the spline filter of order 3 falls by 0.27 a voxel.
_MARGIN = {0: 1, 1: 1, 3: 12}


@dataclass(frozen=True, eq=False)
class Field:
    """A displacement of each voxel of a patch.

    Parameters
    ----------
    vectors : ndarray of float64, shape (ndim, *grid)
        Displacements in voxels at the grid's points, already multiplied by ``factor``.
    shape : tuple of int
        Of the patch.
    factor : float
        What the drawn vectors were multiplied by, 1 unless the field would have folded.
    """

    vectors: Floats
    shape: tuple[int, ...]
    factor: float

    @property
    def was_scaled(self) -> bool:
        """Whether the vectors had to be scaled down."""
        return self.factor < 1

    def values(self, box: Box | None = None) -> Floats:
        """Return the displacements (ndim, *box) of a box of the patch; of all of it if None."""
        box = Box.of_shape(self.shape) if box is None else box
        return _evaluate(self.vectors, [m[s] for m, s in zip(self._bases(), box.slices, strict=True)])

    def coordinates(self, box: Box | None = None, origin: Sequence[int] | None = None) -> Floats:
        """Return the source positions (ndim, *box), counted from ``origin`` of the patch.

        ``origin`` is the start of the box that `source_box` gave; the patch's start if None.
        """
        box = Box.of_shape(self.shape) if box is None else box
        result = self.values(box)
        for axis, (start, stop) in enumerate(zip(box.start, box.stop, strict=True)):
            offset = 0 if origin is None else origin[axis]
            along = [-1 if a == axis else 1 for a in range(box.ndim)]
            result[axis] += np.arange(start - offset, stop - offset).reshape(along)
        return result

    def _bases(self) -> list[Floats]:
        return [_basis(n, g, 0) for n, g in zip(self.shape, self.vectors.shape[1:], strict=True)]


def displacement(
    rng: np.random.Generator | np.random.SeedSequence | int,
    shape: Sequence[int],
    *,
    grid: int = 3,
    sigma: Sequence[float],
) -> Field:
    """Draw a field that does not fold.

    Parameters
    ----------
    rng : Generator, SeedSequence or int
        The field is a function of it and of the other arguments alone.
    shape : sequence of int
        Of the patch, ([Z, ]Y, X).
    grid : int
        Points along each axis, at least 2; 2 gives straight lines between them.
    sigma : sequence of float
        Standard deviation of the vectors in voxels of each axis; 0 for no displacement.

    Examples
    --------
    >>> field = displacement(7, (1, 60, 60), sigma=(0, 3.0, 3.0))
    >>> field.values().shape, bool(np.any(field.values()[0])), field.was_scaled
    ((3, 1, 60, 60), False, False)
    """
    if grid < 2:
        raise ValueError(f"elastic grid needs at least 2 points an axis, got {grid}; use 3")
    shape = tuple(int(n) for n in shape)
    draw = np.random.default_rng(rng).standard_normal((len(shape), *(grid,) * len(shape)))
    vectors = draw * np.reshape(sigma, (-1, *(1,) * len(shape)))
    # Nothing lies along an axis of length 1: its vectors are those of the first grid point.
    factor = _largest_factor(vectors, shape)
    return Field(vectors * factor, shape, factor)


def source_box(field: Field, box: Box | None = None, *, order: int = 1) -> Box:
    """Return the voxels, as seen from the patch, that the displaced ``box`` is made from.

    It includes the context of the interpolation ``order``, and may reach over the patch on
    every side; the reader mirrors what lies outside the volume.
    """
    at = field.coordinates(box).reshape(len(field.shape), -1)
    # An axis that is not displaced is read at whole voxels, which need no context.
    margins = [_MARGIN[order] if along.any() else 0 for along in field.vectors]
    return Box(
        tuple(int(np.floor(low)) - margin for low, margin in zip(at.min(axis=1), margins, strict=True)),
        tuple(int(np.ceil(high)) + margin + 1 for high, margin in zip(at.max(axis=1), margins, strict=True)),
    )


def warp_image(source: Array, coordinates: Floats, order: int = 1) -> npt.NDArray[np.float32]:
    """Read an image at displaced positions.

    Parameters
    ----------
    source : ndarray, shape (C, *source box)
    coordinates : ndarray of float64, shape (ndim, *S)
        See `Field.coordinates`, with the source box as origin.
    order : {0, 1, 3}
        Of the spline: nearest, linear or cubic.

    Returns
    -------
    ndarray of float32, shape (C, *S)
    """
    result = np.empty((len(source), *coordinates.shape[1:]), np.float32)
    for channel, out in zip(source, result, strict=True):
        ndimage.map_coordinates(channel.astype(np.float32), coordinates, out, order, mode="mirror")
    return result


def warp_labels(source: Array, coordinates: Floats) -> Array:
    """Read labels ([K, ]*source box) at the nearest voxel to displaced positions ([K, ]*S)."""
    at: tuple[Any, ...] = (..., *_nearest(coordinates, source.shape[-len(coordinates) :]))
    return np.asarray(source[at])


def warp_weight(source: Array, coordinates: Floats) -> npt.NDArray[np.float32]:
    """Read weights ([K, ]*source box) at displaced positions, linearly, ([K, ]*S).

    What weighs 0 is ignored, and stays ignored: a position whose nearest voxel weighs 0 gets 0.
    """
    channels = source.reshape(-1, *source.shape[source.ndim - len(coordinates) :])
    weight = warp_image(channels, coordinates, order=1)
    weight[warp_labels(channels, coordinates) == 0] = 0
    return weight.reshape(*source.shape[: source.ndim - len(coordinates)], *weight.shape[1:])


def _nearest(coordinates: Floats, shape: Sequence[int]) -> tuple[npt.NDArray[np.int64], ...]:
    return tuple(
        np.clip(np.floor(along + 0.5).astype(np.int64), 0, n - 1) for along, n in zip(coordinates, shape, strict=True)
    )


@lru_cache(maxsize=64)
def _basis(n: int, grid: int, derivative: int) -> Floats:
    """Return the (n, grid) matrix from values at grid points to voxels, or to their slopes."""
    at = np.linspace(0.0, 1.0, n) if n > 1 else np.zeros(1)
    spline = CubicSpline(np.linspace(0.0, 1.0, grid), np.eye(grid), bc_type="natural")
    basis: Floats = spline(at, derivative) / (n - 1) ** derivative if n > 1 else spline(at) * (1 - derivative)
    basis.flags.writeable = False
    return basis


def _evaluate(vectors: Floats, bases: Sequence[Floats]) -> Floats:
    """Apply one matrix per axis to (ndim, *grid).

    Plain sums, for a matrix product may round otherwise on another number of threads.
    """
    values = vectors
    for basis in bases:
        # The axis in front of the others moves to the end, so that each round meets the next.
        spread = values[:, 0, ..., None] * basis[:, 0]
        for point in range(1, basis.shape[1]):
            spread += values[:, point, ..., None] * basis[:, point]
        values = spread
    return values


def _largest_factor(vectors: Floats, shape: tuple[int, ...]) -> float:
    """Return the largest factor in [0, 1] at which every voxel's Jacobian exceeds the bound."""
    slabs = [slice(i, i + 8) for i in range(0, shape[0], 8)]
    factor, before = 1.0, 2.0
    # A smaller factor may again be too much for a voxel that passed: ask until all agree.
    while factor < before:
        before = factor
        for slab in slabs:
            gradient = np.stack([_gradient(vectors, shape, axis, slab) for axis in range(len(shape))])
            factor = _shrink(gradient.reshape(len(shape), len(shape), -1), factor, SMALLEST_JACOBIAN)
    return factor


def _gradient(vectors: Floats, shape: tuple[int, ...], axis: int, slab: slice) -> Floats:
    """Return the slopes along ``axis`` of all displacements, in a slab of the first axis."""
    bases = [_basis(n, vectors.shape[1], int(a == axis)) for a, n in enumerate(shape)]
    return _evaluate(vectors, [bases[0][slab], *bases[1:]])


@numba.njit(cache=True, nogil=True)
def _shrink(gradient: Floats, factor: float, bound: float) -> float:
    # det(I + factor G) is a polynomial of the factor; its coefficients are G's invariants.
    n_axes = len(gradient)
    for i in range(gradient.shape[2]):
        g = gradient[:, :, i]
        trace, minors, determinant = 0.0, 0.0, 0.0
        for a in range(n_axes):
            trace += g[a, a]
            for b in range(a):
                minors += g[a, a] * g[b, b] - g[a, b] * g[b, a]
        if n_axes == 3:
            determinant = (
                g[0, 0] * (g[1, 1] * g[2, 2] - g[1, 2] * g[2, 1])
                - g[0, 1] * (g[1, 0] * g[2, 2] - g[1, 2] * g[2, 0])
                + g[0, 2] * (g[1, 0] * g[2, 1] - g[1, 1] * g[2, 0])
            )
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
