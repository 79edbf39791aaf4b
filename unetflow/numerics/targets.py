"""Labels to training targets.

A target is small: the class of each voxel, or a 0/1 mask a class. Everything here looks at a
voxel and at most its face neighbours, so a block needs a halo of one voxel for
`instance_target` and none for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

# Values that lie closer together than this are looked up in a table.
_TABLE_LENGTH = 1 << 22


def ignore_mask(labels: Array, ignore: Sequence[int]) -> Mask:
    """Say which voxels carry an ignored raw label value (shape of ``labels``)."""
    ignored = np.zeros(labels.shape, np.bool_)
    for value in ignore:
        ignored |= labels == value
    return ignored


def apply_class_map(labels: Array, class_map: Mapping[int, int] | None, ignore: Sequence[int] = ()) -> Array:
    """Send raw label values to class indices.

    Parameters
    ----------
    labels : ndarray of int or bool
        Any shape.
    class_map : mapping of int to int, or None
        Class of each raw value. None leaves the values (and the dtype) as they are.
    ignore : sequence of int
        Raw values that become 0 and need be no key; see `ignore_mask`.

    Returns
    -------
    ndarray
        uint8 where there is a map. Of the shape of ``labels``.

    Raises
    ------
    InputError
        A value is no key of the map, or a class is outside 0..255.

    Examples
    --------
    >>> apply_class_map(np.array([0, 255, 7]), {0: 0, 255: 1}, ignore=(7,))
    array([0, 1, 0], dtype=uint8)
    """
    if class_map is None:
        return np.where(ignore_mask(labels, ignore), labels.dtype.type(0), labels) if ignore else labels
    outside = [k for k in class_map.values() if not 0 <= k <= 255]
    if outside:
        raise InputError(f"a class index must lie in 0..255, got {outside[0]}; change class_map")
    table = {int(key): int(value) for key, value in class_map.items()}
    table.update(dict.fromkeys((int(value) for value in ignore), 0))
    if labels.size == 0:
        return np.zeros(labels.shape, np.uint8)
    low, high = int(labels.min()), int(labels.max())
    if high - low < _TABLE_LENGTH:
        return _look_up_near(labels, low, high, table)
    values, inverse = np.unique(labels, return_inverse=True)
    classes = [table.get(int(value), -1) for value in values]
    _refuse_unknown([int(v) for v, k in zip(values, classes, strict=True) if k < 0], table)
    return np.array(classes, np.uint8)[inverse].reshape(labels.shape)


def instance_target(ids: Array, connect_axes: Sequence[bool]) -> npt.NDArray[np.uint8]:
    """Mark the inside of objects, without the seam where two of them touch.

    Parameters
    ----------
    ids : ndarray of int, shape ([T, ][Z, ]Y, X)
        Objects are the ids above 0.
    connect_axes : sequence of bool
        Axes along which neighbours count; False along z and t for a network of 2 dimensions.

    Returns
    -------
    ndarray of uint8
        1 inside objects; 0 outside, and where a face neighbour belongs to another object.

    Examples
    --------
    >>> instance_target(np.array([[0, 5, 5, 9, 9, 0]]), (True, True))
    array([[0, 1, 0, 0, 1, 0]], dtype=uint8)
    """
    inside = ids > 0
    target = inside.astype(np.uint8)
    for axis, is_connected in enumerate(connect_axes):
        if not is_connected:
            continue
        before = (slice(None),) * axis + (slice(None, -1),)
        after = (slice(None),) * axis + (slice(1, None),)
        seam = (ids[before] != ids[after]) & inside[before] & inside[after]
        target[before][seam] = 0
        target[after][seam] = 0
    return target


def class_target(
    labels: Array, class_map: Mapping[int, int] | None, n_classes: int, ignore: Sequence[int] = ()
) -> npt.NDArray[np.uint8]:
    """Return the class index of each voxel as uint8; ignored voxels are 0.

    Raises
    ------
    InputError
        A value is no key of ``class_map``, or is no class of the network.
    """
    classes = apply_class_map(labels, class_map, ignore)
    for value in (classes.min(), classes.max()) if classes.size else ():
        if not 0 <= value < n_classes:
            raise InputError(
                f"labels must be class indices from 0 to {n_classes - 1}, got {int(value)}; "
                "add it to class_map, as in {0 = 0, 255 = 1}, or to ignore"
            )
    return classes.astype(np.uint8, copy=False)


def multilabel_target(masks: Array) -> npt.NDArray[np.uint8]:
    """Return masks (K, [Z, ]Y, X) as uint8: 1 where they are above 0."""
    return (masks > 0).astype(np.uint8)


def class_counts(target: Array, n_classes: int, valid: Mask | None = None) -> npt.NDArray[np.int64]:
    """Count the voxels of each class, shape (K,), where ``valid``."""
    chosen = target.ravel() if valid is None else target[valid]
    return np.bincount(chosen, minlength=n_classes).astype(np.int64)


def multilabel_counts(target: Array, valid: Mask | None = None) -> tuple[npt.NDArray[np.int64], int]:
    """Count the positive voxels of each mask of (K, [Z, ]Y, X), and the voxels, where ``valid``."""
    valid = np.ones(target.shape[1:], np.bool_) if valid is None else valid
    positives = [np.count_nonzero((mask > 0) & valid) for mask in target]
    return np.array(positives, np.int64), int(np.count_nonzero(valid))


def _look_up_near(labels: Array, low: int, high: int, table: Mapping[int, int]) -> npt.NDArray[np.uint8]:
    near = np.full(high - low + 1, -1, np.int16)
    for key, value in table.items():
        if low <= key <= high:
            near[key - low] = value
    whole = labels.view(np.uint8) if labels.dtype == np.bool_ else labels
    # Large unsigned ids do not fit int64, so they are brought near 0 in their own dtype.
    offsets = whole - whole.dtype.type(low) if low > 0 else whole.astype(np.int64) - low
    mapped = near[offsets]
    if mapped.min() < 0:
        _refuse_unknown(sorted({int(value) for value in np.unique(labels[mapped < 0])}), table)
    return mapped.astype(np.uint8)


def _refuse_unknown(values: list[int], table: Mapping[int, int]) -> None:
    if values:
        shown = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
        raise InputError(
            f"each label value must be a key of class_map ({', '.join(map(str, sorted(table)))}), "
            f"got {shown}; add it to class_map or to ignore"
        )
