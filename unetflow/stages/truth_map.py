"""What the values of a truth array mean: classes through a map, or objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Box

if TYPE_CHECKING:
    from unetflow.storage.volume import Volume


@dataclass(frozen=True)
class TruthMap:
    """The kind of the truth, its class map, and the raw values that do not count."""

    kind: str
    class_map: dict[int, int] | None
    ignore: tuple[int, ...]

    @property
    def is_multilabel(self) -> bool:
        """Whether classes overlap."""
        return self.kind == "multilabel"

    def classes(self, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return class indices; instance truth is class 1 where above 0, without seam."""
        from unetflow.numerics.targets import apply_class_map, ignore_mask

        if self.kind == "classes":
            return apply_class_map(labels, self.class_map, self.ignore)
        return ((labels > 0) & ~ignore_mask(labels, self.ignore)).astype(np.uint8)

    def counts(self, labels: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Say which voxels count."""
        from unetflow.numerics.targets import ignore_mask

        return ~ignore_mask(labels, self.ignore)


@dataclass(frozen=True)
class ClassForeground:
    """Where one class stands, or any above 0, in a segmentation (no map) or in class truth."""

    maps: dict[Volume, TruthMap | None]
    foreground: int | None

    def __call__(self, volume: Volume, box: Box) -> npt.NDArray[np.bool_]:
        """Read one box."""
        values = volume.read(box)[0]
        meaning = self.maps[volume]
        classes = values if meaning is None else meaning.classes(values)
        return np.asarray(classes > 0 if self.foreground is None else classes == self.foreground)
