"""Move image, target and weight of a patch by one field of displacements.

Sources are read where the displaced voxels come from, slab by slab: no array of positions as
large as the patch is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Box
from unetflow.numerics import bspline, resample
from unetflow.numerics.elastic import Field
from unetflow.numerics.resample import Array, Singles


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
        sample, voxels = resample.cubic, bspline.coefficients(voxels, field.is_moved)
    else:
        sample, voxels = resample.linear, voxels.astype(np.float32, copy=False)
    out = np.empty((len(source), *box.shape), np.float32)
    moved, first = _in_three_axes(out, box), _in_space(box.relative_to(needed).start, 0)
    for z, y, values in field.slabs(box):
        sample(voxels, values, (z, y), first, field.is_moved, moved)
    return _as_dtype(out, np.dtype(dtype))


def warp_labels(source: Array, needed: Box, field: Field, box: Box | None = None) -> Array:
    """Read labels ([K, ]*needed) at the voxels nearest to displaced positions, ([K, ]*box).

    Other arguments as in `warp_image`.
    """
    box = Box.of_shape(field.shape) if box is None else box
    out = np.empty((*source.shape[: source.ndim - box.ndim], *box.shape), source.dtype)
    # Bits are copied, whatever they mean: fewer kinds of kernels are compiled.
    bits = np.dtype(f"u{source.dtype.itemsize}")
    voxels, moved = _in_three_axes(source, box).view(bits), _in_three_axes(out, box).view(bits)
    first = _in_space(box.relative_to(needed).start, 0)
    for z, y, values in field.slabs(box):
        resample.nearest(voxels, values, (z, y), first, moved)
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
    targets, weights, moved_target, moved_weight = (
        _in_three_axes(array, box) for array in (target, weight, out_target, out_weight)
    )
    table = np.atleast_2d(np.asarray(class_weights, np.float32))
    smallest = np.zeros((len(targets), 256), np.float32)
    smallest[:, : table.shape[1]] = table
    first = _in_space(box.relative_to(needed).start, 0)
    for z, y, values in field.slabs(box):
        resample.truth(
            targets, weights, smallest, values, (z, y), first, field.is_moved, moved_target, moved_weight
        )
    return out_target, out_weight


def _in_three_axes(array: Array, box: Box) -> Array:
    """View the array as (C, Z, Y, X), or copy it if it is not C-contiguous or cannot be written."""
    # Kernels would be compiled once more for another kind of array.
    whole = np.require(array, requirements=["C", "W"])
    return whole.reshape(-1, *_in_space(array.shape[array.ndim - box.ndim :], 1))


def _in_space(lengths: Sequence[int], missing: int) -> tuple[int, int, int]:
    """Return one number for each of z, y and x, ``missing`` for those that are not there."""
    z, y, x = (*(missing,) * (3 - len(lengths)), *lengths)
    return z, y, x


def _as_dtype(values: Singles, dtype: np.dtype[Any]) -> Array:
    if dtype.kind in "iu":
        lowest, highest = np.iinfo(dtype).min, np.float32(np.iinfo(dtype).max)
        if int(highest) > np.iinfo(dtype).max:
            highest = np.nextafter(highest, np.float32(0))
        np.clip(np.rint(values, out=values), lowest, highest, out=values)
    return values.astype(dtype, copy=False)
