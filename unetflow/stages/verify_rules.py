"""When a stored block agrees with what was computed again: arrays in, flags of wrong voxels out.

In float32 another tile or machine changes a probability by at most 1e-5; in bf16 by at most three levels of 255 on one
voxel in a hundred. What a level of rounding explains is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Flags = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]

EXACT = 1e-5  # by which probabilities differ between tiles in float32
_LOOSE_LEVELS, _LOOSE_SHARE = 3, 0.01  # in bf16


def wrong_probabilities(stored: Array, p: Float32, *, is_bf16: bool = False) -> Flags:
    """Flag stored probabilities that are not those of ``p``, both ``(K, ...)``.

    Examples
    --------
    >>> wrong_probabilities(np.array([[127, 129, 90]], np.uint8), np.full((1, 3), 0.5, np.float32)).tolist()
    [[False, False, True]]
    """
    # Channel by channel: the differences of a whole block would be as large as its probabilities.
    wrong = np.stack([~(_away(a, b) <= 1) for a, b in zip(stored, p, strict=True)])  # a NaN is wrong too
    if is_bf16 and wrong.mean() <= _LOOSE_SHARE:
        unit = 1 if stored.dtype == np.uint8 else 255 * 1.1 * EXACT
        return np.stack([~(_away(a, b) * unit <= _LOOSE_LEVELS) for a, b in zip(stored, p, strict=True)])
    return wrong


def _away(stored: Array, p: Float32) -> Float32:
    """Return how far stored probabilities are from ``p``, in what may be at most 1 in float32."""
    if stored.dtype == np.uint8:
        return np.asarray(np.abs(stored.astype(np.float32) - np.rint(p * np.float32(255))), np.float32)
    away = np.abs(stored.astype(np.float32) - p)
    if stored.dtype == np.float16:
        away -= np.spacing(np.abs(stored)).astype(np.float32)
    return np.asarray(away / np.float32(1.1 * EXACT), np.float32)


def wrong_classes(
    stored: Array, expected: Array, p: Float32, *, threshold: float, head: str, channel: int | None,
    is_bf16: bool = False,
) -> Flags:  # fmt: skip
    """Flag stored classes that are not those expected, but where the probabilities were next to undecided.

    Parameters
    ----------
    stored, expected : ndarray of uint8
    p : ndarray of float32, shape (K, ...)
    threshold : float
        Of the foreground, where two classes are told apart.
    channel : int or None
        Of a multilabel model; None is one map of classes.
    """
    wrong: Flags = np.asarray(stored != expected)
    if not wrong.any():
        return wrong
    reach = _LOOSE_LEVELS / 255 if is_bf16 else 1.1 * EXACT
    if channel is not None or head == "sigmoid" or len(p) == 2:
        foreground = p[channel or 0] if channel is not None or head == "sigmoid" else p[1]
        is_possible = stored <= 1
        margin = np.abs(foreground - np.float32(threshold))
    else:
        is_possible = stored < len(p)
        own = np.take_along_axis(p, np.minimum(stored, len(p) - 1)[None].astype(np.intp), 0)[0]
        margin = p.max(0) - own
    return np.asarray(wrong & ~(is_possible & (margin <= reach)))


@dataclass(frozen=True)
class ObjectRule:
    """What instances of a block must be, given its classes.

    Parameters
    ----------
    linked : tuple of bool
        Axes along which neighbours belong together.
    connectivity : {"face", "full"}
    min_size : int
        Smaller objects were dropped.
    fills_holes : bool
        Whether holes of objects were filled, so that instances reach beyond the classes.
    is_flooded : bool
        Whether a watershed cuts components further.
    """

    linked: Sequence[bool]
    connectivity: str
    min_size: int
    fills_holes: bool
    is_flooded: bool

    def wrong(self, instances: Array, classes: Array) -> Flags:
        """Flag voxels of instances ``(...)`` that cannot be, beside the stored classes.

        An instance stands where a class does; each component of the classes has one number.
        """
        from unetflow.numerics.labelling import label_block, relabel

        inside = classes > 0
        wrong: Flags = np.zeros(instances.shape, bool) if self.fills_holes else (instances > 0) & ~inside
        if self.is_flooded:
            return wrong if self.min_size > 1 else np.asarray(wrong | ((instances == 0) & inside))
        found = label_block(inside, self.linked, self.connectivity)
        fragments, ids = found.fragments, instances.reshape(-1)[found.first]
        differs = inside & (instances != relabel(fragments, ids))
        if differs.any():  # the first voxel itself may be the wrong one
            doubtful = np.unique(fragments[differs])
            ids[doubtful - 1] = _commonest(fragments, instances, doubtful)
            differs = inside & (instances != relabel(fragments, ids))
        # A component that was dropped is smaller than the smallest object, this block's part of it all the more.
        is_lost = (ids == 0) & (found.sizes >= self.min_size)
        return np.asarray(wrong | differs | (relabel(fragments, is_lost.astype(np.uint8)) > 0))


def _commonest(fragments: Array, instances: Array, wanted: Array) -> Array:
    """Return the instance that most voxels of each wanted fragment (sorted) have."""
    inside = np.isin(fragments, wanted)
    pairs, counts = np.unique(
        np.stack([fragments[inside].astype(np.uint64), instances[inside].astype(np.uint64)]), axis=1, return_counts=True
    )
    order = np.lexsort((counts, pairs[0]))
    last = np.searchsorted(pairs[0][order], wanted.astype(np.uint64), side="right") - 1
    return np.asarray(pairs[1][order][last]).astype(instances.dtype)
