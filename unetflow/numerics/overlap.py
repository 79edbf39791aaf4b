"""Join the objects of the planes of a stack by how far they overlap.

Two objects of neighbouring planes are one where their IoU (the voxels that they share, laid on top of each
other, over those that either has) is at least a threshold, and where each is the other's best: of highest IoU,
of lowest id among equals. So an object goes on in at most one of the next plane, and cells that touch over
planes stay apart.

::

    plane_overlaps   two planes of ids -> which pairs overlap, by how many voxels
    best_partners    pairs of some objects -> the best of each
    chain            who goes on whom -> one number a chain

All three see a part only: pairs add over blocks, and chains are followed a range of ids at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from unetflow.numerics.contingency import Contingency, add, contingency

Array = npt.NDArray[Any]
Integers = npt.NDArray[np.int64]


def plane_overlaps(ids: Array, axis: int) -> Contingency:
    """Count the voxels that objects of neighbouring planes share.

    Parameters
    ----------
    ids : ndarray of int, shape ([T, ][Z, ]Y, X)
        0 outside objects; no id is in two planes.
    axis : int
        Along which planes are neighbours.

    Returns
    -------
    Contingency
        Ids in a plane and in the next one.

    Examples
    --------
    >>> found = plane_overlaps(np.array([[1, 1, 0], [2, 2, 2]]), 0)
    >>> found.pairs.tolist(), found.counts.tolist()
    ([[1, 2]], [2])
    """
    n = ids.shape[axis]
    here = ids[(slice(None),) * axis + (slice(0, n - 1),)]
    there = ids[(slice(None),) * axis + (slice(1, n),)]
    return contingency(here, there, (here > 0) & (there > 0))


def best_partners(
    own: Integers, partners: Integers, shared: Integers, sizes: Integers, size_of: Callable[[Integers], Integers],
    threshold: float,
) -> Integers:  # fmt: skip
    """Return the best partner of each of n objects; 0 where none has an IoU of at least ``threshold``.

    Parameters
    ----------
    own : ndarray of int64, shape (m,)
        Objects of pairs that overlap, 0..n-1; a pair may come in several parts.
    partners : ndarray of int64, shape (m,)
        Their partners' ids, from 1.
    shared : ndarray of int64, shape (m,)
        Voxels in common.
    sizes : ndarray of int64, shape (n,)
        Voxels of each of the n objects.
    size_of : callable
        Sorted ids of partners -> voxels of each.
    threshold : float
        Above 0.

    Examples
    --------
    >>> best_partners(
    ...     np.array([0, 0]), np.array([5, 6]), np.array([3, 1]), np.array([4]), lambda ids: np.array([4, 4]), 0.5
    ... ).tolist()
    [5]
    """
    whole = add(Contingency(np.stack([own, partners], axis=1), shared), Contingency.empty())
    own, partners = whole.pairs.T
    found, inverse = np.unique(partners, return_inverse=True)
    iou = whole.counts / (sizes[own] + size_of(found)[inverse] - whole.counts)
    is_near = iou >= threshold
    own, partners, iou = own[is_near], partners[is_near], iou[is_near]
    order = np.lexsort((partners, -iou, own))
    objects, first = np.unique(own[order], return_index=True)
    best = np.zeros(len(sizes), np.int64)
    best[objects] = partners[order][first]
    return best


def chain(before: Integers, start: int, n_chains: int, known: Callable[[Integers], Integers]) -> Integers:
    """Give chains their numbers, in the order of their first objects, and return those of a range of objects.

    Parameters
    ----------
    before : ndarray of int64, shape (m,)
        Id of the object that each one goes on from, lower than its own; 0 begins a chain.
    start : int
        Id of the first of the m objects, from 1.
    n_chains : int
        Chains that begin with objects before ``start``.
    known : callable
        Ids below ``start``, in any order -> the chain of each.

    Returns
    -------
    ndarray of int64, shape (m,)
        The number of the chain of each, from 1.

    Examples
    --------
    >>> chain(np.array([0, 1, 4, 5]), 4, 2, lambda ids: np.array([1])).tolist()
    [3, 1, 3, 1]
    """
    own = np.arange(len(before))
    is_here = before >= start
    # Each points to where its chain comes in; then pointers are followed, twice as far each time.
    origin = np.where(is_here, before - start, own)
    while ((further := origin[origin]) != origin).any():
        origin = further
    numbers = np.zeros(len(before), np.int64)
    begins = before == 0
    numbers[begins] = n_chains + 1 + np.arange(begins.sum())
    comes = ~begins & ~is_here
    numbers[comes] = known(before[comes])
    return np.asarray(numbers[origin], np.int64)
