"""Share out a foreground among seeds: a watershed whose every label follows from its surroundings.

Seeds flood what is around them, likely voxels first. A voxel becomes wet at a *level*, the worst
of all voxels on the way from the seed to it, and at a *depth*, the steps taken within that level.
It takes the label of the neighbour that became wet before all others: of lowest level, then
lowest depth, then lowest label. That is the order of Meyer's queue [1]_, with the queue's order
of arrival replaced by one that does not know where the array starts.

Instead of with a queue it is computed in rounds: in each one every voxel looks anew at its
neighbours as the last round left them; along a coarse axis only every n-th round, so that floods
are as slow in micrometres as along the finest. After `FLOOD_STEPS` rounds a label follows from
the voxels that are at most so many steps away, and from nothing else. So a block with that halo
(`flood_halo`) gets the labels of the whole volume, voxel by voxel, wherever it is cut. What no
flood reaches in so many rounds stays 0.

References
----------
.. [1] Meyer: Topographic distance and watershed lines. Signal Processing 38, 1994.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from unetflow.geometry import Box
from unetflow.numerics.labelling import first_in_volume

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Probabilities = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.uint32]
Integers = npt.NDArray[np.int64]

FLOOD_STEPS = 48  # voxels of the finest axis; fewer than 255, for rounds and depths are counted in a byte
_LONGEST_STRIDE = 8  # so that there are 6 steps along any axis
_OUTSIDE = np.uint8(255)
_SEED = np.uint8(255)


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


def flood_strides(voxel_size: Sequence[float], ndim: int) -> tuple[int, ...]:
    """Return after how many rounds a flood takes a step along each axis, 1 for the finest.

    They are powers of 2, so that steps along several axes at once have rounds in common.
    ``voxel_size`` is that of the last axes; those before (time) get the longest stride.

    Examples
    --------
    >>> flood_strides((0.05, 0.01, 0.01), 4)
    (8, 4, 1, 1)
    """
    finest = min(voxel_size)
    own = tuple(min(_LONGEST_STRIDE, 2 ** round(math.log2(size / finest))) for size in voxel_size)
    return (_LONGEST_STRIDE,) * (ndim - len(own)) + own


def flood_halo(strides: Sequence[int], linked: Sequence[bool], steps: int = FLOOD_STEPS) -> tuple[int, ...]:
    """Return the voxels of context per axis that the labels of a block follow from.

    Examples
    --------
    >>> flood_halo((8, 4, 1, 1), (False, True, True, True))
    (0, 12, 48, 48)
    """
    return tuple(steps // stride if is_linked else 0 for stride, is_linked in zip(strides, linked, strict=True))


def flood(
    levels: Bytes,
    seeds: Ids,
    mask: Mask,
    linked: Sequence[bool],
    connectivity: str = "face",
    strides: Sequence[int] | None = None,
    steps: int = FLOOD_STEPS,
) -> Ids:
    """Label the voxels of a mask that a flood from the seeds reaches in ``steps`` rounds.

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
    strides : sequence of int, optional
        Rounds that a step along each axis takes, see `flood_strides`; absent: 1.
    steps : int
        Rounds, at most 254.

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
    offsets, rounds = _offsets(shape, linked, connectivity, strides or (1,) * len(shape))
    _flood(padded.reshape(-1), ids.reshape(-1), offsets, rounds, steps)
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
    index = first_in_volume(starts[begin], box, volume_shape)
    is_object = found > 0
    return found[is_object].astype(np.int64), index[is_object], sizes[is_object]


def _offsets(
    shape: Sequence[int], linked: Sequence[bool], connectivity: str, strides: Sequence[int]
) -> tuple[Integers, Integers]:
    """Return how far neighbours are in memory (C order), and the rounds a step to each takes, sorted by these."""
    if connectivity not in ("face", "full"):
        raise ValueError(f"connectivity must be face or full, got '{connectivity}'; use face")
    near = ndimage.generate_binary_structure(len(shape), 1 if connectivity == "face" else len(shape))
    moves = np.argwhere(near) - 1
    stays = (moves[:, [not is_linked for is_linked in linked]] == 0).all(axis=1)
    moves = moves[stays & moves.any(axis=1)]
    # No axis is stepped along but in its own rounds, or its halo would not do.
    rounds = np.lcm.reduce(np.where(moves != 0, np.asarray(strides, np.int64), 1), axis=1)
    order = np.argsort(rounds, kind="stable")
    memory = np.cumprod([1, *shape[:0:-1]])[::-1]
    return np.asarray(moves @ memory, np.int64)[order], rounds[order]


@numba.njit(cache=True, nogil=True)
def _flood(levels: Bytes, ids: Ids, offsets: Integers, rounds: Integers, steps: int) -> None:
    n, n_offsets = len(levels), len(offsets)
    # Level and depth at which a voxel became wet as one number, and those of the neighbour that wetted it.
    key, source = levels.astype(np.uint16) << 8, np.zeros(n, np.uint16)
    via = np.zeros(n, np.uint8)  # the rounds of the step from that neighbour
    seen = np.zeros(n, np.uint8)  # the last round that looked at a voxel
    # What changed and not all offsets have told yet; offset k has told all before told[k].
    changed, n_changed = np.empty(1024, np.int64), 0
    told = np.zeros(n_offsets, np.int64)
    due = np.zeros(n_offsets, np.bool_)  # whether this round looks along an offset
    touched = np.empty(1024, np.int64)
    # What a round along some axes left with a later neighbour than before: all axes are to be asked.
    again, n_again = np.empty(1024, np.int64), 0
    for u in range(n):
        if ids[u] != 0:
            via[u] = _SEED
    for u in range(n):
        if via[u] == _SEED:
            for o in offsets:
                if levels[u + o] != _OUTSIDE and via[u + o] != _SEED:
                    changed, n_changed = _append(changed, n_changed, u)
                    break
    for step in range(1, steps + 1):
        if n_changed == 0 and n_again == 0:
            break
        n_touched, n_due = 0, 0
        for k in range(n_offsets):
            due[k] = step % rounds[k] == 0
            n_due += due[k]
        # Voxel by voxel, not offset by offset: neighbours in memory are looked at together.
        for i in range(n_changed):
            for k in range(n_offsets):
                if due[k] and i >= told[k]:
                    v = changed[i] + offsets[k]
                    if levels[v] != _OUTSIDE and via[v] != _SEED and seen[v] != step:
                        seen[v] = step
                        touched, n_touched = _append(touched, n_touched, v)
        for k in range(n_offsets):
            if due[k]:
                told[k] = n_changed
        if n_due == n_offsets:
            for i in range(n_again):
                if seen[again[i]] != step:
                    seen[again[i]] = step
                    touched, n_touched = _append(touched, n_touched, again[i])
            n_again = 0
        # Forget what all have told.
        n_told = told.min()
        changed[: n_changed - n_told] = changed[n_told:n_changed].copy()
        n_changed -= n_told
        told -= n_told
        # All look before any changes.
        news = np.empty((n_touched, 4), np.uint32)
        for i in range(n_touched):
            v = touched[i]
            best, best_id, best_via = np.uint16(0xFFFF), np.uint32(0), np.uint8(0)
            if via[v] > 1 and step % via[v] != 0:
                # What came along a coarse axis stands as it came until that axis is looked along again.
                best, best_id, best_via = source[v], ids[v], via[v]
            for k in range(n_offsets):
                if due[k]:
                    u = v + offsets[k]
                    if ids[u] != 0 and (key[u] < best or (key[u] == best and ids[u] < best_id)):
                        best, best_id, best_via = key[u], ids[u], np.uint8(rounds[k])
            own = np.uint16(levels[v]) << 8
            news[i, 0] = own if own > best | 0xFF else best + 1
            news[i, 1], news[i, 2], news[i, 3] = best, best_id, best_via
        for i in range(n_touched):
            v = touched[i]
            if ids[v] != news[i, 2] or key[v] != news[i, 0]:
                changed, n_changed = _append(changed, n_changed, v)
            is_later = news[i, 1] > source[v] or (news[i, 1] == source[v] and news[i, 2] > ids[v])
            if n_due < n_offsets and ids[v] != 0 and is_later:
                again, n_again = _append(again, n_again, v)
            key[v], source[v], ids[v], via[v] = news[i, 0], news[i, 1], news[i, 2], news[i, 3]


@numba.njit(cache=True, nogil=True)
def _append(items: Integers, n: int, value: int) -> tuple[Integers, int]:
    if n == len(items):
        longer = np.empty(2 * n, np.int64)
        longer[:n] = items
        items = longer
    items[n] = value
    return items, n + 1
