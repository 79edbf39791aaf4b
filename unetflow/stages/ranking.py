"""Two passes that number the objects of volumes 1..N by first voxel, whatever the cut.

::

    count    objects that start in a block -> starts in each line (stored), in each plane (added on the driver)
    number   starts of a row of blocks -> the number of each object that starts in a block (stored)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Block, BlockGrid, Box
from unetflow.stages.gathering import Gatherer, buckets_of
from unetflow.stages.pieces import Pieces, Some
from unetflow.stages.tables import Rows, look_up, scratch_array, store_table

if TYPE_CHECKING:
    from unetflow.stages.work import Report, Work
    from unetflow.storage.volume import Volume

Integers = npt.NDArray[np.int64]


class Starts(Protocol):
    """What tells the objects that start in a block, and are kept."""

    def __call__(self, number: int, here: Block) -> tuple[Integers, Integers]:
        """Return ids and, sorted, the index in the block of each first voxel."""


def number_objects(
    work: Work, pieces: Pieces, blocks: Pieces | Some, starts: Starts, *, scratch: str, prefix: str, longest: int
) -> tuple[list[int], Gatherer]:
    """Give the objects of each volume their numbers; return how many there are, and rows of (id, number), sorted by id.

    Parameters
    ----------
    pieces : Pieces
        Blocks of all volumes.
    blocks : Pieces or Some
        Those in which an object may start.
    starts : callable
        See `Starts`.
    longest : int
        Objects that may start in one block.
    """
    lines = tuple(_lines(f"{scratch}/{prefix}lines-{i}", _grid(pieces, i)) for i in range(len(pieces.grids)))
    totals = [np.zeros(_n_rows(_grid(pieces, i)), np.int64) for i in range(len(pieces.grids))]

    def add(number: int, report: Report) -> None:
        index, here = pieces.locate(number)
        totals[index][_places(_grid(pieces, index), here.inner)] += np.asarray(report["starts"], np.int64)

    work.run_pass(f"{prefix}count", CountBlock(pieces, starts, lines), blocks, add)
    before = tuple(
        store_table(f"{scratch}/{prefix}before-{i}", np.cumsum(total) - total) for i, total in enumerate(totals)
    )
    numbered = Rows.create(f"{scratch}/{prefix}numbered", len(pieces), 2, longest, keep=True)
    given = Gatherer(numbered)
    work.run_pass(f"{prefix}number", NumberBlock(pieces, starts, lines, before, numbered), blocks, given.add)
    return [int(total.sum()) for total in totals], given


@dataclass(frozen=True)
class CountBlock:
    """Count the objects that start in one block, by line and by plane."""

    pieces: Pieces
    starts: Starts
    lines: tuple[Volume, ...]

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.ranking import line_counts

        index, here = self.pieces.locate(block.number)
        _, first = self.starts(block.number, here)
        counts = line_counts(first, here.inner.shape)
        self.lines[index].write(_column(_grid(self.pieces, index), here), counts[..., None])
        by_plane = counts.reshape(-1, counts.shape[-1]).sum(axis=1)
        return {"starts": by_plane.tolist() if by_plane.any() else 0}


@dataclass(frozen=True)
class NumberBlock:
    """Number the objects that start in one block."""

    pieces: Pieces
    starts: Starts
    lines: tuple[Volume, ...]
    before: tuple[Volume, ...]
    numbered: Rows

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.ranking import ranks

        index, here = self.pieces.locate(block.number)
        ids, first = self.starts(block.number, here)
        if len(ids):
            grid = _grid(self.pieces, index)
            column = _column(grid, here)
            row = Box((*column.start[:-1], 0), (*column.stop[:-1], grid.counts[-1]))
            lines = self.lines[index].read(row)[0].reshape(-1, row.shape[-2], row.shape[-1])
            before = look_up(self.before[index], _places(grid, here.inner))
            numbers = ranks(first, here.inner.shape[-1], lines, column.start[-1], before)
            order = np.argsort(ids)
            self.numbered.write(block.number, np.stack([ids, numbers])[:, order])
        return {"buckets": buckets_of(np.sort(ids))}


def _grid(pieces: Pieces, index: int) -> BlockGrid:
    grid = pieces.grids[index]
    assert isinstance(grid, BlockGrid)
    assert not any(grid.domain.start)
    return grid


def _lines(path: str, grid: BlockGrid) -> Volume:
    """Create, or find, the array of starts in each line and block."""
    axes, shape = "tzyx"[-grid.domain.ndim :], (*grid.domain.shape[:-1], grid.counts[-1])
    return scratch_array(path, axes=axes, shape=shape, dtype="uint32", chunk=(*grid.block_shape[:-1], 1))


def _column(grid: BlockGrid, here: Block) -> Box:
    """Return the lines of a block as a box of the array of lines."""
    at = grid.index_of(here.number)[-1]
    return Box((*here.inner.start[:-1], at), (*here.inner.stop[:-1], at + 1))


def _n_rows(grid: BlockGrid) -> int:
    """Count the (plane, row of blocks) pairs of a volume."""
    return int(np.prod(grid.domain.shape[:-2])) * grid.counts[-2]


def _places(grid: BlockGrid, box: Box) -> Integers:
    """Return where the planes of a block's row stand among all of the volume, sorted."""
    lead = [np.arange(a, b) for a, b in zip(box.start[:-2], box.stop[:-2], strict=True)]
    plane = np.zeros(1, np.int64)
    for along, length in zip(lead, grid.domain.shape[:-2], strict=True):
        plane = (plane[:, None] * length + along).reshape(-1)
    return np.asarray(plane * grid.counts[-2] + box.start[-2] // grid.block_shape[-2], np.int64)
