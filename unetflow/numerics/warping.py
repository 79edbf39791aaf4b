"""The warping error: what is wrong with a segmentation beyond a shift of its borders.

The truth is deformed towards the segmentation by flipping *simple* pixels, which changes no
topology: nothing splits, merges, appears or vanishes. Pixels that still differ are the error.

References
----------
.. [1] Jain et al.: Boundary learning by optimization with topological constraints. CVPR 2010.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from scipy import ndimage

Array = npt.NDArray[Any]

LARGEST_SECTION = 8192 * 8192

# A pixel's neighbours in the order of the bits of a neighbourhood's number.
_AROUND = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


def warping_error(segmentation: Array, truth: Array, valid: npt.NDArray[np.bool_] | None = None) -> float | None:
    """Return the share of pixels that differ after the best warping found.

    Parameters
    ----------
    segmentation, truth : ndarray, shape (Y, X)
        Foreground is what is above 0; it is 4-connected, the background 8-connected.
    valid : ndarray of bool, shape (Y, X), optional
        Pixels that count; the others take the truth's value.

    Returns
    -------
    float or None
        None for a section of more than 8192 x 8192 pixels; NaN where no pixel is valid.

    Notes
    -----
    The smallest error over all orders of flips is not known to be computable in reasonable
    time. Differing pixels are taken in C order, then their neighbours as they become simple,
    so that borders move layer by layer. Outside of the image is background.

    Examples
    --------
    >>> truth = np.zeros((9, 9), np.uint8)
    >>> truth[2:5, 2:5] = 1
    >>> warping_error(np.roll(truth, 1, axis=1), truth)
    0.0
    """
    if segmentation.ndim != 2 or segmentation.shape != truth.shape:
        raise ValueError(
            f"warping error compares two sections (Y, X) of one shape, got {segmentation.shape} and {truth.shape}"
        )
    if truth.size > LARGEST_SECTION:
        return None
    is_valid = np.ones(truth.shape, np.bool_) if valid is None else valid
    warped = np.pad((truth > 0).astype(np.uint8), 1)
    goal = np.pad(np.where(is_valid, segmentation > 0, truth > 0).astype(np.uint8), 1)
    n_differing = _warp(warped, goal, _SIMPLE)
    n_valid = int(np.count_nonzero(is_valid))
    return n_differing / n_valid if n_valid else float("nan")


def _is_simple(neighbourhood: int) -> bool:
    """Say whether the middle of a 3x3 neighbourhood may flip without a change of topology."""
    window = np.zeros((3, 3), np.bool_)
    for bit, (y, x) in enumerate(_AROUND):
        window[1 + y, 1 + x] = neighbourhood >> bit & 1
    pieces, _ = ndimage.label(window)
    n_foreground = len({int(pieces[1 + y, 1 + x]) for y, x in _AROUND if y == 0 or x == 0} - {0})
    background = ~window
    background[1, 1] = False
    n_background = ndimage.label(background, np.ones((3, 3)))[1]
    return n_foreground == 1 and n_background == 1


_SIMPLE = np.array([_is_simple(neighbourhood) for neighbourhood in range(256)])


@numba.njit(cache=True, nogil=True)
def _warp(warped: Array, goal: Array, simple: npt.NDArray[np.bool_]) -> int:
    """Flip simple pixels of ``warped`` that differ from ``goal``; return how many still differ."""
    n_y, n_x = warped.shape
    width = np.int64(n_x)
    current, goals = warped.reshape(-1), goal.reshape(-1)
    around = np.array([-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1])
    # A pixel is queued once at a time, so a ring as long as the list of differences will do.
    differing = np.flatnonzero(current != goals)
    ring = differing.copy()
    is_queued = np.zeros(current.size, np.bool_)
    is_queued[differing] = True
    head, n_waiting, n_differing = 0, len(ring), len(ring)
    while n_waiting > 0:
        pixel = ring[head]
        head = (head + 1) % len(ring)
        n_waiting -= 1
        is_queued[pixel] = False
        neighbourhood = np.int64(0)
        for bit in range(8):
            neighbourhood |= np.int64(current[pixel + around[bit]]) << bit
        if not simple[neighbourhood]:
            continue
        current[pixel] = goals[pixel]
        n_differing -= 1
        for step in around:
            other = pixel + step
            if current[other] != goals[other] and not is_queued[other]:
                ring[(head + n_waiting) % len(ring)] = other
                n_waiting += 1
                is_queued[other] = True
    return n_differing
