"""Bring an array to voxels of another length: linearly, and by areas where they are longer.

A target voxel is the mean of the source over a window around its centre that is as long as the longer of
the two voxels; both grids begin at the same edge. Finer targets get linear interpolation by that, coarser
ones the mean of what they cover, so that nothing finer than a target voxel is left to alias::

    source    |   0   |   1   |   2   |   3   |   4   |
    ratio 0.5   |-window-|                                  target 1, centre at 0.75: a quarter of 1 and three of 0
    target    | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 | 9 |
    ratio 1.6 |  window   |                                 target 0: five eighths of 0 and three of 1
    target    |     0     |     1     |     2     |...

The *ratio* is the length of a target voxel in source voxels. A weight follows from the number of the target
voxel alone, and sums are taken in the order of the source, so any box of the target has the bits that it has
in the whole one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from unetflow.geometry import Box

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]

# Of a source voxel: less than this of it in a window is rounding.
_NOTHING = 1e-6


def rescaled_length(length: int, ratio: float) -> int:
    """Return the number of target voxels that cover an axis.

    Examples
    --------
    >>> rescaled_length(101, 2.0), rescaled_length(100, 0.5)
    (51, 200)
    """
    return max(1, math.ceil(length / ratio - _NOTHING))


def reach(voxels: Array, ratio: float) -> tuple[Integers, Integers]:
    """Return the first source voxel in the window of each target voxel, and the first beyond.

    Parameters
    ----------
    voxels : array_like of int
        Numbers of target voxels; any numbers, as both grids go on beyond their ends.

    Examples
    --------
    >>> low, high = reach(np.array([0, 1, 2]), 0.5)
    >>> low.tolist(), high.tolist()
    ([-1, 0, 0], [1, 2, 2])
    """
    low, high = _window(voxels, ratio)
    return np.floor(low + _NOTHING).astype(np.int64), np.ceil(high - _NOTHING).astype(np.int64)


def source_box(target: Box, ratio: Sequence[float]) -> Box:
    """Return the source voxels that a box of the target is made of; it may leave the source."""
    ends = zip(target.start, target.stop, ratio, strict=True)
    found = [(reach(np.array(a), r)[0], reach(np.array(b - 1), r)[1]) for a, b, r in ends]
    return Box(tuple(int(low) for low, _ in found), tuple(int(high) for _, high in found))


def rescale(source: Array, place: Box, target: Box, ratio: Sequence[float]) -> Array:
    """Return a box of the target.

    Parameters
    ----------
    source : ndarray, (C, *place.shape)
    place : Box
        Where the array lies in the source: all of `source_box`, or more.
    target : Box
        In target voxels.
    ratio : sequence of float
        Length of a target voxel in source voxels, per axis; an axis of ratio 1 is cut as it is.

    Returns
    -------
    ndarray of float32, (C, *target.shape)
        float64 where the source has integers of 32 bits or more, or float64. Where all voxels of a window are alike,
        the result is just that.

    Examples
    --------
    >>> rescale(np.array([[0, 4, 8, 12]], np.uint8), Box((0,), (4,)), Box((0,), (2,)), [2.0])
    array([[ 2., 10.]], dtype=float32)
    """
    needed = source_box(target, ratio)
    if not place.contains(needed):
        raise ValueError(f"voxels {target} are made of the source's {needed}, got {place}")
    out = np.empty((len(source), *target.shape), np.result_type(source.dtype, np.float32))
    # Channel by channel: what stands between two axes may be as large as the result.
    for channel, kept in zip(source, out, strict=True):
        values = np.ascontiguousarray(channel[needed.relative_to(place).slices], out.dtype)
        for axis, r in enumerate(ratio):
            if r != 1:
                values = _along(values, axis, np.arange(target.start[axis], target.stop[axis]), r)
        kept[...] = values
    return out


def _window(voxels: Array, ratio: float) -> tuple[Array, Array]:
    """Return where the windows of target voxels begin and end; source voxel k goes from k to k + 1."""
    centre, half = (np.asarray(voxels) + 0.5) * ratio, max(1.0, ratio) / 2
    return centre - half, centre + half


def _along(values: Array, axis: int, voxels: Integers, ratio: float) -> Array:
    """Rescale one axis, whose first voxel is the first that the first target voxel needs."""
    first, beyond = reach(voxels, ratio)
    low, high = (edge[:, None] for edge in _window(voxels, ratio))
    taps = first[:, None] + np.arange((beyond - first).max())
    weights = np.clip(np.minimum(taps + 1, high) - np.maximum(taps, low), 0, None) / max(1.0, ratio)
    before, after = values.shape[:axis], values.shape[axis + 1 :]
    out = np.empty((*before, len(voxels), *after), values.dtype)
    _average(
        values.reshape(math.prod(before), -1, math.prod(after)), first - first[0], beyond - first,
        weights.astype(values.dtype), out.reshape(math.prod(before), len(voxels), -1),
    )  # fmt: skip
    return out


@numba.njit(cache=True, nogil=True)
def _average(source: Array, first: Integers, counts: Integers, weights: Array, out: Array) -> None:
    """Average (O, N, I) along its middle axis: the first voxel of a window, and what the others differ from it."""
    for o in range(len(out)):
        for i in range(len(first)):
            start = first[i]
            for x in range(out.shape[2]):
                out[o, i, x] = source[o, start, x]
            for k in range(1, counts[i]):
                weight = weights[i, k]
                for x in range(out.shape[2]):
                    out[o, i, x] += weight * (source[o, start + k, x] - source[o, start, x])
