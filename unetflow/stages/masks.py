"""Masks of any resolution over a volume: where they are 0, nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError
from unetflow.geometry import BlockGrid, Box
from unetflow.stages.pieces import Pieces, Some

if TYPE_CHECKING:
    from unetflow.stages.predict import Image
    from unetflow.storage.volume import Volume

Flags = npt.NDArray[np.bool_]

# A mask of up to so many voxels is looked at on the driver, so that blocks without any need no task.
_LOOKED_AT = 2**28
_SLAB = 2**24


@dataclass(frozen=True)
class Mask:
    """A mask that covers a volume, coarser or finer than it or alike.

    Parameters
    ----------
    volume : Volume
        One channel; above 0 is inside.
    ratio : tuple of float
        Length of a mask voxel in voxels of the volume, per grid axis.
    """

    volume: Volume
    ratio: tuple[float, ...]

    def digest(self) -> str:
        """Return the digest of the stored mask."""
        return self.volume.digest()

    def read(self, box: Box) -> Flags:
        """Return the mask in a box of the volume's own voxels."""
        index = [
            self._along(np.arange(a, b), axis)
            for axis, (a, b) in enumerate(zip(box.start, box.stop, strict=True))
        ]
        needed = Box(tuple(int(i[0]) for i in index), tuple(int(i[-1]) + 1 for i in index))
        inside: Flags = self.volume.read(needed)[0] > 0
        if inside.shape == box.shape and all(r == 1 for r in self.ratio):
            return inside
        return np.asarray(inside[np.ix_(*(i - a for i, a in zip(index, needed.start, strict=True)))])

    def blocks_inside(self, grid: BlockGrid, offset: tuple[int, ...]) -> Flags:
        """Say which blocks may hold a voxel inside, ``(len(grid),)``.

        Parameters
        ----------
        grid : BlockGrid
        offset : tuple of int
            Position of the grid's voxel 0 in the volume.

        Notes
        -----
        A small mask is looked at; of a large one, only which of its chunks are stored.
        """
        found = np.zeros(len(grid), bool)
        if self.volume.box.size <= _LOOKED_AT:
            for slab in BlockGrid(self.volume.box, self._slab()):
                self._mark(slab.inner, grid, offset, found)
            return found
        chunks = BlockGrid(self.volume.box, self.volume.shard or self.volume.chunk)
        [stored] = self.volume.stored_blocks(chunks)
        if self.volume.fill_value > 0:
            stored[:] = True
        for number in np.flatnonzero(stored):
            low, high = self._over(chunks[int(number)].inner, offset)
            found[grid.numbers_reading(low[None], high[None])] = True
        return found

    def _mark(self, box: Box, grid: BlockGrid, offset: tuple[int, ...], found: Flags) -> None:
        """Mark the blocks that the mask's voxels above 0 in a box reach."""
        places = np.argwhere(self.volume.read(box)[0] > 0)
        for part in np.array_split(places, max(1, len(places) // 2**18)):
            if len(part):
                low = np.floor((part + box.start) * self.ratio).astype(np.int64) - offset
                high = np.ceil((part + box.start + 1) * self.ratio).astype(np.int64) - offset
                found[grid.numbers_reading(low, high)] = True

    def _over(self, box: Box, offset: tuple[int, ...]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        low = np.floor(np.multiply(box.start, self.ratio)).astype(np.int64) - offset
        return low, np.ceil(np.multiply(box.stop, self.ratio)).astype(np.int64) - offset

    def _slab(self) -> tuple[int, ...]:
        """Return a box of whole chunks that the driver may hold."""
        shape = list(self.volume.shard or self.volume.chunk)
        for axis in reversed(range(len(shape))):
            while shape[axis] < self.volume.shape[axis] and np.prod(shape) * 2 <= _SLAB:
                shape[axis] *= 2
        return tuple(shape)

    def _along(self, voxels: npt.NDArray[np.int64], axis: int) -> npt.NDArray[np.int64]:
        index = np.floor((voxels + 0.5) / self.ratio[axis]).astype(np.int64)
        return np.asarray(np.minimum(index, self.volume.shape[axis] - 1))


def lay_over(mask: Volume, volume: Volume) -> Mask:
    """Lay a mask over a volume that it covers, by voxel sizes where they say so, else by shapes.

    Raises
    ------
    InputError
        If the axes differ, the mask has channels, or it lies elsewhere.
    """
    if mask.grid_axes != volume.grid_axes or mask.n_channels != 1:
        raise InputError(
            f"--mask must have the axes {volume.grid_axes} of the volume and one channel, got {mask.grid_axes} with "
            f"{mask.n_channels} in {mask.path}; drop the channels or give the axes in its metadata"
        )
    lead = volume.ndim - len(volume.spatial_axes)
    sizes = [b / a for a, b in zip(volume.voxel_size, mask.voxel_size, strict=True)]
    told = (1.0,) * lead + tuple(sizes)
    if mask.shape == volume.shape:
        return Mask(mask, (1.0,) * volume.ndim)
    if all(abs(n / r - m) < 1 for n, m, r in zip(volume.shape, mask.shape, told, strict=True)):
        return Mask(mask, told)
    if any(abs(r - 1) > 1e-6 for r in told):
        raise InputError(
            f"--mask must cover the volume of shape {volume.shape}, got {mask.shape} voxels that are "
            f"{tuple(round(r, 4) for r in told)} times as long in {mask.path}; resample it or mend its voxel size"
        )
    return Mask(mask, tuple(n / m for n, m in zip(volume.shape, mask.shape, strict=True)))


def inside(pieces: Pieces, images: Sequence[Image]) -> Pieces | Some:
    """Leave out the blocks of images that have no voxel inside a mask."""
    if all(image.mask is None for image in images):
        return pieces
    found = []
    for image, grid, first in zip(images, pieces.grids, pieces.first, strict=False):
        assert isinstance(grid, BlockGrid)
        offset = image.domain.start
        flags = np.ones(len(grid), bool) if image.mask is None else image.mask.blocks_inside(grid, offset)
        found.append(np.flatnonzero(flags) + first)
    return Some(pieces, np.concatenate(found))
