"""How deep a voxel lies in its object: its distance to the border, up to a limit.

The limit makes it local: a voxel's depth follows from what is at most so far away, so a block with
that halo gets the depths of the whole volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage


def depth_halo(voxel_size: Sequence[float], linked: Sequence[bool], most: int) -> tuple[int, ...]:
    """Return the voxels of context per axis that the depths of a block follow from.

    Examples
    --------
    >>> depth_halo((5, 1, 1), (True, True, True), 48)
    (10, 48, 48)
    """
    sizes = [*[1.0] * (len(linked) - len(voxel_size)), *(s / min(voxel_size) for s in voxel_size)]
    return tuple(math.ceil(most / s) if is_linked else 0 for s, is_linked in zip(sizes, linked, strict=True))


def stored_depth(
    mask: npt.NDArray[Any], voxel_size: Sequence[float], linked: Sequence[bool], most: int
) -> npt.NDArray[np.uint8]:
    """Return the distance to the nearest voxel outside, as a byte: 255 is ``most`` and beyond.

    Parameters
    ----------
    mask : ndarray of bool, shape ([T, ][Z, ]Y, X)
        The border of the array is none.
    voxel_size : sequence of float
        Per spatial axis, in any unit.
    linked : sequence of bool
        Axes along which distances count.
    most : int
        In voxels of the finest axis.

    Returns
    -------
    ndarray of uint8, shape of the mask
        0 outside, at least 1 inside.

    Examples
    --------
    >>> stored_depth(np.array([[0, 1, 1, 1, 0]]) > 0, (1, 1), (True, True), 5).tolist()
    [[0, 51, 102, 51, 0]]
    """
    sizes = np.array([1.0] * (mask.ndim - len(voxel_size)) + [s / min(voxel_size) for s in voxel_size])
    is_linked = np.array(linked)
    lead = [mask.shape[axis] for axis in np.flatnonzero(~is_linked)]
    axes = [*np.flatnonzero(~is_linked), *np.flatnonzero(is_linked)]
    planes = mask.transpose(axes).reshape(-1, *(mask.shape[axis] for axis in np.flatnonzero(is_linked)))
    depth = np.zeros(planes.shape, np.uint8)
    for plane, out in zip(planes, depth, strict=True):
        if plane.all():  # nothing outside is near: SciPy would measure to nowhere
            out[...] = 255
        elif plane.any():
            distance = ndimage.distance_transform_edt(plane, sampling=sizes[is_linked])
            scaled = np.minimum(np.rint(distance * (255 / most)), 255)
            out[...] = np.where(plane, np.maximum(scaled, 1), 0)
    return np.ascontiguousarray(depth.reshape(*lead, *planes.shape[1:]).transpose(np.argsort(axes)))
