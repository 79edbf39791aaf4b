"""Draw voxels at random, the same ones however the volume is cut.

Each voxel has a random number, its *rank*, that follows from a key and its place alone. The
voxels of lowest rank in each class are a uniform sample of it, and the lowest of several blocks
are found among the lowest of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Unsigned = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def lowest_ranked(
    classes: npt.NDArray[np.uint8],
    allowed: Mask,
    start: Sequence[int],
    shape: Sequence[int],
    key: int,
    count: int,
) -> dict[int, tuple[Unsigned, Unsigned]]:
    """Return the voxels of lowest rank of each class in a block.

    Parameters
    ----------
    classes : ndarray of uint8
        Class of each voxel of the block.
    allowed : ndarray of bool, same shape
        Voxels that may be drawn.
    start : sequence of int
        The block's first voxel in the volume.
    shape : sequence of int
        Of the volume.
    key : int
        Seeds the ranks, 0 to 2**64 - 1.
    count : int
        Voxels of each class, at most.

    Returns
    -------
    dict of int to (ranks, places)
        For each class that is there; places are linear indices in the volume.
    """
    available = np.bincount(classes[allowed], minlength=1)
    values = np.flatnonzero(available)
    slots = np.full(256, -1, np.int64)
    slots[values] = np.arange(len(values))
    room = np.minimum(available[values], count).astype(np.int64)
    first = np.concatenate([[0], np.cumsum(room)])
    ranks, places = np.empty(first[-1], np.uint64), np.empty(first[-1], np.uint64)
    if room.sum():
        # Wrapping round at 2**64 is meant: numba's unsigned integers do so without a word.
        _fill(
            np.ascontiguousarray(classes).reshape(-1, classes.shape[-1]),
            np.ascontiguousarray(allowed).reshape(-1, classes.shape[-1]),
            np.array(classes.shape, np.int64), np.array(start, np.int64), np.array(shape, np.int64),
            np.uint64(key), slots, first, ranks, places,
        )  # fmt: skip
    return {
        int(value): (ranks[first[i] : first[i + 1]], places[first[i] : first[i + 1]]) for i, value in enumerate(values)
    }


def rank_of(places: npt.NDArray[np.int64], key: int) -> Unsigned:
    """Return the ranks of numbers, as `lowest_ranked` has them of places."""
    with np.errstate(over="ignore"):
        z = places.astype(np.uint64) * _GOLDEN + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return np.asarray(z ^ (z >> np.uint64(31)))


@numba.njit(cache=True, nogil=True)
def _fill(
    classes: Any, allowed: Any, block: Integers, start: Integers, shape: Integers, key: Any,
    slots: Integers, first: Integers, ranks: Unsigned, places: Unsigned,
) -> None:  # fmt: skip
    """Keep the lowest ranks of each class in a heap, the highest of them in front."""
    n_axes = len(block)
    n_kept = np.zeros(len(first) - 1, np.int64)
    for row in range(len(classes)):
        # The place of the row's first voxel in the volume.
        rest, place, stride = row, start[n_axes - 1], shape[n_axes - 1]
        for axis in range(n_axes - 2, -1, -1):
            place += (start[axis] + rest % block[axis]) * stride
            rest //= block[axis]
            stride *= shape[axis]
        for i in range(classes.shape[1]):
            if not allowed[row, i]:
                continue
            slot = slots[classes[row, i]]
            z = np.uint64(place + i) * _GOLDEN + key
            z = (z ^ (z >> np.uint64(30))) * _MIX_1
            z = (z ^ (z >> np.uint64(27))) * _MIX_2
            z = z ^ (z >> np.uint64(31))
            low, n = first[slot], n_kept[slot]
            if n < first[slot + 1] - low:
                _rise(ranks, places, low, n, z, np.uint64(place + i))
                n_kept[slot] = n + 1
            elif z < ranks[low]:
                _sink(ranks, places, low, n, z, np.uint64(place + i))


@numba.njit(cache=True, nogil=True)
def _rise(ranks: Unsigned, places: Unsigned, low: int, at: int, rank: Any, place: Any) -> None:
    while at > 0:
        parent = (at - 1) // 2
        if ranks[low + parent] >= rank:
            break
        ranks[low + at], places[low + at] = ranks[low + parent], places[low + parent]
        at = parent
    ranks[low + at], places[low + at] = rank, place


@numba.njit(cache=True, nogil=True)
def _sink(ranks: Unsigned, places: Unsigned, low: int, n: int, rank: Any, place: Any) -> None:
    at = 0
    while True:
        child = 2 * at + 1
        if child >= n:
            break
        if child + 1 < n and ranks[low + child + 1] > ranks[low + child]:
            child += 1
        if ranks[low + child] <= rank:
            break
        ranks[low + at], places[low + at] = ranks[low + child], places[low + child]
        at = child
    ranks[low + at], places[low + at] = rank, place
