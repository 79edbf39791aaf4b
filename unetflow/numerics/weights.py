"""The weight of each voxel in the loss: class balance, and a border where objects come near.

    w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))

d1 and d2 are the distances to the nearest and the second nearest object [1]_. The border is
zero by definition where it is below ``tolerance``, that is beyond ``d1 + d2 > cut``; so a
block with a halo of `border_halo` voxels gets the map of the whole volume, bit for bit. The
halo ends at the volume's border: nothing is mirrored there, for mirrored objects are none.

Lengths are in voxels of the finest axis; ``voxel_size`` is each axis' in that unit.

References
----------
.. [1] Ronneberger, Fischer, Brox: U-Net. MICCAI 2015, equation 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numba
import numpy as np
import numpy.typing as npt

from unetflow.numerics.distances import share_out, two_nearest_squared

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]
Weight = npt.NDArray[np.float32]
Where = Literal["background", "everywhere"]

LARGEST_CLASS_WEIGHT = 1000.0


def class_weights(counts: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Balance K classes: N / (K N_k), at most 1000, and 0 for a class without voxels.

    Parameters
    ----------
    counts : array_like of int, shape (K,)
        Voxels of each class over all training volumes.

    Examples
    --------
    >>> class_weights([75, 25]).round(3).tolist()
    [0.667, 2.0]
    """
    n = np.asarray(counts, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        balanced = n.sum() / (len(n) * n)
    return np.where(n > 0, np.minimum(balanced, LARGEST_CLASS_WEIGHT), 0.0)


def multilabel_weights(positives: npt.ArrayLike, n_voxels: int) -> npt.NDArray[np.float64]:
    """Balance K masks, each on its own: (K, 2), the negatives' weight, then the positives'.

    Examples
    --------
    >>> multilabel_weights([25], 100).round(3).tolist()
    [[0.667, 2.0]]
    """
    return np.array([class_weights([n_voxels - int(n), int(n)]) for n in np.asarray(positives)])


def border_cut(w0: float, sigma: float, tolerance: float) -> float:
    """Return the d1 + d2 at which the border weight falls to ``tolerance``; 0 for no border."""
    if w0 <= tolerance or sigma <= 0:
        return 0.0
    if tolerance <= 0:
        raise ValueError(f"tolerance must be above 0, or the border would never end, got {tolerance}")
    return sigma * math.sqrt(2 * math.log(w0 / tolerance))


def border_halo(cut: float, voxel_size: Sequence[float], planar: Sequence[bool] | None = None) -> tuple[int, ...]:
    """Return the voxels of context per axis that the border weight of a block needs.

    ``planar`` is True for axes along which no distance is measured; they need none. The seam
    of `instance_target` needs one voxel on its own account.

    Examples
    --------
    >>> border_halo(26.3, (10.0, 1.0, 1.0))
    (3, 27, 27)
    """
    flags = [False] * len(voxel_size) if planar is None else planar
    return tuple(0 if is_planar else math.ceil(cut / size) for size, is_planar in zip(voxel_size, flags, strict=True))


def two_nearest(
    ids: Array, voxel_size: Sequence[float], cut: float, planar: Sequence[bool] | None = None, threads: int = 1
) -> tuple[Weight, Weight]:
    """Measure the distances to the nearest and the second nearest object.

    Parameters
    ----------
    ids : ndarray of int, shape ([T, ][Z, ]Y, X)
        Objects are the ids above 0.
    voxel_size : sequence of float
        Per axis.
    cut : float
        Longer distances are given as infinite.
    planar : sequence of bool, optional
        True for axes along which no distance is measured.
    threads : int
        Threads that share the lines of an axis; the result does not depend on it.

    Returns
    -------
    d1, d2 : ndarray of float32
        Of the shape of ``ids``; d1 is 0 inside objects.

    Examples
    --------
    >>> d1, d2 = two_nearest(np.array([[3, 0, 0, 8]]), (1.0, 1.0), cut=9.0)
    >>> d1.tolist(), d2.tolist()
    ([[0.0, 1.0, 1.0, 0.0]], [[3.0, 2.0, 2.0, 3.0]])
    """
    first, second = two_nearest_squared(ids, voxel_size, cut, planar, threads)
    return np.sqrt(first, out=first), np.sqrt(second, out=second)


def border_weight(
    ids: Array,
    voxel_size: Sequence[float],
    w0: float,
    sigma: float,
    tolerance: float,
    planar: Sequence[bool] | None = None,
    threads: int = 1,
) -> Weight:
    """Return the border term, w0 exp(-(d1 + d2)^2 / (2 sigma^2)), 0 below ``tolerance``.

    ``ids``, ``planar`` and ``threads`` are those of `two_nearest`. Time and memory do not grow
    with the number of objects.

    Examples
    --------
    >>> border_weight(np.array([[3, 0, 8]]), (1.0, 1.0), 10.0, 5.0, 1e-5).round(2).tolist()
    [[9.229999542236328, 9.229999542236328, 9.229999542236328]]
    """
    cut = border_cut(w0, sigma, tolerance)
    if cut == 0 or not _are_several(ids):
        return np.zeros(ids.shape, np.float32)
    first, second = two_nearest_squared(ids, voxel_size, cut, planar, threads)
    squared = first.reshape(-1), second.reshape(-1)
    share_out(lambda begin, end: _border(*squared, w0, sigma, cut, begin, end), ids.size, threads)
    return first


def weight_map(
    target: npt.NDArray[np.uint8],
    ids: Array,
    weight_of_class: npt.ArrayLike,
    *,
    voxel_size: Sequence[float],
    w0: float,
    sigma: float,
    tolerance: float,
    planar: Sequence[bool] | None = None,
    border_where: Where = "background",
    ignored: Mask | None = None,
    threads: int = 1,
) -> Weight:
    """Return the weight of each voxel.

    Parameters
    ----------
    target : ndarray of uint8, shape ([T, ][Z, ]Y, X)
        Class indices.
    ids : ndarray of int, same shape
        Objects between which borders run.
    weight_of_class : array_like of float, shape (K,)
        See `class_weights`; ones where classes are not balanced.
    border_where : {"background", "everywhere"}
        ``background`` adds the border only where the target is 0.
    ignored : ndarray of bool, same shape, optional
        Voxels that weigh 0.
    threads : int
        See `two_nearest`.

    Returns
    -------
    ndarray of float32, same shape
    """
    border = border_weight(ids, voxel_size, w0, sigma, tolerance, planar, threads)
    return _with_border(target, np.asarray(weight_of_class), border, border_where, ignored)


def multilabel_weight_map(
    target: npt.NDArray[np.uint8],
    ids: Array,
    weight_of_class: npt.ArrayLike,
    *,
    voxel_size: Sequence[float],
    w0: float,
    sigma: float,
    tolerance: float,
    planar: Sequence[bool] | None = None,
    border_where: Where = "background",
    ignored: Mask | None = None,
    threads: int = 1,
) -> Weight:
    """Return a weight for each voxel and mask, (K, [Z, ]Y, X).

    As `weight_map`, with ``target`` (K, [Z, ]Y, X) of 0 and 1 and ``weight_of_class`` (K, 2),
    see `multilabel_weights`. A mask's background is where that mask is 0.
    """
    border = border_weight(ids, voxel_size, w0, sigma, tolerance, planar, threads)
    weight = np.empty(target.shape, np.float32)
    for mask, pair, out in zip(target, np.asarray(weight_of_class), weight, strict=True):
        out[...] = _with_border(mask, pair, border, border_where, ignored)
    return weight


def _with_border(
    target: npt.NDArray[np.uint8], table: Array, border: Weight, where: Where, ignored: Mask | None
) -> Weight:
    weight = table.astype(np.float32)[target]
    np.add(weight, border, out=weight, where=(target == 0) if where == "background" else True)
    if ignored is not None:
        weight[ignored] = 0
    return weight


def _are_several(ids: Array) -> bool:
    """Say whether there is more than one object."""
    highest = ids.max(initial=0)
    return bool(np.any((ids > 0) & (ids != highest)))


@numba.njit(cache=True, nogil=True)
def _border(first: Weight, second: Weight, w0: float, sigma: float, cut: float, begin: int, end: int) -> None:
    # Squared distances in, weights out, in place of `first`.
    steepness = -1 / (2 * sigma * sigma)
    for i in range(begin, end):
        weight = 0.0
        if second[i] < np.inf:
            reach = math.sqrt(np.float64(first[i])) + math.sqrt(np.float64(second[i]))
            if reach <= cut:
                weight = w0 * math.exp(steepness * reach * reach)
        first[i] = weight
