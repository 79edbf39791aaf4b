"""Targets from annotations: what the network shall say at each voxel, read box by box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Box

MOST_CLASSES = 255

if TYPE_CHECKING:
    from unetflow.stages.inputs import Item
    from unetflow.storage.volume import Volume


@dataclass(frozen=True)
class Truth:
    """The target of one annotated image, by the definitions of its kind.

    Parameters
    ----------
    item : Item
        The image.
    linked : tuple of bool
        Axes along which neighbours belong together.
    n_classes : int
        Classes of the target, 0 while they are still being counted.
    """

    item: Item
    linked: tuple[bool, ...]
    n_classes: int = 0

    @property
    def is_multilabel(self) -> bool:
        """Whether classes overlap: the target then has a leading axis of masks."""
        return self.item.data.kind == "multilabel"

    def read(self, box: Box) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
        """Return the target and where it counts.

        Parameters
        ----------
        box : Box
            In label voxels, inside the labels.

        Returns
        -------
        target : ndarray of uint8, shape of the box, or (K, shape) for multilabel
        is_valid : ndarray of bool, shape of the box
            Within ``roi`` and ``mask``, and not ignored.
        """
        from unetflow.numerics import targets

        data = self.item.data
        rim = [int(linked) for linked in self.linked] if data.kind == "instances" else [0] * box.ndim
        outer = box.grow(rim, rim).intersect(self.item.labels.box)
        labels = self.item.labels.read(outer)
        inner = box.relative_to(outer).slices
        is_valid = self._is_inside(box)
        if self.is_multilabel:
            return targets.multilabel_target(labels), is_valid
        ignored = targets.ignore_mask(labels[0], data.ignore)
        is_valid &= ~ignored[inner]
        if data.kind == "classes":
            n_classes = self.n_classes or MOST_CLASSES
            return targets.class_target(labels[0], data.class_map, n_classes, data.ignore), is_valid
        ids = np.where(ignored, 0, labels[0])
        return targets.instance_target(ids, self.linked)[inner], is_valid

    def read_ids(self, box: Box, components: Volume | None) -> npt.NDArray[Any]:
        """Return the object of each voxel, 0 for none: ids as given, or the components found."""
        from unetflow.numerics.targets import ignore_mask

        if components is not None:
            return np.asarray(components.read(box)[0])
        labels = self.item.labels.read(box)[0]
        return np.where(ignore_mask(labels, self.item.data.ignore), 0, labels)

    def _is_inside(self, box: Box) -> npt.NDArray[np.bool_]:
        inside = np.zeros(box.shape, bool)
        inside[box.intersect(self.item.region).relative_to(box).slices] = True
        if self.item.mask is not None:
            inside &= self.item.mask.read(box)[0] > 0
        return inside


@dataclass(frozen=True)
class TruthForeground:
    """Where any class above 0 stands: what the components of class labels are made from."""

    truths: tuple[Truth, ...]

    def __call__(self, volume: Volume, box: Box) -> npt.NDArray[np.bool_]:
        """Read one box."""
        truth = next(t for t in self.truths if t.item.labels == volume)
        target, _ = truth.read(box)
        return np.asarray(target.any(0) if truth.is_multilabel else target > 0)
