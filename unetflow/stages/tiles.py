"""Where the tiles of a segmentation stand: what each reads, what it keeps, and with which weight.

Tiles stand side by side from the first voxel of what is segmented, so they are the same for any
blocks. What a tile reads is widened to multiples of the network's total stride counted from the
volume's origin, and by the halo.

::

    exact    |  kept  |  kept  |  kept  |        each reads its halo more, none overlaps
    blend    [  w  [ ]  w  [ ]  w  ]             windows overlap; weights sum to 1 at each voxel

Whole numbers, and the weights of a blend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from unetflow.architecture import UNetSpec
from unetflow.geometry import Box, Shape

Mode = Literal["exact", "blend"]
Float32 = npt.NDArray[np.float32]

# Of a window's length, as MONAI's default: what it sees far from its middle counts for little.
_DEVIATION = 0.125


@dataclass(frozen=True)
class Tile:
    """One forward pass.

    Parameters
    ----------
    source : Box
        What it reads, in voxels of the volume; may leave the volume, where readers mirror.
    kept : Box
        What its output is used for.
    seen : tuple of slice
        Where ``kept`` lies in the network's output, along the network's axes.
    """

    source: Box
    kept: Box
    seen: tuple[slice, ...]


@dataclass(frozen=True)
class Tiling:
    """The tiles of one image.

    Parameters
    ----------
    spec : UNetSpec
    domain : Box
        What is segmented, in voxels of the volume.
    tile : tuple of int
        Voxels that a tile keeps, or a blend's window, per grid axis: 1 along axes that the network
        does not see, else multiples of its total stride.
    tta : bool
        Whether the context must serve mirrored tiles too.
    mode : {"exact", "blend"}
        In a blend a tile has no halo of its own; it reads the network's margin only.
    overlap : float
        Share of its length that a blend's window has in common with the next one.
    """

    spec: UNetSpec
    domain: Box
    tile: Shape
    tta: bool = False
    mode: Mode = "exact"
    overlap: float = 0.25

    @property
    def n_lead(self) -> int:
        """Axes that the network does not see."""
        return self.domain.ndim - self.spec.dims

    @property
    def step(self) -> Shape:
        """Distance from a tile to the next, per grid axis."""
        if self.mode == "exact":
            return self.tile
        stride = (1,) * self.n_lead + self.spec.total_stride
        return tuple(
            max(s, round(n * (1 - self.overlap) / s) * s) for n, s in zip(self.tile, stride, strict=True)
        )

    @property
    def halo(self) -> tuple[Shape, Shape]:
        """Context before and after the kept voxels along the network's axes."""
        if self.mode == "blend":
            return self.spec.margin, self.spec.margin
        return self.spec.symmetric_halo if self.tta else self.spec.halo

    @property
    def lead_in(self) -> Shape:
        """Voxels from the stride's last multiple to the first kept voxel, along the network's axes."""
        start = self.domain.start[self.n_lead :]
        return tuple(a % s for a, s in zip(start, self.spec.total_stride, strict=True))

    @property
    def input_shape(self) -> Shape:
        """Shape of what one tile reads, along the network's axes."""
        stride = self.spec.total_stride
        kept = tuple(
            k + (s if lead else 0)
            for k, s, lead in zip(self.tile[self.n_lead :], stride, self.lead_in, strict=True)
        )
        if self.mode == "exact":
            return self.spec.tile_input(kept, symmetric=self.tta)
        return self.spec.round_up([k + 2 * m for k, m in zip(kept, self.spec.margin, strict=True)])

    def touching(self, box: Box) -> Iterator[Tile]:
        """Yield the tiles that a box of the domain needs, in C order of their places."""
        ranges = [self._numbers(box, axis) for axis in range(box.ndim)]
        for index in np.ndindex(*(len(r) for r in ranges)):
            yield self._tile(tuple(r[i] for r, i in zip(ranges, index, strict=True)))

    def count(self, box: Box) -> int:
        """Return the number of tiles that a box needs."""
        return int(np.prod([len(self._numbers(box, axis)) for axis in range(box.ndim)]))

    def _numbers(self, box: Box, axis: int) -> range:
        """Return the numbers, along one axis, of the tiles that share a voxel with a box."""
        step, length = self.step[axis], self.tile[axis]
        first = box.start[axis] - self.domain.start[axis]
        last = box.stop[axis] - 1 - self.domain.start[axis]
        return range(-(-(first - length + 1) // step), last // step + 1)

    def _tile(self, number: Shape) -> Tile:
        start = tuple(d + i * s for d, i, s in zip(self.domain.start, number, self.step, strict=True))
        kept = Box(start, tuple(a + t for a, t in zip(start, self.tile, strict=True)))
        lead, lead_in, (before, _) = self.n_lead, self.lead_in, self.halo
        at = tuple(a - o - b for a, o, b in zip(start[lead:], lead_in, before, strict=True))
        end = tuple(a + n for a, n in zip(at, self.input_shape, strict=True))
        source = Box(start[:lead] + at, kept.stop[:lead] + end)
        skip = [o + b - m for o, b, m in zip(lead_in, before, self.spec.margin, strict=True)]
        seen = tuple(slice(s, s + t) for s, t in zip(skip, self.tile[lead:], strict=True))
        return Tile(source, kept, seen)

    def weights(self, tile: Tile, part: Box) -> list[Float32]:
        """Return the weights of a blend's window along each axis of a part of it.

        Their product over the axes is the window's weight at a voxel; over all windows these sum
        to 1, since windows stand on a grid and the Gaussians factor.
        """
        return [self._weights(tile.kept, part, axis) for axis in range(part.ndim)]

    def _weights(self, window: Box, part: Box, axis: int) -> Float32:
        length, step = self.tile[axis], self.step[axis]
        if step == length:
            return np.ones(part.shape[axis], np.float32)
        place = np.arange(part.start[axis], part.stop[axis]) - window.start[axis]
        # The windows that also hold a voxel start whole steps before or after this one.
        reach = range(-(length // step), length // step + 1)
        total = sum(_gauss(place - k * step, length) for k in reach)
        return np.asarray(_gauss(place, length) / total, np.float32)


def _gauss(place: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.float64]:
    """Return a Gaussian around a window's middle; 0 outside of the window."""
    away = (place - (length - 1) / 2) / (_DEVIATION * length)
    return np.where((place >= 0) & (place < length), np.exp(-0.5 * away**2), 0.0)
