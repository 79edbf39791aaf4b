"""What arrays tell about themselves: the kind of labels, pooling for their voxels, patches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.geometry import Box, Shape

if TYPE_CHECKING:
    from unetflow.storage.volume import Volume

MOST_IMAGES, MOST_PLANES, MOST_LENGTH = 8, 8, 1024  # what is read of the labels
MOST_CLASSES = 32
PIECES_OF_CLASS = 2.0  # parts a plane that the mean value falls into: objects are whole, classes are not
ANISOTROPIC = 2.0
_LEAST_AREA = 20  # pixels: what is smaller is a crumb of a class


@dataclass(frozen=True)
class Kind:
    """The kind of a label volume, and how it shows."""

    kind: str
    reason: str
    class_map: dict[int, int] | None = None
    n_classes: int = 2


@dataclass(frozen=True)
class Looks:
    """What a few planes of labels look like.

    Parameters
    ----------
    object_width : float or None
        Median diameter of a disk of an object's area, in voxels; None where no object was seen.
    rarest : float or None
        Share of the voxels of the rarest class; None where that was not looked at.
    """

    object_width: float | None = None
    rarest: float | None = None


class Labels:
    """Label volumes and a few planes of them, opened and read once.

    Raises
    ------
    InputError
        If there is no label volume.
    """

    def __init__(self, path: str, *, axes: str | None = None) -> None:
        from unetflow.storage.volume import open_images

        self.volumes = _open_labels(path, axes, open_images)

    @cached_property
    def planes(self) -> list[npt.NDArray[Any]]:
        """The middles of planes that are spread over the volumes."""
        return [plane for volume in self.volumes[:MOST_IMAGES] for plane in _planes(volume)]


def find_kind(labels: Labels) -> Kind:
    """Tell instances from classes and multilabel masks by a few planes.

    Object ids are many and each is one piece; classes are few and each falls into pieces.

    Raises
    ------
    InputError
        If the labels are floats.
    """
    first = labels.volumes[0]
    if np.dtype(first.dtype).kind not in "iub":
        raise InputError(f"labels must be integers, got {first.dtype} in {first.path}; convert with --as-labels")
    if first.n_channels > 1:
        return Kind("multilabel", f"{first.n_channels} channels of masks, which may overlap")
    planes = labels.planes
    values = sorted({int(v) for plane in planes for v in np.unique(plane)})
    where = f"{len(planes)} planes looked at" if len(planes) > 1 else "1 plane looked at"
    shown = ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
    objects = [v for v in values if v]
    if not objects:
        return Kind("instances", f"no label above 0 in {where}; check it")
    pieces = _pieces_per_value(planes)
    if len(values) <= 2 and max(objects) in (1, 255):
        reason = f"a mask: only the values {shown} in {where}"
    elif len(values) <= MOST_CLASSES and pieces >= PIECES_OF_CLASS:
        reason = f"the values {shown} fall into {pieces:.1f} pieces a plane ({where}): no object ids"
    else:
        return Kind("instances", f"{len(objects)} ids, each {pieces:.1f} pieces a plane ({where})")
    is_index = values == list(range(len(values))) or set(values) <= {0, 1}
    if not is_index and len(values) == 1:
        values = [0, *values]  # a mask without background in these planes
    class_map = None if is_index else {v: i for i, v in enumerate(values)}
    return Kind("classes", reason, class_map, max(2, len(values)))


def look_at(labels: Labels, kind: Kind) -> Looks:
    """Measure objects and classes in a few planes of labels of a known kind.

    Objects are the ids of instances, or the connected pieces of all that is foreground; those that
    the edge of what was read cuts do not count.
    """
    from skimage.measure import label
    from skimage.segmentation import clear_border

    if kind.kind == "multilabel":
        return Looks()
    areas: list[npt.NDArray[Any]] = []
    counts: dict[int, int] = {}
    for plane in labels.planes:
        classes = _class_of(plane, kind)
        for value, count in zip(*np.unique(classes, return_counts=True), strict=True):
            counts[int(value)] = counts.get(int(value), 0) + int(count)
        objects = label(plane if kind.kind == "instances" else classes > 0, background=0, connectivity=1)
        _, sizes = np.unique(clear_border(objects), return_counts=True)
        areas.append(sizes[1:])  # the first is the background
    sizes = np.concatenate(areas)
    sizes = sizes[sizes >= _LEAST_AREA]
    width = float(2 * np.sqrt(np.median(sizes) / np.pi)) if sizes.size else None
    rarest = min(counts.values()) / sum(counts.values()) if len(counts) == kind.n_classes else None
    return Looks(width, rarest)


def _class_of(plane: npt.NDArray[Any], kind: Kind) -> npt.NDArray[Any]:
    if kind.kind == "instances":
        return plane > 0
    if kind.class_map is None:
        return plane
    return np.asarray(sum((np.where(plane == value, index, 0) for value, index in kind.class_map.items()), plane * 0))


def pooling(size: Sequence[float], depth: int) -> tuple[list[list[int]], list[list[int]]]:
    """Choose pooling windows and kernels that bring anisotropic voxels towards cubes.

    Parameters
    ----------
    size : sequence of float
        Voxel size along the network's axes.
    depth : int
        Number of poolings.

    Returns
    -------
    pool : list of windows, one a level
        2, or 1 along an axis whose voxels are at least twice the finest.
    kernel : list of kernels, one a level and one for the bottom
        3, or 1 along such an axis.

    Examples
    --------
    >>> pooling((2.2, 1.0, 1.0), 2)
    ([[1, 2, 2], [2, 2, 2]], [[1, 3, 3], [3, 3, 3], [3, 3, 3]])
    """
    pool, kernel, now = [], [], list(size)
    for _ in range(depth + 1):
        is_long = [v >= ANISOTROPIC * min(now) for v in now]
        pool.append([1 if long else 2 for long in is_long])
        kernel.append([1 if long else 3 for long in is_long])
        now = [v * p for v, p in zip(now, pool[-1], strict=True)]
    return pool[:depth], kernel


def patch_shape(model: Mapping[str, Any], most: Sequence[int]) -> Shape:
    """Return the largest input whose output has at most ``most`` voxels along each axis."""
    names = ("dims", "depth", "base_channels", "padding", "pool", "kernel")
    spec = UNetSpec.build(**{name: model[name] for name in names if name in model})
    smallest = spec.round_up([1] * spec.dims)
    best = list(smallest)
    for axis, limit in enumerate(most):
        for length in range(smallest[axis], limit + 2 * spec.margin[axis] + 1):
            tried = [length if a == axis else n for a, n in enumerate(smallest)]
            if spec.accepts(tried) and spec.output_shape(tried)[axis] <= limit:
                best[axis] = length
    return tuple(best)


def _open_labels(path: str, axes: str | None, open_images: Any) -> list[Volume]:
    """Open labels with their own axes, else with those of the raw volume without channels."""
    try:
        return list(open_images(path).values())
    except InputError:
        if axes is None:
            raise
        return list(open_images(path, axes=axes.replace("c", "")).values())


def _planes(volume: Volume) -> Iterator[npt.NDArray[Any]]:
    """Read the middles of planes that are spread over the volume."""
    lead = volume.shape[:-2]
    n_planes = int(np.prod(lead, dtype=np.int64))
    count = min(MOST_PLANES, n_planes)
    # middles of equal parts, so that a single plane is the middle one
    for number in sorted({(2 * i + 1) * n_planes // (2 * count) for i in range(count)}):
        at = [int(i) for i in np.unravel_index(number, lead)] if lead else []
        start = at + [max(0, (n - MOST_LENGTH) // 2) for n in volume.shape[-2:]]
        stop = [a + 1 for a in at] + [
            a + min(n, MOST_LENGTH) for a, n in zip(start[-2:], volume.shape[-2:], strict=True)
        ]
        plane = volume.read(Box(tuple(start), tuple(stop)))[0]
        yield plane.reshape(plane.shape[-2:])


def _pieces_per_value(planes: Sequence[npt.NDArray[Any]]) -> float:
    """Return the mean number of connected pieces of a value above 0 in a plane that has it."""
    from skimage.measure import label

    n_pieces = n_values = 0
    for plane in planes:
        n_pieces += int(label(plane, background=0, connectivity=2).max())
        n_values += int(np.count_nonzero(np.unique(plane)))
    return n_pieces / max(1, n_values)
