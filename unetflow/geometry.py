"""Boxes and blocks: where work is cut, in whole numbers only.

A *box* is a half-open range of voxels on each axis. A *block* is one unit of Dask work: it
writes its ``inner`` box and reads its ``outer`` box, which is the inner one with a halo.

::

        outer
    +-------------------+
    |     inner         |
    |   +-----------+   |     the inner boxes of a grid tile its domain,
    |   |           |   |     the outer boxes overlap and may reach over
    |   +-----------+   |     the border, where readers mirror
    +-------------------+
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open box of voxels.

    Parameters
    ----------
    start, stop : tuple of int
        First voxel inside and first voxel beyond, per axis.

    Examples
    --------
    >>> Box((0, 4), (3, 10)).shape
    (3, 6)
    """

    start: Shape
    stop: Shape

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> Box:
        """Return the box of an array of ``shape`` that starts at the origin."""
        return cls((0,) * len(shape), tuple(int(n) for n in shape))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.start)

    @property
    def shape(self) -> Shape:
        """Length of each axis in voxels, never negative."""
        return tuple(max(0, b - a) for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The box as an index of an array that starts at the origin."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def grow(self, before: Sequence[int], after: Sequence[int]) -> Box:
        """Return the box with a halo of ``before`` and ``after`` voxels per axis."""
        return Box(
            tuple(a - h for a, h in zip(self.start, before, strict=True)),
            tuple(b + h for b, h in zip(self.stop, after, strict=True)),
        )

    def shift(self, offset: Sequence[int]) -> Box:
        """Return the box moved by ``offset`` voxels per axis."""
        return Box(
            tuple(a + o for a, o in zip(self.start, offset, strict=True)),
            tuple(b + o for b, o in zip(self.stop, offset, strict=True)),
        )

    def relative_to(self, other: Box) -> Box:
        """Return the box as seen from the first voxel of ``other``."""
        return self.shift(tuple(-a for a in other.start))

    def intersect(self, other: Box) -> Box:
        """Return the voxels that both boxes hold; an empty box has ``size`` 0."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, tuple(max(a, b) for a, b in zip(start, stop, strict=True)))

    def contains(self, other: Box) -> bool:
        """Say whether every voxel of ``other`` lies in this box."""
        return all(a <= b for a, b in zip(self.start, other.start, strict=True)) and all(
            a >= b for a, b in zip(self.stop, other.stop, strict=True)
        )

    def __str__(self) -> str:
        return ",".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))


@dataclass(frozen=True, slots=True)
class Block:
    """One unit of work: its number, the box that it writes and the box that it reads."""

    number: int
    inner: Box
    outer: Box


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """Blocks that tile a domain, made on demand: no list as long as the volume.

    Parameters
    ----------
    domain : Box
        What the inner boxes tile. Block 0 starts at ``domain.start``.
    block_shape : tuple of int
        Shape of a block's inner box; blocks at the far end are cut by the domain.
    before, after : tuple of int
        Halo per axis in voxels; empty for none. Outer boxes are not cut by the domain.

    Examples
    --------
    >>> grid = BlockGrid(Box.of_shape((5, 6)), (4, 4), (1, 1), (1, 1))
    >>> len(grid), grid[3].inner.shape, grid[0].outer.start
    (4, (1, 2), (-1, -1))
    """

    domain: Box
    block_shape: Shape
    before: Shape = ()
    after: Shape = ()

    def __post_init__(self) -> None:
        if len(self.block_shape) != self.domain.ndim or min(self.block_shape, default=1) < 1:
            raise ValueError(
                f"block shape needs {self.domain.ndim} lengths of at least 1, got {self.block_shape}"
            )

    @property
    def counts(self) -> Shape:
        """Number of blocks along each axis."""
        return tuple(
            -(-n // b) for n, b in zip(self.domain.shape, self.block_shape, strict=True)
        )

    def __len__(self) -> int:
        return math.prod(self.counts)

    def __iter__(self) -> Iterator[Block]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Block:
        if not 0 <= number < len(self):
            raise IndexError(f"block {number} of {len(self)}")
        index = self.index_of(number)
        start = tuple(
            d + i * b
            for d, i, b in zip(self.domain.start, index, self.block_shape, strict=True)
        )
        stop = tuple(
            min(a + b, d)
            for a, b, d in zip(start, self.block_shape, self.domain.stop, strict=True)
        )
        inner = Box(start, stop)
        zero = (0,) * self.domain.ndim
        return Block(number, inner, inner.grow(self.before or zero, self.after or zero))

    def bricks(self, shape: Sequence[int]) -> Iterator[Brick]:
        """Yield bricks of ``shape`` blocks that tile the grid, in C order and on demand.

        Parameters
        ----------
        shape : tuple of int
            Blocks along each axis. Bricks at the far end are cut by the grid; of a shape with more
            axes than the grid, the last ones count.
        """
        wanted = tuple(shape)[-self.domain.ndim :]
        if len(wanted) != self.domain.ndim or min(wanted, default=1) < 1:
            raise ValueError(f"a brick needs {self.domain.ndim} counts of at least 1, got {tuple(shape)}")
        for place in _places([-(-n // b) for n, b in zip(self.counts, wanted, strict=True)]):
            first = tuple(i * b for i, b in zip(place, wanted, strict=True))
            counts = tuple(min(b, n - f) for b, n, f in zip(wanted, self.counts, first, strict=True))
            yield Brick(self, first, counts)

    def index_of(self, number: int) -> Shape:
        """Return the block's position per axis (C order)."""
        return _place_of(number, self.counts)

    def number_at(self, index: Sequence[int]) -> int:
        """Return the number of the block at a position per axis."""
        number = 0
        for i, count in zip(index, self.counts, strict=True):
            number = number * count + i
        return number

    def numbers_of(self, box: Box) -> npt.NDArray[np.int64]:
        """Return the number of the block of each voxel of ``box`` (shape of the box)."""
        numbers = np.zeros((1,) * box.ndim, np.int64)
        for axis, count in enumerate(self.counts):
            voxels = np.arange(box.start[axis], box.stop[axis]) - self.domain.start[axis]
            along = (voxels // self.block_shape[axis]).reshape(
                [-1 if a == axis else 1 for a in range(box.ndim)]
            )
            numbers = numbers * count + along
        return np.broadcast_to(numbers, box.shape)

    def touching(self, box: Box) -> Iterator[Block]:
        """Yield the blocks whose inner box shares a voxel with ``box``, in order."""
        hit = box.intersect(self.domain)
        if hit.size == 0:
            return
        relative = hit.relative_to(self.domain)
        ranges = [
            range(a // b, -(-z // b))
            for a, z, b in zip(relative.start, relative.stop, self.block_shape, strict=True)
        ]
        for index in np.ndindex(*[len(r) for r in ranges]):
            yield self[self.number_at([r[i] for r, i in zip(ranges, index, strict=True)])]

    def numbers_reading(
        self, starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Return the blocks whose outer box shares a voxel with one of many boxes.

        Parameters
        ----------
        starts, stops : ndarray of int64, shape (n, ndim)
            First voxel inside and first voxel beyond, per box and axis.

        Returns
        -------
        ndarray of int64
            Numbers, sorted, each once.

        Examples
        --------
        >>> grid = BlockGrid(Box.of_shape((90,)), (10,), (2,), (2,))
        >>> grid.numbers_reading(np.array([[21]]), np.array([[22]])).tolist()
        [1, 2]
        """
        zero = (0,) * self.domain.ndim
        origin, block = np.array(self.domain.start), np.array(self.block_shape)
        last = np.array(self.counts) - 1
        low = np.maximum((starts - (self.after or zero) - origin) // block, 0)
        high = np.minimum((stops + (self.before or zero) - origin - 1) // block, last)
        found = [np.zeros(0, np.int64)]
        reach = (high - low).max(axis=0, initial=-1) + 1
        for step in np.ndindex(*reach):
            index = low + step
            index = index[(index <= high).all(axis=1)]
            found.append(np.ravel_multi_index(tuple(index.T), self.counts))
        return np.unique(np.concatenate(found))


@dataclass(frozen=True, slots=True)
class Brick:
    """Neighbouring blocks of a grid, in C order: what one worker does after one another.

    Parameters
    ----------
    grid : BlockGrid
    first : tuple of int
        Position of the first block, per axis.
    counts : tuple of int
        Blocks along each axis.

    Examples
    --------
    >>> grid = BlockGrid(Box.of_shape((8, 8)), (2, 2))
    >>> [[block.number for block in brick] for brick in grid.bricks((2, 3))]
    [[0, 1, 2, 4, 5, 6], [3, 7], [8, 9, 10, 12, 13, 14], [11, 15]]
    """

    grid: BlockGrid
    first: Shape
    counts: Shape

    def __len__(self) -> int:
        return math.prod(self.counts)

    def __iter__(self) -> Iterator[Block]:
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> Block:
        if not 0 <= position < len(self):
            raise IndexError(f"block {position} of {len(self)}")
        within = _place_of(position, self.counts)
        return self.grid[self.grid.number_at([f + i for f, i in zip(self.first, within, strict=True)])]


def _place_of(number: int, counts: Sequence[int]) -> Shape:
    """Return the position per axis of the ``number``-th of ``counts`` things in C order."""
    index = []
    for count in reversed(counts):
        number, i = divmod(number, count)
        index.append(i)
    return tuple(reversed(index))


def _places(counts: Sequence[int]) -> Iterator[Shape]:
    return (_place_of(number, counts) for number in range(math.prod(counts)))


def mirror_indices(start: int, stop: int, length: int) -> npt.NDArray[np.int64]:
    """Map positions ``start..stop-1`` on an axis of ``length`` voxels, mirrored outside.

    The same as ``numpy.pad(mode="reflect")``, repeated as often as needed: the border voxel
    itself is not doubled. An axis of length 1 repeats its voxel.

    Examples
    --------
    >>> mirror_indices(-3, 5, 3).tolist()
    [1, 2, 1, 0, 1, 2, 1, 0]
    """
    if length < 1:
        raise ValueError(f"an axis needs at least 1 voxel to be mirrored, got {length}")
    if length == 1:
        return np.zeros(max(0, stop - start), np.int64)
    period = 2 * (length - 1)
    position = np.arange(start, stop, dtype=np.int64) % period
    return np.where(position < length, position, period - position)


def parse_roi(text: str, shape: Sequence[int]) -> Box:
    """Read ``z0:z1,y0:y1,x0:x1``; an empty bound is the volume's own.

    Examples
    --------
    >>> parse_roi("2:4,:", (8, 9))
    Box(start=(2, 0), stop=(4, 9))
    """
    from unetflow.errors import InputError

    parts = text.split(",")
    bounds = []
    try:
        for part, length in zip(parts, shape, strict=True):
            low, high = part.split(":")
            bounds.append((int(low or 0), int(high or length)))
    except ValueError:
        raise InputError(
            f"a region of interest needs one start:stop for each of {len(shape)} axes, got "
            f"'{text}'; write for instance {','.join(f'0:{n}' for n in shape)}"
        ) from None
    box = Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))
    if box.size == 0 or not Box.of_shape(shape).contains(box):
        raise InputError(
            f"a region of interest must lie inside the volume 0:{',0:'.join(map(str, shape))} "
            f"and hold a voxel, got '{text}'; give numbers within it"
        )
    return box
