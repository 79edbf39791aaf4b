"""Many images as one numbered sequence of blocks, so that a collection is one pass."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Block, BlockGrid, Brick, Shape

BrickShape = Shape | Sequence[Shape]


class Grid(Protocol):
    """A numbered sequence of blocks: a `BlockGrid`, or a sample of one."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> Block: ...
    def __iter__(self) -> Iterator[Block]: ...


@dataclass(frozen=True)
class Pieces:
    """The blocks of several grids, numbered through; made on demand.

    Examples
    --------
    >>> from unetflow.geometry import BlockGrid, Box
    >>> grid = BlockGrid(Box.of_shape((4,)), (2,))
    >>> pieces = Pieces((grid, grid))
    >>> len(pieces), pieces.locate(3)[0], pieces[3].inner
    (4, 1, Box(start=(2,), stop=(4,)))
    """

    grids: tuple[Grid, ...]
    first: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "first", tuple(accumulate((len(g) for g in self.grids), initial=0)))

    def __len__(self) -> int:
        return self.first[-1]

    def __iter__(self) -> Iterator[Block]:
        for index, grid in enumerate(self.grids):
            for block in grid:
                yield Block(self.first[index] + block.number, block.inner, block.outer)

    def __getitem__(self, number: int) -> Block:
        _, block = self.locate(number)
        return Block(number, block.inner, block.outer)

    def locate(self, number: int) -> tuple[int, Block]:
        """Return which grid a block belongs to, and the block as that grid numbers it."""
        if not 0 <= number < len(self):
            raise IndexError(f"block {number} of {len(self)}")
        index = bisect_right(self.first, number) - 1
        return index, self.grids[index][number - self.first[index]]

    def bricks(self, shape: BrickShape) -> Iterator[Grid]:
        """Yield the bricks of all grids, on demand.

        Grids of one brick each, such as small images, are joined until they hold as many blocks as a
        brick: no worker opens a brick for a single block. A grid that is a sample is one brick.

        Parameters
        ----------
        shape : tuple of int, or one for each grid
            Blocks along each axis.
        """
        for span in self.spans(shape):
            if span.grid is None:
                yield Stretch(self, span.start, span.stop)
            else:
                yield from (Numbered(brick, span.start) for brick in span.grid.bricks(span.shape))

    def spans(self, shape: BrickShape) -> Iterator[Span]:
        """Yield ranges of numbers: a grid to be cut into bricks, or blocks that are one."""
        begun = 0  # where the small grids begin that no brick holds yet
        for index, grid in enumerate(self.grids):
            wanted, first, last = _shape_of(shape, index), self.first[index], self.first[index + 1]
            if not isinstance(grid, BlockGrid) or not _is_small(grid, wanted):
                if begun < first:
                    yield Span(begun, first)
                yield Span(first, last, grid if isinstance(grid, BlockGrid) else None, wanted)
                begun = last
            elif last - begun >= math.prod(wanted):
                yield Span(begun, last)
                begun = last
        if begun < len(self):
            yield Span(begun, len(self))

    def number_of(self, index: int, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the numbers of the blocks that hold voxels ``(n, ndim)`` of a grid."""
        grid = self.grids[index]
        assert isinstance(grid, BlockGrid)
        at = (places - grid.domain.start) // grid.block_shape
        return np.asarray(np.ravel_multi_index(tuple(at.T), grid.counts), np.int64) + self.first[index]


@dataclass(frozen=True)
class Span:
    """Numbers ``start`` to ``stop - 1``: a grid to be cut into bricks of ``shape``, or one brick (no grid)."""

    start: int
    stop: int
    grid: BlockGrid | None = None
    shape: Shape = ()


def _shape_of(shape: BrickShape, index: int) -> Shape:
    """Return the brick of one grid, where there may be one for each."""
    counts = [c for c in shape if isinstance(c, int)]
    if counts:
        return tuple(counts)
    of_grid = shape[index]
    assert not isinstance(of_grid, int)
    return of_grid


def _is_small(grid: BlockGrid, shape: Shape) -> bool:
    """Say whether a grid is a single brick."""
    return all(n <= b for n, b in zip(grid.counts, shape[-len(grid.counts) :], strict=True))


@dataclass(frozen=True)
class Stretch:
    """The blocks from ``start`` to ``stop - 1`` of all pieces."""

    pieces: Pieces
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Block]:
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> Block:
        if not 0 <= position < len(self):
            raise IndexError(f"block {position} of {len(self)}")
        return self.pieces[self.start + position]


@dataclass(frozen=True)
class Numbered:
    """A brick of one of several grids; its blocks have the numbers of `Pieces`."""

    brick: Brick
    first: int

    def __len__(self) -> int:
        return len(self.brick)

    def __iter__(self) -> Iterator[Block]:
        return (self[position] for position in range(len(self)))

    def __getitem__(self, position: int) -> Block:
        block = self.brick[position]
        return Block(self.first + block.number, block.inner, block.outer)


@dataclass(frozen=True, eq=False)
class Some:
    """Some of the blocks of several grids, under their own numbers.

    Parameters
    ----------
    pieces : Pieces
    numbers : ndarray of int64
        Sorted.
    """

    pieces: Pieces
    numbers: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[Block]:
        return (self.pieces[int(number)] for number in self.numbers)

    def __getitem__(self, position: int) -> Block:
        return self.pieces[int(self.numbers[position])]

    def bricks(self, shape: BrickShape) -> Iterator[Some]:
        """Yield what each brick of `Pieces.bricks` holds of these blocks; bricks without any are left out."""
        for span in self.pieces.spans(shape):
            low, high = np.searchsorted(self.numbers, (span.start, span.stop))
            numbers = self.numbers[low:high]
            for group in [numbers] if span.grid is None else _by_brick(numbers, span.start, span.grid, span.shape):
                if len(group):
                    yield Some(self.pieces, group)


def _by_brick(
    numbers: npt.NDArray[np.int64], first: int, grid: BlockGrid, shape: Shape
) -> Iterator[npt.NDArray[np.int64]]:
    """Sort the numbers of blocks of a grid by brick, and yield those of each brick."""
    wanted = shape[-len(grid.counts) :]
    along = [-(-n // b) for n, b in zip(grid.counts, wanted, strict=True)]
    places = np.unravel_index(numbers - first, grid.counts)
    bricks = np.ravel_multi_index([p // b for p, b in zip(places, wanted, strict=True)], along)
    order = np.argsort(bricks, kind="stable")
    ends = np.flatnonzero(np.diff(bricks[order])) + 1
    for low, high in zip([0, *ends], [*ends, len(order)], strict=True):
        yield numbers[order[low:high]]
