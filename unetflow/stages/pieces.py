"""Many images as one numbered sequence of blocks, so that a collection is one pass."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Block, BlockGrid


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

    def number_of(self, index: int, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the numbers of the blocks that hold voxels ``(n, ndim)`` of a grid."""
        grid = self.grids[index]
        assert isinstance(grid, BlockGrid)
        at = (places - grid.domain.start) // grid.block_shape
        return np.asarray(np.ravel_multi_index(tuple(at.T), grid.counts), np.int64) + self.first[index]


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
