"""Smooth random displacement: one field moves image, target and weight of a patch.

Random vectors stand on a coarse grid whose corners are the corners of the patch; a natural
cubic spline runs between them [1]_. Where it would fold the patch over itself, the vectors are
scaled down.

All positions are in voxels, from the patch's first voxel.

References
----------
.. [1] Ronneberger, Fischer, Brox: U-Net. MICCAI 2015, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Box
from unetflow.numerics import cubic, gridspline, resample
from unetflow.numerics.folding import SMALLEST_JACOBIAN, largest_factor
from unetflow.numerics.gridspline import Floats, Grid
from unetflow.numerics.resample import Array, Moved, Singles

__all__ = [
    "SMALLEST_JACOBIAN", "Field", "displacement", "source_box", "warp_image", "warp_labels", "warp_truth",
]  # fmt: skip

# Voxels read beyond the displaced positions; the splines of order 3 have two more than their filter.
_MARGIN = {0: 1, 1: 1, 3: cubic.REACH + 2}

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
        out = np.empty((3, *(1,) * (3 - box.ndim), *box.shape))
        gridspline.fill(self.grid(box), out)
        return out[3 - box.ndim :].reshape(-1, *box.shape)

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

    def grid(self, box: Box) -> Grid:
        """Return what the kernels need to work out the displacements of a box."""
        bases = [
            gridspline.basis(n, g)[:, s]
            for n, g, s in zip(self.shape, self.vectors.shape[1:], box.slices, strict=True)
        ]
        return gridspline.in_three_axes(self.vectors, bases)

    @property
    def is_moved(self) -> Moved:
        """Whether anything moves along z, y and x."""
        z, y, x = [False] * (3 - len(self.shape)) + [bool(along.any()) for along in self.vectors]
        return z, y, x


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
    factor = largest_factor(vectors, shape)
    return Field(vectors * factor, shape, factor)


def source_box(field: Field, box: Box | None = None, *, order: int = 1) -> Box:
    """Return the voxels, as seen from the patch, that the displaced ``box`` is made from.

    It includes the context of the interpolation ``order``, and may reach over the patch on
    every side; the reader mirrors what lies outside the volume.
    """
    box = Box.of_shape(field.shape) if box is None else box
    low, high = (at[3 - box.ndim :] + box.start for at in gridspline.ranges(field.grid(box)))
    # An axis that is not displaced is read at whole voxels, which need no context.
    margins = [_MARGIN[order] if is_moved else 0 for is_moved in field.is_moved[3 - box.ndim :]]
    return Box(
        tuple(int(np.floor(at)) - margin for at, margin in zip(low, margins, strict=True)),
        tuple(int(np.ceil(at)) + margin + 1 for at, margin in zip(high, margins, strict=True)),
    )


def warp_image(
    source: Array,
    needed: Box,
    field: Field,
    box: Box | None = None,
    *,
    order: int = 1,
    dtype: npt.DTypeLike = np.float32,
) -> Array:
    """Read an image at displaced positions.

    Parameters
    ----------
    source : ndarray, shape (C, *needed)
    needed : Box
        Where the source lies, as seen from the patch: what `source_box` gave, or more.
    field : Field
    box : Box, optional
        The part of the patch that is wanted; all of it if None.
    order : {0, 1, 3}
        Of the spline: nearest, linear or cubic.
    dtype : dtype
        Of the result. Integers are rounded to the nearest, and keep within their range.

    Returns
    -------
    ndarray of ``dtype``, shape (C, *box)
    """
    box = Box.of_shape(field.shape) if box is None else box
    if order == 0:
        return warp_labels(source, needed, field, box).astype(dtype, copy=False)
    voxels = _in_three_axes(source, box)
    if order == 3:
        sample, voxels = cubic.cubic, cubic.coefficients(voxels, field.is_moved)
    else:
        sample, voxels = resample.linear, voxels.astype(np.float32, copy=False)
    out = np.empty((len(source), *box.shape), np.float32)
    sample(voxels, field.grid(box), _first(box, needed), field.is_moved, _in_three_axes(out, box))
    return _as_dtype(out, np.dtype(dtype))


def warp_labels(source: Array, needed: Box, field: Field, box: Box | None = None) -> Array:
    """Read labels ([K, ]*needed) at the voxels nearest to displaced positions, ([K, ]*box).

    Other arguments as in `warp_image`.
    """
    box = Box.of_shape(field.shape) if box is None else box
    out = np.empty((*source.shape[: source.ndim - box.ndim], *box.shape), source.dtype)
    # Bits are copied, whatever they mean: fewer kinds of kernels are compiled.
    bits = np.dtype(f"u{source.dtype.itemsize}")
    voxels = _in_three_axes(source, box).view(bits)
    resample.nearest(voxels, field.grid(box), _first(box, needed), _in_three_axes(out, box).view(bits))
    return out


def warp_truth(
    target: npt.NDArray[np.uint8],
    weight: Singles,
    needed: Box,
    field: Field,
    box: Box | None = None,
    *,
    class_weights: npt.ArrayLike = 0.0,
) -> tuple[npt.NDArray[np.uint8], Singles]:
    """Read targets at the nearest voxels to displaced positions, and weights linearly.

    What weighs 0 is ignored, and stays ignored: a position whose nearest voxel weighs 0 gets 0.
    Elsewhere the linear mean must not take from a class what balances it: no weight comes below
    that of its target's class.

    Parameters
    ----------
    target : ndarray of uint8, shape ([K, ]*needed)
    weight : ndarray of float32, shape ([K, ]*needed)
    needed, field, box
        As in `warp_image`.
    class_weights : array_like of float, shape (N,) or (K, N)
        Smallest weight for each value of the target; with a leading axis of targets, a row for
        each of them.

    Returns
    -------
    target, weight : ndarray of uint8 and of float32, shape ([K, ]*box)
    """
    box = Box.of_shape(field.shape) if box is None else box
    lead = target.shape[: target.ndim - box.ndim]
    out_target, out_weight = np.empty((*lead, *box.shape), np.uint8), np.empty((*lead, *box.shape), np.float32)
    targets, weights = _in_three_axes(target, box), _in_three_axes(weight, box)
    table = np.atleast_2d(np.asarray(class_weights, np.float32))
    smallest = np.zeros((len(targets), 256), np.float32)
    smallest[:, : table.shape[1]] = table
    resample.truth(
        targets, weights, smallest, field.grid(box), _first(box, needed), field.is_moved,
        _in_three_axes(out_target, box), _in_three_axes(out_weight, box),
    )  # fmt: skip
    return out_target, out_weight


def _in_three_axes(array: Array, box: Box) -> Array:
    """View the array as (C, Z, Y, X), or copy it if it is not C-contiguous or cannot be written."""
    # Kernels would be compiled once more for another kind of array.
    whole = np.require(array, requirements=["C", "W"])
    return whole.reshape(-1, *(1,) * (3 - box.ndim), *array.shape[array.ndim - box.ndim :])


def _first(box: Box, needed: Box) -> tuple[int, int, int]:
    """Return where the first voxel of ``box`` lies in an array of ``needed``."""
    z, y, x = (0,) * (3 - box.ndim) + box.relative_to(needed).start
    return z, y, x


def _as_dtype(values: Singles, dtype: np.dtype[Any]) -> Array:
    if dtype.kind in "iu":
        lowest, highest = np.iinfo(dtype).min, np.float32(np.iinfo(dtype).max)
        if int(highest) > np.iinfo(dtype).max:
            highest = np.nextafter(highest, np.float32(0))
        np.clip(np.rint(values, out=values), lowest, highest, out=values)
    return values.astype(dtype, copy=False)
