"""Sources made of sources: files stacked, colours made grey, axes put in order."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from unetflow.errors import InputError
from unetflow.formats.files import list_files
from unetflow.formats.source import Array, Source
from unetflow.geometry import Box

GRID = "tzyx"  # canonical order of the axes that are cut into blocks


@dataclass(frozen=True)
class Stacked(Source):
    """Files of one shape, stacked along a new first axis in natural order of their names.

    A worker lists the files anew instead of being sent ten thousand of them.

    Parameters
    ----------
    path : str
        The file, folder or glob that names the files.
    member : Source
        The first file; the others are known to be like it.
    """

    member: Source = field(kw_only=True)

    @classmethod
    def of(cls, path: str, member: Source, n_files: int, axes: str) -> Stacked:
        """Stack ``n_files`` like ``member``; ``axes`` starts with the new axis.

        No file knows the distance to the next: a new spatial axis gets the longest voxel size.
        """
        voxel_size = member.voxel_size
        if voxel_size is not None and axes[0] in "zyx":
            voxel_size = (max(voxel_size), *voxel_size)
        shape = (n_files, *member.shape)
        return cls(path, shape, member.dtype, axes, voxel_size, member.is_planewise, member=member)

    def read(self, box: Box) -> Array:
        """Return the voxels of a box over all stored axes, native-endian."""
        files = list_files(self.path)
        if len(files) != self.shape[0]:
            raise ValueError(f"{self.path} had {self.shape[0]} files when planned, and has {len(files)} now")
        out = np.empty(box.shape, self.dtype)
        within = Box(box.start[1:], box.stop[1:])
        for i, number in enumerate(range(box.start[0], box.stop[0])):
            out[i] = self.member.at(files[number]).read(within)
        return out


@dataclass(frozen=True)
class Grey(Source):
    """A colour picture whose channels are equal everywhere, without its channel axis."""

    colour: Source = field(kw_only=True)

    @classmethod
    def of(cls, colour: Source) -> Grey:
        """Drop the channel axis of ``colour``; `read` refuses what is not grey."""
        axis = (colour.axes or "").index("c")
        shape = colour.shape[:axis] + colour.shape[axis + 1 :]
        axes = (colour.axes or "").replace("c", "")
        return cls(
            colour.path, shape, colour.dtype, axes, colour.voxel_size, colour.is_planewise, colour=colour
        )

    def at(self, path: str) -> Grey:
        """Return the source of another file that is known to be of the same kind."""
        return Grey.of(self.colour.at(path))

    def read(self, box: Box) -> Array:
        """Return the voxels of a box over all stored axes, native-endian."""
        axis = (self.colour.axes or "").index("c")
        n_channels = self.colour.shape[axis]
        start = (*box.start[:axis], 0, *box.start[axis:])
        stop = (*box.stop[:axis], n_channels, *box.stop[axis:])
        voxels = np.moveaxis(self.colour.read(Box(start, stop)), axis, 0)
        if any(not np.array_equal(voxels[0], other) for other in voxels[1:3]):
            raise InputError(
                f"axes {self.axes} leave out the channels, which only grey pictures allow, got {n_channels} that "
                f"differ in {self.path}; add c to the axes, or z where they are the planes of a stack"
            )
        return np.ascontiguousarray(voxels[0])

    def check(self) -> None:
        """Read the whole picture once.

        Raises
        ------
        InputError
            If it has colours.
        """
        self.read(Box.of_shape(self.shape))


@dataclass(frozen=True)
class Oriented:
    """A source as a volume: boxes over grid axes in canonical order, channels first.

    Parameters
    ----------
    source : Source
    axes : str
        One letter of ``tczyx`` for each stored axis of the source.
    voxel_size : tuple of float
        Micrometres per spatial axis in canonical order.
    """

    source: Source
    axes: str
    voxel_size: tuple[float, ...]

    @property
    def grid_axes(self) -> str:
        """Letters of the axes that boxes have."""
        return "".join(letter for letter in GRID if letter in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each grid axis in voxels."""
        return tuple(self.source.shape[self.axes.index(letter)] for letter in self.grid_axes)

    @property
    def has_channels(self) -> bool:
        """Whether there is a channel axis."""
        return "c" in self.axes

    @property
    def n_channels(self) -> int:
        """Number of channels; 1 where there is no axis of them."""
        return self.source.shape[self.axes.index("c")] if self.has_channels else 1

    @property
    def dtype(self) -> str:
        """Native-endian NumPy type."""
        return self.source.dtype

    @property
    def nbytes(self) -> int:
        """Size of all voxels in bytes."""
        return math.prod(self.source.shape) * np.dtype(self.dtype).itemsize

    def read(self, box: Box) -> Array:
        """Return the voxels of a box inside the volume, (C, *box.shape)."""
        start, stop = [], []
        for letter, length in zip(self.axes, self.source.shape, strict=True):
            grid_axis = self.grid_axes.find(letter)
            start.append(0 if grid_axis < 0 else box.start[grid_axis])
            stop.append(length if grid_axis < 0 else box.stop[grid_axis])
        voxels = self.source.read(Box(tuple(start), tuple(stop)))
        order = [self.axes.index(letter) for letter in "c" + self.grid_axes if letter in self.axes]
        voxels = voxels.transpose(order)
        return np.ascontiguousarray(voxels if self.has_channels else voxels[None])
