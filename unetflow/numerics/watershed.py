"""Share out a foreground among seeds: a watershed whose every label follows from its surroundings.

Seeds flood what is around them, likely voxels first. A voxel becomes wet at a *level*, the worst
of all voxels on the way from the seed to it, and at a *depth*, the steps taken within that level.
It takes the label of the neighbour that became wet before all others: of lowest level, then
lowest depth, then lowest label. That is the order of Meyer's queue [1]_, with the queue's order
of arrival replaced by one that does not know where the array starts.

Instead of with a queue it is computed in rounds: in each one every voxel looks anew at its
neighbours as the last round left them. After `FLOOD_STEPS` rounds a label follows from the
voxels that are at most so many steps away, and from nothing else. So a block with a halo of
that width gets the labels of the whole volume, voxel by voxel, wherever it is cut. What no
flood reaches in so many steps stays 0.

References
----------
.. [1] Meyer: Topographic distance and watershed lines. Signal Processing 38, 1994.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unetflow.geometry import Box

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Probabilities = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.uint32]
Integers = npt.NDArray[np.int64]

FLOOD_STEPS = 48  # voxels; fewer than 255, for rounds and depths are counted in a byte
_OUTSIDE = np.uint8(255)


def foreground_probability(stored: Array) -> Probabilities:
    """Return how likely each voxel is no background, from probabilities as they are stored.

    Parameters
    ----------
    stored : ndarray of uint8, float16 or float32, shape (C, [T, ][Z, ]Y, X)
        The probability of the foreground where C is 1, else of each class, background first.
        uint8 is p * 255.

    Returns
    -------
    ndarray of float32, shape ([T, ][Z, ]Y, X)

    Examples
    --------
    >>> foreground_probability(np.array([[51], [204]], np.uint8)).tolist()
    [0.800000011920929]
    """
    whole = np.float32(255 if stored.dtype == np.uint8 else 1)
    p: Probabilities = np.asarray(stored[0], np.float32)
    return p / whole if len(stored) == 1 else (whole - p) / whole


def flood_levels(p: Array) -> Bytes:
    """Turn probabilities into levels 0 (certain) to 254, in steps of 1 / 255.

    Examples
    --------
    >>> flood_levels(np.array([1.0, 0.5, 0.0])).tolist()
    [0, 127, 254]
    """
    levels: Bytes = np.minimum(255 - np.rint(np.float32(255) * p), 254).astype(np.uint8)
    return levels


def flood(
    levels: Bytes,
    seeds: Ids,
    mask: Mask,
    linked: Sequence[bool],
    connectivity: str = "face",
    steps: int = FLOOD_STEPS,
) -> Ids:
    """Label the voxels of a mask that are at most ``steps`` steps from a seed.

    Parameters
    ----------
    levels : ndarray of uint8, shape ([T, ][Z, ]Y, X)
        See `flood_levels`; low ones are flooded first.
    seeds : ndarray of uint32, same shape
        Labels to start from, 0 elsewhere. They stay as they are.
    mask : ndarray of bool, same shape
        What may be flooded.
    linked : sequence of bool
        Axes along which neighbours count.
    connectivity : {"face", "full"}
        Whether neighbours share a face, or an edge or a corner will do.
    steps : int
        At most 254.

    Returns
    -------
    ndarray of uint32, same shape

    Examples
    --------
    >>> levels = np.array([[0, 40, 90, 60, 30, 0]], np.uint8)
    >>> flood(levels, np.array([[7, 0, 0, 0, 0, 4]], np.uint32), levels < 99, (True, True))
    array([[7, 7, 7, 4, 4, 4]], dtype=uint32)
    """
    if not 0 <= steps < 255:
        raise ValueError(f"steps must be counted in a byte, 0 to 254, got {steps}; use {FLOOD_STEPS}")
    shape = tuple(n + 2 for n in levels.shape)
    inside = (slice(1, -1),) * levels.ndim
    # A rim outside the mask spares the kernel every look at where the array ends.
    padded, ids = np.full(shape, _OUTSIDE), np.zeros(shape, np.uint32)
    padded[inside] = np.where(mask | (seeds > 0), np.minimum(levels, 254), _OUTSIDE)
    ids[inside] = seeds
    _flood(padded.reshape(-1), ids.reshape(-1), _offsets(shape, linked, connectivity), steps)
    return np.ascontiguousarray(ids[inside])


def object_table(ids: Array, box: Box, volume_shape: Sequence[int]) -> tuple[Integers, Integers, Integers]:
    """List the objects of a block: id, first voxel and size of each.

    Parameters
    ----------
    ids : ndarray of int, shape of ``box``
        0 outside objects.
    box : Box
        Where the block lies in the volume.
    volume_shape : sequence of int

    Returns
    -------
    found, first, sizes : ndarray of int64, shape (n,)
        Ids, sorted; linear index (C order) in the volume of the object's first voxel in the
        block; its voxels in the block.

    Examples
    --------
    >>> found, first, sizes = object_table(np.array([[0, 8, 8], [3, 3, 8]]), Box((0, 10), (2, 13)), (2, 100))
    >>> found.tolist(), first.tolist(), sizes.tolist()
    ([3, 8], [110, 11], [2, 3])
    """
    flat = ids.reshape(-1)
    # Runs of equal ids are far fewer than voxels: only they are sorted.
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]])) if flat.size else np.zeros(0, np.int64)
    lengths = np.diff(starts, append=flat.size)
    found, begin, inverse = np.unique(flat[starts], return_index=True, return_inverse=True)
    sizes = np.zeros(len(found), np.int64)
    np.add.at(sizes, inverse.reshape(-1), lengths)
    index = np.zeros(len(found), np.int64)
    positions = np.unravel_index(starts[begin], ids.shape)
    for position, start, length in zip(positions, box.start, volume_shape, strict=True):
        index = index * length + position + start
    is_object = found > 0
    return found[is_object].astype(np.int64), index[is_object], sizes[is_object]


def _offsets(shape: Sequence[int], linked: Sequence[bool], connectivity: str) -> Integers:
    """Return how far the neighbours of a voxel are in memory, for an array in C order."""
    if connectivity not in ("face", "full"):
        raise ValueError(f"connectivity must be face or full, got '{connectivity}'; use face")
    near = ndimage.generate_binary_structure(len(shape), 1 if connectivity == "face" else len(shape))
    steps = np.argwhere(near) - 1
    stays = (steps[:, [not is_linked for is_linked in linked]] == 0).all(axis=1)
    steps = steps[stays & steps.any(axis=1)]
    strides = np.cumprod([1, *shape[:0:-1]])[::-1]
    return np.asarray(steps @ strides, np.int64)


@numba.njit(cache=True, nogil=True)
def _flood(levels: Bytes, ids: Ids, offsets: Integers, steps: int) -> None:
    # `wet` is the level at which a voxel became wet; a seed's own. Seeds are those with an id now.
    n = len(levels)
    wet, depth = levels.copy(), np.zeros(n, np.uint8)
    is_seed = np.empty(n, np.bool_)
    seen = np.zeros(n, np.uint8)  # the last round that looked at a voxel
    changed = np.empty(1024, np.int64)
    n_changed = 0
    for u in range(n):
        is_seed[u] = ids[u] != 0
    for u in range(n):
        if is_seed[u]:
            for o in offsets:
                if levels[u + o] != 255 and not is_seed[u + o]:
                    changed, n_changed = _append(changed, n_changed, u)
                    break
    touched = np.empty(1024, np.int64)
    for step in range(1, steps + 1):
        n_touched = 0
        for i in range(n_changed):
            for o in offsets:
                v = changed[i] + o
                if levels[v] != 255 and not is_seed[v] and seen[v] != step:
                    seen[v] = step
                    touched, n_touched = _append(touched, n_touched, v)
        if n_touched == 0:
            break
        # All look before any changes.
        news = np.empty((n_touched, 3), np.uint32)
        for i in range(n_touched):
            v = touched[i]
            best_wet, best_depth, best_id = 256, 0, np.uint32(0)
            for o in offsets:
                u = v + o
                if ids[u] == 0:
                    continue
                if (
                    wet[u] < best_wet
                    or (wet[u] == best_wet and depth[u] < best_depth)
                    or (wet[u] == best_wet and depth[u] == best_depth and ids[u] < best_id)
                ):
                    best_wet, best_depth, best_id = wet[u], depth[u], ids[u]
            if levels[v] > best_wet:
                best_wet, best_depth = levels[v], 0
            else:
                best_depth += 1
            news[i, 0], news[i, 1], news[i, 2] = best_wet, best_depth, best_id
        n_changed = 0
        for i in range(n_touched):
            v = touched[i]
            if ids[v] != news[i, 2] or wet[v] != news[i, 0] or depth[v] != news[i, 1]:
                wet[v], depth[v], ids[v] = news[i, 0], news[i, 1], news[i, 2]
                changed, n_changed = _append(changed, n_changed, v)


@numba.njit(cache=True, nogil=True)
def _append(items: Integers, n: int, value: int) -> tuple[Integers, int]:
    if n == len(items):
        longer = np.empty(2 * n, np.int64)
        longer[:n] = items
        items = longer
    items[n] = value
    return items, n + 1
