"""Where the tiles of a segmentation stand: what each reads, what it keeps, and with which weight.

Tiles stand side by side from the first voxel of what is segmented, so they are the same for any
blocks. What a tile reads is widened to multiples of the network's total stride counted from the
volume's origin, and by the halo.

::

    exact    |  kept  |  kept  |  kept  |        each reads its halo more, none overlaps
    blend    [  w  [ ]  w  [ ]  w  ]             windows overlap; weights sum to 1 at each voxel

Where a network sees voxels of another length than the volume's (a *ratio* other than 1), a tile still keeps
voxels of the volume, and reads those that the network sees; neighbours make one or two of these both::

    kept, in voxels of the volume     |   0   |   1   |   2   |   3   |
    made, as the network sees         |     0     |     1     |  ...
    tile 0                            |.......kept.......|
                                      |-----------made----------|  + halo: source

Whole numbers, and the weights of a blend.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

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
        What it reads, in voxels that the network sees; may leave the volume, where readers mirror.
    made : Box
        What its output is used for, in voxels that the network sees: those of which `kept` is made.
    kept : Box
        The same in voxels of the volume: `made` itself where the network sees these.
    seen : tuple of slice
        Where ``made`` lies in the network's output, along the network's axes.
    """

    source: Box
    made: Box
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
        Voxels of the volume that a tile keeps, or a blend's window, per grid axis: 1 along axes that the
        network does not see, else multiples of `unit`.
    tta : bool
        Whether the context must serve mirrored tiles too.
    mode : {"exact", "blend"}
        In a blend a tile has no halo of its own; it reads the network's margin only.
    overlap : float
        Share of its length that a blend's window has in common with the next one.
    ratio : tuple of float
        Length of a voxel that the network sees in voxels of the volume, per grid axis; empty where it sees these.
    """

    spec: UNetSpec
    domain: Box
    tile: Shape
    tta: bool = False
    mode: Mode = "exact"
    overlap: float = 0.25
    ratio: tuple[float, ...] = ()

    @property
    def n_lead(self) -> int:
        """Axes that the network does not see."""
        return self.domain.ndim - self.spec.dims

    @property
    def is_rescaled(self) -> bool:
        """Whether the network sees voxels of another length than the volume's."""
        return any(r != 1 for r in self.ratio)

    @property
    def seen_ratio(self) -> tuple[float, ...]:
        """The ratio along the network's axes."""
        return self.ratio[self.n_lead :] or (1.0,) * self.spec.dims

    @property
    def unit(self) -> Shape:
        """What tiles are multiples of, in voxels of the volume, along the network's axes.

        The network's total stride; of another length of voxels, the power of two that is nearest to it.
        """
        axes = zip(self.spec.total_stride, self.seen_ratio, strict=True)
        return tuple(s if r == 1 else 2 ** max(0, round(math.log2(s * r))) for s, r in axes)

    @property
    def step(self) -> Shape:
        """Distance from a tile to the next, per grid axis."""
        if self.mode == "exact":
            return self.tile
        unit = (1,) * self.n_lead + self.unit
        return tuple(
            max(s, round(n * (1 - self.overlap) / s) * s) for n, s in zip(self.tile, unit, strict=True)
        )

    @cached_property
    def halo(self) -> tuple[Shape, Shape]:
        """Context before and after the kept voxels along the network's axes."""
        if self.mode == "blend":
            return self.spec.margin, self.spec.margin
        return self.spec.symmetric_halo if self.tta else self.spec.halo

    @property
    def strides_made(self) -> Shape:
        """Length of the whole strides that hold what a tile makes, whichever it is, along the network's axes."""
        axes = zip(self.tile[self.n_lead :], self.seen_ratio, self.spec.total_stride, strict=True)
        off = [a % s for a, s in zip(self.domain.start[self.n_lead :], self.spec.total_stride, strict=True)]
        return tuple(whole_strides(k, r, s, is_off=o > 0) for (k, r, s), o in zip(axes, off, strict=True))

    @property
    def made_shape(self) -> Shape:
        """Length of what a tile makes at most, in voxels that the network sees, along its axes."""
        return tuple(most_made(k, r) for k, r in zip(self.tile[self.n_lead :], self.seen_ratio, strict=True))

    @cached_property
    def input_shape(self) -> Shape:
        """Shape of what one tile reads, along the network's axes."""
        made = self.strides_made
        if self.mode == "exact":
            return self.spec.tile_input(made, symmetric=self.tta)
        return self.spec.round_up([k + 2 * m for k, m in zip(made, self.spec.margin, strict=True)])

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
        kept, made, source = (
            Box(tuple(int(a) for a, _ in ends), tuple(int(b) for _, b in ends))
            for ends in zip(*(self.along(axis, i) for axis, i in enumerate(number)), strict=True)
        )
        lead = self.n_lead
        first = [a + m for a, m in zip(source.start[lead:], self.spec.margin, strict=True)]
        ends = zip(made.start[lead:], made.stop[lead:], first, strict=True)
        return Tile(source, made, kept, tuple(slice(a - o, b - o) for a, b, o in ends))

    def along(self, axis: int, number: Any) -> tuple[tuple[Any, Any], tuple[Any, Any], tuple[Any, Any]]:
        """Return start and stop of what tiles keep, make and read along one axis.

        Parameters
        ----------
        axis : int
            Of the grid.
        number : int or ndarray of int64
            Of tiles, counted along the axis from the domain's first voxel on.
        """
        start = self.domain.start[axis] + number * self.step[axis]
        kept = made = start, start + self.tile[axis]
        at = axis - self.n_lead
        if at < 0:
            return kept, made, made
        if self.seen_ratio[at] != 1:
            from unetflow.numerics.rescale import reach

            ratio = 1 / self.seen_ratio[at]
            made = reach(kept[0], ratio)[0], reach(kept[1] - 1, ratio)[1]
        first = made[0] - made[0] % self.spec.total_stride[at] - self.halo[0][at]
        return kept, made, (first, first + self.input_shape[at])

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


def whole_strides(kept: int, ratio: float, stride: int, *, is_off: bool = True) -> int:
    """Return the length of the whole strides that hold what a tile makes along one axis.

    Parameters
    ----------
    kept : int
        Voxels of the volume.
    is_off : bool
        Whether tiles start between strides, where the network sees the volume's own voxels.
    """
    if ratio == 1:
        return kept + (stride if is_off else 0)
    return -(-(most_made(kept, ratio) + stride - 1) // stride) * stride


def most_made(kept: int, ratio: float) -> int:
    """Return how many voxels that the network sees so many of the volume are made of, at most."""
    # Windows from the first to the last: a stretch that touches one voxel more than it is long, wherever it stands.
    return kept if ratio == 1 else math.ceil((kept - 1) / ratio + max(1.0, 1 / ratio)) + 1


def _gauss(place: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.float64]:
    """Return a Gaussian around a window's middle; 0 outside of the window."""
    away = (place - (length - 1) / 2) / (_DEVIATION * length)
    return np.where((place >= 0) & (place < length), np.exp(-0.5 * away**2), 0.0)
