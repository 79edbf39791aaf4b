"""The record of a volume: read a box of it, with mirrored borders; write an aligned box.

::

    stored axes, say    c x y z             boxes and shapes name the GRID axes: t, z, y, x
    reading gives      (C, Z, Y, X)         as far as the volume has them, in that order
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from unetflow.geometry import BlockGrid, Box, mirror_indices
from unetflow.storage import array as arrays
from unetflow.storage.array import AnyArray
from unetflow.storage.chunks import ChunkCache
from unetflow.storage.describe import GRID_AXES, SPATIAL_AXES
from unetflow.storage.digest import digest_of
from unetflow.storage.presence import Integers, each_stored


@dataclass(frozen=True)
class Volume:
    """A Zarr array with named axes: a small record that travels to workers.

    Parameters
    ----------
    path : str
        The array: an absolute path or a URL.
    axes : str
        Its axes in stored order, letters of ``tczyx``.
    shape : tuple of int
        Lengths of the grid axes (all but the channels) in the order t, z, y, x.
    n_channels : int
        Length of the channel axis; 1 where there is none.
    dtype : str
        NumPy's name, such as ``uint8``.
    voxel_size, translation : tuple of float
        Of the spatial axes, in `unit`: length of a voxel, position of the first voxel.
    unit : str or None
        As the metadata say; None (taken for micrometres) where they do not.
    chunk, shard : tuple of int
        What is decoded and what is written as a whole, per grid axis; shard may be None.
    fill_value : float
        Value of what is not stored.
    image_path : str
        The OME image that the array is a level of, else the array.
    level : int
        Number of the level, 0 for the finest.
    """

    path: str
    axes: str
    shape: tuple[int, ...]
    n_channels: int
    dtype: str
    voxel_size: tuple[float, ...]
    unit: str | None
    translation: tuple[float, ...]
    chunk: tuple[int, ...]
    shard: tuple[int, ...] | None
    fill_value: float
    image_path: str
    level: int

    @property
    def grid_axes(self) -> str:
        """Axes that boxes name: t, then the spatial ones."""
        return "".join(a for a in GRID_AXES if a in self.axes)

    @property
    def spatial_axes(self) -> str:
        """Axes of space in the order z, y, x."""
        return "".join(a for a in SPATIAL_AXES if a in self.axes)

    @property
    def has_channels(self) -> bool:
        """Whether the array has a channel axis."""
        return "c" in self.axes

    @cached_property
    def _version(self) -> str:
        """What handles of the array depend on: one behind a URL may have been written anew."""
        return repr((self.axes, self.shape, self.n_channels, self.dtype, self.chunk, self.shard, self.fill_value))

    @property
    def box(self) -> Box:
        """The whole volume."""
        return Box.of_shape(self.shape)

    @property
    def ndim(self) -> int:
        """Number of grid axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of all voxels and channels, uncompressed."""
        return math.prod(self.shape) * self.n_channels * np.dtype(self.dtype).itemsize

    def read(self, box: Box, cache: ChunkCache | None = None) -> AnyArray:
        """Return the voxels of a box inside the volume, ``(C, *box.shape)``; whole chunks stay in ``cache``.

        Raises
        ------
        ValueError
            If the box is not inside the volume.
        CorruptChunkError
            If stored data cannot be decoded.
        """
        if box.ndim != self.ndim or not self.box.contains(box):
            raise ValueError(
                f"a box that is read must lie inside the volume {self.box}, got {box}; "
                "use read_mirrored for what lies outside"
            )
        if cache is not None:
            return cache.read(self, box)
        out = np.empty((self.n_channels, *box.shape), self.dtype)
        if box.size:
            arrays.read_region(self.path, self._stored_box(box), self._as_stored(out), self._version)
        return out

    def read_mirrored(self, box: Box, domain: Box | None = None, cache: ChunkCache | None = None) -> AnyArray:
        """Return the voxels of any box, ``(C, *box.shape)``, mirrored where it leaves the volume.

        The same as ``numpy.pad(mode="reflect")`` of the whole volume, repeated as needed; with
        ``domain``, of that part of the volume, and nothing else is read.
        """
        domain = self.box if domain is None else domain
        if domain.contains(box):
            return self.read(box, cache)
        if box.size == 0:
            return np.empty((self.n_channels, *box.shape), self.dtype)
        local = box.relative_to(domain)
        index = [
            mirror_indices(a, b, n) + first
            for a, b, n, first in zip(local.start, local.stop, domain.shape, domain.start, strict=True)
        ]
        needed = Box(tuple(int(i.min()) for i in index), tuple(int(i.max()) + 1 for i in index))
        data = self.read(needed, cache)
        for axis, along in enumerate(index):
            if box.start[axis] < domain.start[axis] or box.stop[axis] > domain.stop[axis]:
                data = data.take(along - needed.start[axis], axis=axis + 1)
        return data

    def write(self, box: Box, data: AnyArray) -> None:
        """Store a box of whole shards, and replace what was there.

        Parameters
        ----------
        box : Box
            Starts and ends on multiples of the shard (of the chunk without shards), or ends
            where the volume does.
        data : array, (C, *box.shape); also (*box.shape) where the volume has no channels
        """
        self._check_aligned(box)
        data = np.asarray(data)
        if not self.has_channels and data.ndim == self.ndim:
            data = data[np.newaxis]
        if data.shape != (self.n_channels, *box.shape):
            raise ValueError(f"data must have the shape {(self.n_channels, *box.shape)}, got {data.shape}")
        if not np.can_cast(data.dtype, self.dtype, "same_kind"):
            raise ValueError(f"data must be {self.dtype} or cast to it safely, got {data.dtype}; convert it")
        if box.size:
            arrays.write_region(self.path, self._stored_box(box), self._as_stored(data), self._version)

    def stored_blocks(self, *grids: BlockGrid) -> list[npt.NDArray[np.bool_]]:
        """Say which blocks of each grid would find a stored file in their outer box, ``(len(grid),)``.

        The others hold nothing but `fill_value`. All are true where the store cannot be listed;
        it is listed once.
        """
        found = [np.zeros(len(grid), bool) for grid in grids]
        order = [self.axes.index(a) for a in self.grid_axes]

        def visit(starts: Integers, stops: Integers) -> None:
            for grid, flags in zip(grids, found, strict=True):
                flags[grid.numbers_reading(starts[:, order], stops[:, order])] = True

        return found if each_stored(self.path, visit) else [np.ones(len(grid), bool) for grid in grids]

    def count_stored(self, box: Box) -> int | None:
        """Return how many stored files a box would read; None where the store cannot be listed."""
        order = [self.axes.index(a) for a in self.grid_axes]
        n_found = 0

        def visit(starts: Integers, stops: Integers) -> None:
            nonlocal n_found
            inside = (starts[:, order] < box.stop) & (stops[:, order] > box.start)
            n_found += int(inside.all(axis=1).sum())

        return n_found if each_stored(self.path, visit) else None

    @cached_property
    def files_across_channels(self) -> int:
        """How many files lie beside one another along the channel axis."""
        if not self.has_channels:
            return 1
        length = arrays.grid_of(arrays.open_array(self.path, version=self._version))[self.axes.index("c")]
        return -(-self.n_channels // length)

    def file_at(self, place: Sequence[int], channel: int = 0) -> str:
        """Return the path of the file (shard, or chunk without shards) that holds a voxel."""
        array = arrays.open_array(self.path, version=self._version)
        at = {**dict(zip(self.grid_axes, place, strict=True)), "c": channel}
        index = [at[a] // n for a, n in zip(self.axes, arrays.grid_of(array), strict=True)]
        return f"{self.path}/{arrays.chunk_key(array, index)}"

    def stored_extent(self) -> Box:
        """Return the smallest box that holds all stored files; the volume where there are none to list."""
        order = [self.axes.index(a) for a in self.grid_axes]
        low, high = np.array(self.shape, np.int64), np.zeros(self.ndim, np.int64)

        def visit(starts: Integers, stops: Integers) -> None:
            np.minimum(low, starts[:, order].min(axis=0), out=low)
            np.maximum(high, stops[:, order].max(axis=0), out=high)

        each_stored(self.path, visit)
        return Box(tuple(low.tolist()), tuple(high.tolist())) if (low < high).all() else self.box

    def digest(self) -> str:
        """Return the sha256 of the metadata and of size and time of up to 1,000 stored files."""
        facts = (self.axes, self.shape, self.n_channels, self.dtype, self.voxel_size, self.translation)
        return digest_of(self.path, repr(facts))

    def _check_aligned(self, box: Box) -> None:
        if box.ndim != self.ndim or not self.box.contains(box):
            raise ValueError(f"a box that is written must lie inside the volume {self.box}, got {box}")
        unit, name = (self.shard, "shard") if self.shard else (self.chunk, "chunk")
        ends = zip(box.start, box.stop, unit, self.shape, strict=True)
        if any(a % u or (b % u and b != n) for a, b, u, n in ends):
            good = box.grow(
                [a % u for a, u in zip(box.start, unit, strict=True)],
                [-b % u for b, u in zip(box.stop, unit, strict=True)],
            ).intersect(self.box)
            raise ValueError(
                f"a box that is written must be made of whole {name}s {unit}, or two workers would "
                f"write one {name}, got {box}; use {good}"
            )

    def _stored_box(self, box: Box) -> Box:
        """Return the box over all stored axes, in their order."""
        ranges = dict(zip(self.grid_axes, zip(box.start, box.stop, strict=True), strict=True))
        ranges["c"] = (0, self.n_channels)
        return Box(tuple(ranges[a][0] for a in self.axes), tuple(ranges[a][1] for a in self.axes))

    def _as_stored(self, data: AnyArray) -> AnyArray:
        """Return a view of ``(C, *grid)`` data in the stored axis order."""
        canonical = "c" + self.grid_axes
        if not self.has_channels:
            data, canonical = data[0], self.grid_axes
        return data.transpose([canonical.index(a) for a in self.axes])
