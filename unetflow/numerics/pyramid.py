"""Coarser levels of a volume: means of intensities, modes of labels.

Windows start at the array's first voxel, so a block must start at a multiple of the factors.
A window that the end cuts uses the voxels that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def average_pool(array: Array, factors: Sequence[int]) -> Array:
    """Average windows of a volume.

    Parameters
    ----------
    array : ndarray, shape (C, [T, ][Z, ]Y, X)
        Integers or floats.
    factors : sequence of int
        Window length along each axis after the channels.

    Returns
    -------
    ndarray
        Of the same dtype, each length divided by its factor and rounded up; integers are
        rounded to the nearest, halves up.

    Examples
    --------
    >>> average_pool(np.array([[0, 1, 5]], np.uint8), (2,))
    array([[1, 5]], dtype=uint8)
    """
    is_whole = array.dtype.kind in "iub"
    total: Array = array
    counts: npt.NDArray[np.int64] = np.ones((1,), np.int64)
    for axis, factor in enumerate(factors, start=1):
        length = array.shape[axis]
        total = _sum_windows(total, axis, factor, _accumulator(array.dtype))
        windows = np.minimum(factor, length - factor * np.arange(total.shape[axis]))
        counts = counts[..., None] * windows
    if not is_whole:
        return (total / counts).astype(array.dtype)
    return ((2 * total + counts) // (2 * counts)).astype(array.dtype)


def mode_pool(labels: Array, factors: Sequence[int]) -> Array:
    """Take the most frequent label of each window; of a tie the smallest.

    Parameters
    ----------
    labels : ndarray of int, shape ([T, ][Z, ]Y, X)
    factors : sequence of int
        Window length along each axis.

    Returns
    -------
    ndarray
        Of the same dtype, each length divided by its factor and rounded up.

    Examples
    --------
    >>> mode_pool(np.array([[7, 7, 0, 4], [7, 0, 4, 0]]), (2, 2))
    array([[7, 0]])
    """
    shape = tuple(-(-n // f) for n, f in zip(labels.shape, factors, strict=True))
    whole = labels.view(np.uint8) if labels.dtype == np.bool_ else labels
    result = np.empty(shape, whole.dtype)
    missing = 4 - labels.ndim
    if missing < 0:
        raise ValueError(f"labels must have at most the 4 axes t, z, y, x, got {labels.ndim} axes")
    _take_modes(
        np.ascontiguousarray(whole).reshape((1,) * missing + labels.shape),
        result.reshape((1,) * missing + shape),
        np.array((1,) * missing + tuple(factors), np.int64),
    )
    return result.view(labels.dtype)


def _accumulator(dtype: np.dtype[Any]) -> type[np.generic]:
    if dtype.kind == "f":
        return np.float64
    # 65,536 voxels of 16 bits still fit; windows are far smaller.
    return np.uint32 if dtype.kind in "ub" and dtype.itemsize <= 2 else np.int64


def _sum_windows(array: Array, axis: int, factor: int, dtype: type[np.generic]) -> Array:
    shape = list(array.shape)
    shape[axis] = -(-shape[axis] // factor)
    total = np.zeros(shape, dtype)
    for offset in range(min(factor, array.shape[axis])):
        part = array[(slice(None),) * axis + (slice(offset, None, factor),)]
        total[(slice(None),) * axis + (slice(part.shape[axis]),)] += part
    return total


@numba.njit(cache=True, nogil=True)
def _take_modes(labels: Array, result: Array, factors: npt.NDArray[np.int64]) -> None:
    n_t, n_z, n_y, n_x = labels.shape
    window = np.empty(factors.prod(), labels.dtype)
    for t, z, y, x in np.ndindex(result.shape):
        n = 0
        is_uniform = True
        for i in range(t * factors[0], min(n_t, (t + 1) * factors[0])):
            for j in range(z * factors[1], min(n_z, (z + 1) * factors[1])):
                for k in range(y * factors[2], min(n_y, (y + 1) * factors[2])):
                    for m in range(x * factors[3], min(n_x, (x + 1) * factors[3])):
                        window[n] = labels[i, j, k, m]
                        is_uniform = is_uniform and window[n] == window[0]
                        n += 1
        result[t, z, y, x] = window[0] if is_uniform else _mode(window[:n])


@numba.njit(cache=True, nogil=True)
def _mode(window: Array) -> Any:
    best, most = window[0], 0
    for candidate in window:
        n = 0
        for value in window:
            n += value == candidate
        if n > most or (n == most and candidate < best):
            best, most = candidate, n
    return best
