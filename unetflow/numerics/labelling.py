"""Connected components of a volume that is never in memory, in pure steps.

Each block is labelled on its own (*fragments*). Planes on both sides of the faces between blocks
give pairs of fragments that touch; the pairs join fragments to components. Only fragments at a
face, *open* ones, can be joined: the others are components as they are.

::

    label_block      mask -> fragments 1..n of a block, first voxel and size of each
    at_faces         fragments -> those at some faces of the block
    slab_pairs       two planes of global ids -> pairs
    join             pairs -> one number a component
    relabel          fragments of a block -> components

How components are numbered over the whole volume is told in `unetflow.numerics.ranking`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse

from unetflow.geometry import Box

Array = npt.NDArray[Any]
Fragments = npt.NDArray[np.uint32]
Integers = npt.NDArray[np.int64]
Ids = npt.NDArray[np.uint64]

_CONNECTIVITIES: dict[tuple[str, int], Any] = {("face", 2): 4, ("full", 2): 8, ("face", 3): 6, ("full", 3): 26}


class Labelled(NamedTuple):
    """The components of a block.

    Parameters
    ----------
    fragments : ndarray of uint32
        0 outside, else 1..n by first voxel in C order.
    first : ndarray of int64, shape (n,)
        Index (C order) in the block of the first voxel of each; it grows.
    sizes : ndarray of int64, shape (n,)
        Voxels of each.
    """

    fragments: Fragments
    first: Integers
    sizes: Integers


def label_block(mask: Array, linked: Sequence[bool], connectivity: str = "face") -> Labelled:
    """Find the components of a block, numbered by their first voxel in C order.

    Parameters
    ----------
    mask : ndarray of bool or int, shape ([T, ][Z, ]Y, X)
        Foreground is what is not 0.
    linked : sequence of bool
        Axes along which neighbours count.
    connectivity : {"face", "full"}
        Whether neighbours share a face, or an edge or a corner will do.

    Examples
    --------
    >>> found = label_block(np.array([[1, 0, 1], [0, 1, 0]]), (True, True), "full")
    >>> found.fragments.tolist(), found.first.tolist(), found.sizes.tolist()
    ([[1, 0, 1], [0, 1, 0]], [0], [3])
    """
    if connectivity not in ("face", "full"):
        raise ValueError(f"connectivity must be face or full, got '{connectivity}'; use face")
    fragments, n = _components(np.ascontiguousarray(mask), linked, connectivity)
    first, sizes = np.zeros(n, np.int64), np.zeros(n, np.int64)
    _number_by_first_voxel(fragments.reshape(-1), np.zeros(n + 1, np.uint32), first, sizes)
    return Labelled(fragments, first, sizes)


def at_faces(fragments: Fragments, faces: Iterable[tuple[int, bool]]) -> Integers:
    """List the fragments at some faces of a block.

    Parameters
    ----------
    fragments : ndarray of uint32
    faces : iterable of (int, bool)
        Axis, and whether the face at its far end is meant.

    Returns
    -------
    ndarray of int64
        Sorted, each once, without 0.

    Examples
    --------
    >>> at_faces(np.array([[1, 0, 2], [1, 3, 0]], np.uint32), [(1, True), (0, False)]).tolist()
    [1, 2]
    """
    planes = [np.unique(fragments.take(-1 if is_far else 0, axis=axis)) for axis, is_far in faces]
    found = np.unique(np.concatenate([np.zeros(1, np.uint32), *planes]))
    return found[1:].astype(np.int64)


def slab_pairs(front: Ids, back: Ids, axis: int, linked: Sequence[bool], connectivity: str = "face") -> Ids:
    """List the fragments that touch over a face between blocks.

    Parameters
    ----------
    front, back : ndarray of uint64
        Global ids of the last plane before the face and the first behind it, 0 outside
        objects. Of the volume's axes, with length 1 along ``axis``. With full connectivity
        they need a rim of one voxel along the other linked axes (where the volume has one),
        so that blocks that share an edge or a corner only are seen.
    axis : int
        The axis that the face cuts.
    linked, connectivity
        As in `label_block`.

    Returns
    -------
    ndarray of uint64, shape (M, 2)
        Each pair once, the smaller id first.

    Examples
    --------
    >>> slab_pairs(np.array([[1, 1, 0]], np.uint64), np.array([[0, 4, 4]], np.uint64), 0, (True, True))
    array([[1, 4]], dtype=uint64)
    """
    if not linked[axis]:
        return np.zeros((0, 2), np.uint64)
    reach = [
        (-1, 0, 1) if connectivity == "full" and is_linked and other != axis else (0,)
        for other, is_linked in enumerate(linked)
    ]
    found = [_touching(front, back, offsets) for offsets in product(*reach)]
    pairs: Ids = np.unique(np.concatenate(found), axis=0)
    return pairs


def join(n: int, pairs: npt.NDArray[np.integer[Any]]) -> Integers:
    """Tell apart the components of a graph of ``n`` things.

    Parameters
    ----------
    n : int
    pairs : ndarray of int, shape (M, 2)
        Which of the things 0..n-1 belong together.

    Returns
    -------
    ndarray of int64, shape (n,)
        The component of each, from 0 in the order of their first things.

    Examples
    --------
    >>> join(4, np.array([[1, 3]])).tolist()
    [0, 1, 2, 1]
    """
    if len(pairs) == 0:
        return np.arange(n, dtype=np.int64)
    a, b = pairs.T
    graph = sparse.coo_array((np.ones(len(a), np.bool_), (a, b)), shape=(n, n))
    _, component = sparse.csgraph.connected_components(graph, directed=False)
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    return np.asarray(order[inverse], np.int64)


def first_in_volume(first: Integers, box: Box, volume_shape: Sequence[int]) -> Integers:
    """Turn indices (C order) in a box into those in the volume.

    Examples
    --------
    >>> first_in_volume(np.array([1, 3]), Box((0, 10), (2, 13)), (2, 100)).tolist()
    [11, 110]
    """
    index = np.zeros(len(first), np.int64)
    for position, start, length in zip(np.unravel_index(first, box.shape), box.start, volume_shape, strict=True):
        index = index * length + position + start
    return index


def relabel(fragments: Fragments, numbers: Array) -> Array:
    """Replace the fragments 1..n of a block by ``numbers`` (n,), of their type; 0 stays 0.

    Examples
    --------
    >>> relabel(np.array([0, 2, 1], np.uint32), np.array([70, 80], np.uint64))
    array([ 0, 80, 70], dtype=uint64)
    """
    table = np.concatenate([np.zeros(1, numbers.dtype), numbers])
    out: Array = np.empty(fragments.shape, numbers.dtype)
    _look_up(np.ascontiguousarray(fragments).reshape(-1), table, out.reshape(-1))
    return out


def _components(mask: Array, linked: Sequence[bool], connectivity: str) -> tuple[Fragments, int]:
    """Label a block in any order of numbers."""
    import cc3d

    n_linked = sum(linked)
    if (connectivity, n_linked) not in _CONNECTIVITIES or not all(linked[-n_linked:]):
        fragments = np.empty(mask.shape, np.uint32)
        return fragments, int(ndimage.label(mask, _neighbourhood(linked, connectivity), output=fragments))
    around = _CONNECTIVITIES[connectivity, n_linked]
    # As uint8: in cc3d's way for binary images (4.1.1) thin blocks, 1 x 1 x 3 for one, end in an error.
    foreground = (mask if mask.dtype == np.bool_ else mask != 0).view(np.uint8)
    pieces = foreground.reshape(-1, *mask.shape[-n_linked:])
    found: list[Fragments] = []
    n = 0
    for piece in pieces:
        labels: Any
        labels, count = cc3d.connected_components(piece, connectivity=around, out_dtype=np.uint32, return_N=True)
        if n:
            labels[labels > 0] += np.uint32(n)
        found.append(labels)
        n += int(count)
    together = found[0] if len(found) == 1 else np.stack(found)
    return np.ascontiguousarray(together).reshape(mask.shape), n


def _neighbourhood(linked: Sequence[bool], connectivity: str) -> npt.NDArray[np.bool_]:
    """Return the 3^n structure of neighbours, with none along axes that are not linked."""
    n_steps = np.abs(np.indices((3,) * len(linked)) - 1)
    leaves_plane = n_steps[[not is_linked for is_linked in linked]].any(axis=0)
    is_near = n_steps.sum(axis=0) <= (1 if connectivity == "face" else len(linked))
    return np.asarray(is_near & ~leaves_plane)


def _touching(front: Ids, back: Ids, offsets: Sequence[int]) -> Ids:
    """Pair each voxel of ``front`` with the one of ``back`` that lies ``offsets`` further."""
    here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offsets, front.shape, strict=True))
    there = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offsets, back.shape, strict=True))
    a, b = front[here].ravel(), back[there].ravel()
    # Neighbouring voxels mostly tell the same pair: what repeats is dropped before sorting.
    is_new = (a > 0) & (b > 0) & (a != b)
    is_new[1:] &= ~is_new[:-1] | (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    a, b = a[is_new], b[is_new]
    return np.unique(np.stack([np.minimum(a, b), np.maximum(a, b)], axis=1), axis=0)


@numba.njit(cache=True, nogil=True)
def _number_by_first_voxel(fragments: Fragments, numbers: Fragments, first: Integers, sizes: Integers) -> None:
    # The order of a library's own numbers follows the memory layout that it chose; ours is the C order.
    n = np.uint32(0)
    for i in range(len(fragments)):
        fragment = fragments[i]
        if fragment == 0:
            continue
        number = numbers[fragment]
        if number == 0:
            n += np.uint32(1)
            number = numbers[fragment] = n
            first[number - 1] = i
        fragments[i] = number
        sizes[number - 1] += 1


@numba.njit(cache=True, nogil=True)
def _look_up(fragments: Fragments, table: Array, out: Array) -> None:
    # NumPy's indexing would make an index of 8 bytes a voxel first.
    for i in range(len(fragments)):
        out[i] = table[fragments[i]]
