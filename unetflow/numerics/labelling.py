"""Connected components of a volume that is never in memory, in pure steps.

Each block is labelled on its own (*fragments*). Slabs of two voxels over the faces between
blocks give pairs of fragments that touch; the pairs join fragments to components, which are
numbered 1..N by their first voxel in C order. The numbers do not depend on the cut.

::

    label_block      mask -> fragments 1..n of a block           on a worker
    fragment_table   first voxel and size of each                on a worker
    slab_pairs       two planes of global ids -> pairs           on a worker
    union            pairs -> one root a component               on the driver
    number_components                                            on the driver
    relabel          fragments of a block -> components          on a worker

A fragment's *global id* is its number in its block plus the fragments of all blocks before.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse

from unetflow.geometry import Box

Array = npt.NDArray[Any]
Fragments = npt.NDArray[np.int32]
Integers = npt.NDArray[np.int64]
Ids = npt.NDArray[np.uint64]


def label_block(mask: Array, linked: Sequence[bool], connectivity: str = "face") -> tuple[Fragments, int]:
    """Find the components of a block, numbered by their first voxel in C order.

    Parameters
    ----------
    mask : ndarray of bool or int, shape ([T, ][Z, ]Y, X)
        Foreground is what is not 0.
    linked : sequence of bool
        Axes along which neighbours count.
    connectivity : {"face", "full"}
        Whether neighbours share a face, or an edge or a corner will do.

    Returns
    -------
    fragments : ndarray of int32
        0 outside, else 1..n.
    n : int

    Examples
    --------
    >>> label_block(np.array([[1, 0], [0, 1]]), (True, True), "full")
    (array([[1, 0],
           [0, 1]], dtype=int32), 1)
    """
    fragments = np.empty(mask.shape, np.int32)
    n = ndimage.label(mask, _neighbourhood(linked, connectivity), output=fragments)
    _number_by_first_voxel(fragments.reshape(-1), np.zeros(n + 1, np.int32))
    return fragments, int(n)


def fragment_table(fragments: Fragments, n: int, box: Box, volume_shape: Sequence[int]) -> tuple[Integers, Integers]:
    """Find the first voxel and the size of each fragment of a block.

    Parameters
    ----------
    fragments : ndarray of int32, shape of ``box``
        Numbered 1..n.
    box : Box
        Where the block lies in the volume.
    volume_shape : sequence of int

    Returns
    -------
    first : ndarray of int64, shape (n,)
        Linear index (C order) in the volume of the fragment's first voxel.
    sizes : ndarray of int64, shape (n,)
        Voxels of the fragment.
    """
    first, sizes = np.zeros(n, np.int64), np.zeros(n, np.int64)
    _measure(np.ascontiguousarray(fragments).reshape(-1), first, sizes)
    index = np.zeros(n, np.int64)
    for position, start, length in zip(np.unravel_index(first, fragments.shape), box.start, volume_shape, strict=True):
        index = index * length + position + start
    return index, sizes


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


def union(n: int, pairs: npt.NDArray[np.integer[Any]]) -> Integers:
    """Join fragments 1..n that touch.

    Parameters
    ----------
    n : int
        Number of fragments of the whole volume; global ids run from 1 to n.
    pairs : ndarray of int, shape (M, 2)
        Global ids that belong together.

    Returns
    -------
    ndarray of int64, shape (n,)
        For each fragment the smallest index (global id - 1) of its component.

    Examples
    --------
    >>> union(4, np.array([[2, 4]])).tolist()
    [0, 1, 2, 1]
    """
    roots = np.arange(n, dtype=np.int64)
    if len(pairs) == 0:
        return roots
    # Most fragments touch no face: the graph holds only those that do.
    ids, inverse = np.unique(pairs, return_inverse=True)
    a, b = inverse.reshape(-1, 2).T
    graph = sparse.coo_array((np.ones(len(a), np.bool_), (a, b)), shape=(len(ids), len(ids)))
    _, component = sparse.csgraph.connected_components(graph, directed=False)
    _, smallest = np.unique(component, return_index=True)
    indices = ids.astype(np.int64) - 1
    roots[indices] = indices[smallest[component]]
    return roots


def number_components(first: Integers, sizes: Integers, roots: Integers, min_size: int = 0) -> Ids:
    """Give components the numbers 1..N by their first voxel in C order.

    Parameters
    ----------
    first, sizes : ndarray of int64, shape (n,)
        See `fragment_table`, for all fragments of the volume in the order of their ids.
    roots : ndarray of int64, shape (n,)
        See `union`.
    min_size : int
        Components with fewer voxels are dropped, before numbers are given.

    Returns
    -------
    ndarray of uint64, shape (n,)
        The component of each fragment; 0 where it was dropped.
    """
    starts, totals = np.full(len(first), np.iinfo(np.int64).max), np.zeros(len(first), np.int64)
    np.minimum.at(starts, roots, first)
    np.add.at(totals, roots, sizes)
    kept = np.flatnonzero((roots == np.arange(len(roots))) & (totals >= min_size))
    numbers = np.zeros(len(first), np.uint64)
    numbers[kept[np.argsort(starts[kept])]] = np.arange(1, len(kept) + 1, dtype=np.uint64)
    return numbers[roots]


def relabel(fragments: Fragments, numbers: Ids) -> Ids:
    """Replace the fragments 1..n of a block by ``numbers`` (n,); 0 stays 0.

    Examples
    --------
    >>> relabel(np.array([0, 2, 1], np.int32), np.array([70, 80], np.uint64))
    array([ 0, 80, 70], dtype=uint64)
    """
    table: Ids = np.concatenate([np.zeros(1, np.uint64), numbers.astype(np.uint64)])
    return table[fragments]


def _neighbourhood(linked: Sequence[bool], connectivity: str) -> npt.NDArray[np.bool_]:
    """Return the 3^n structure of neighbours, with none along axes that are not linked."""
    if connectivity not in ("face", "full"):
        raise ValueError(f"connectivity must be face or full, got '{connectivity}'; use face")
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
def _number_by_first_voxel(fragments: Fragments, numbers: Fragments) -> None:
    # SciPy's own order follows the memory layout that it chose; ours is the C order.
    n = 0
    for i in range(len(fragments)):
        fragment = fragments[i]
        if fragment == 0:
            continue
        if numbers[fragment] == 0:
            n += 1
            numbers[fragment] = n
        fragments[i] = numbers[fragment]


@numba.njit(cache=True, nogil=True)
def _measure(fragments: Fragments, first: Integers, sizes: Integers) -> None:
    for i in range(len(fragments)):
        fragment = fragments[i] - 1
        if fragment >= 0:
            if sizes[fragment] == 0:
                first[fragment] = i
            sizes[fragment] += 1
