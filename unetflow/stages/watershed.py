"""Tell objects apart that touch: a watershed over a volume of any size, from seeds of high probability.

::

    seed-label, -pair, -relabel    components of what is likely, numbered over the volume
    flood                          outer: probabilities, classes, seeds -> inner: flooded
    rest-label, -pair, -relabel    components of the classes that no flood reached
    tabulate                       both -> id, first voxel and size of what a block holds
    number                         both -> instances, numbered 1..N by first voxel

A seed has one id over the whole volume before anything is flooded, and a flood ends where the
halo of a block does (48 voxels of the finest axis): nothing is joined over faces, and the result
does not depend on the cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Block, BlockGrid, Box, Shape
from unetflow.stages.components import Labelling, label_volumes, look_up, pack, store_table, unpack
from unetflow.stages.pieces import Pieces, Some
from unetflow.stages.stored import stored_only

if TYPE_CHECKING:
    from unetflow.stages.work import Report, Work
    from unetflow.storage.volume import Volume

# A block is at least this many halos long, or most of what it reads would be halo.
_HALOS_A_BLOCK = 4
# With its halo it is at most so large, at about 30 bytes a voxel, where the shards allow it.
_MOST_VOXELS = 2**25


@dataclass(frozen=True)
class Flooding:
    """One volume whose objects are flooded: what is read, where results are written.

    Parameters
    ----------
    probabilities, classes : Volume
        As `segment` stored them.
    fragments, seeds, flooded, rest : Volume
        Temporary ids.
    target : Volume
        Final ids.
    grid : BlockGrid
        Blocks that own whole shards of all that is written.
    linked : tuple of bool
        Axes along which neighbours belong together.
    """

    probabilities: Volume
    classes: Volume
    fragments: Volume
    seeds: Volume
    flooded: Volume
    rest: Volume
    target: Volume
    grid: BlockGrid
    linked: tuple[bool, ...]

    @property
    def strides(self) -> tuple[int, ...]:
        """Rounds that a flood takes for a step along each axis."""
        from unetflow.numerics.watershed import flood_strides

        return flood_strides(self.probabilities.voxel_size, self.grid.domain.ndim)

    @property
    def flood_grid(self) -> BlockGrid:
        """Longer blocks of whole shards, with the halo of a flood."""
        from unetflow.numerics.watershed import flood_halo

        halo = flood_halo(self.strides, self.linked)
        block = flood_block(self.grid.block_shape, self.grid.domain.shape, halo)
        return BlockGrid(self.grid.domain, block, halo, halo)


def flood_block(shard: Shape, shape: Shape, halo: Shape, most: int = _MOST_VOXELS) -> Shape:
    """Return whole shards that make a block long for its halo, yet not too large with it.

    Parameters
    ----------
    shard, shape, halo : tuple of int
        Of a written array, of the volume, and of a flood.
    most : int
        Voxels of the block with its halo, unless those of one shard are more.

    Examples
    --------
    >>> flood_block((1, 64, 256), (9, 1000, 1000), (0, 48, 48))
    (1, 192, 256)
    >>> flood_block((1, 512, 512), (40, 512, 512), (6, 48, 48), most=10**7)
    (24, 512, 512)
    """
    block = shard
    while True:
        longer = [
            block[:axis] + (block[axis] + shard[axis],) + block[axis + 1 :]
            for axis, h in enumerate(halo)
            if block[axis] < min(shape[axis], _HALOS_A_BLOCK * h)
        ]
        longer = [b for b in longer if _with_halo(b, shape, halo) <= most]
        if not longer:
            return block
        block = min(longer, key=lambda b: _with_halo(b, shape, halo) / math.prod(b))


def _with_halo(block: Shape, shape: Shape, halo: Shape) -> int:
    return math.prod(min(n, b + 2 * h) for n, b, h in zip(shape, block, halo, strict=True))


def flood_volumes(
    work: Work,
    jobs: tuple[Flooding, ...],
    *,
    seed_threshold: float,
    seed_size: int,
    connectivity: str,
    min_size: int,
    scratch: str | Path,
) -> list[int]:
    """Find the objects of several volumes and return how many there are in each.

    Objects are numbered 1..N by their first voxel in C order, whatever the cut.
    """
    common: dict[str, Any] = {"connectivity": connectivity, "scratch": scratch}
    classes = [job.classes for job in jobs]
    common["only"] = stored_only(Pieces(tuple(job.grid for job in jobs)), classes).numbers
    likely = Likely({job.probabilities: job.classes for job in jobs}, seed_threshold)
    seeds = tuple(Labelling(j.probabilities, j.fragments, j.seeds, j.grid, j.linked) for j in jobs)
    n_seeds = label_volumes(work, seeds, likely, min_size=seed_size, prefix="seed-", **common)
    pieces = Pieces(tuple(job.flood_grid for job in jobs))
    # Neither seeds nor floods leave the classes.
    blocks = stored_only(pieces, classes)
    work.run_pass("flood", FloodBlock(jobs, pieces, connectivity), blocks)
    unreached = Unreached({job.classes: job.flooded for job in jobs})
    rest = tuple(Labelling(j.classes, j.fragments, j.rest, j.grid, j.linked) for j in jobs)
    n_rest = label_volumes(work, rest, unreached, min_size=0, prefix="rest-", **common)
    found = Found(jobs, pieces, tuple(n_seeds))
    counts = [a + b for a, b in zip(n_seeds, n_rest, strict=True)]
    return _number_objects(work, found, counts, blocks, min_size, scratch)


def _number_objects(
    work: Work, found: Found, counts: list[int], blocks: Some, min_size: int, scratch: str | Path
) -> list[int]:
    from unetflow.numerics.labelling import number_components

    first = [np.full(n, np.iinfo(np.int64).max) for n in counts]
    sizes = [np.zeros(n, np.int64) for n in counts]

    def add(number: int, report: Report) -> None:
        index, _ = found.pieces.locate(number)
        ids = unpack(report["ids"], np.int64) - 1
        np.minimum.at(first[index], ids, unpack(report["first"], np.int64))
        np.add.at(sizes[index], ids, unpack(report["sizes"], np.int64))

    work.run_pass("tabulate", TabulateBlock(found), blocks, add)
    totals, tables = [], []
    for index, (begin, size) in enumerate(zip(first, sizes, strict=True)):
        numbers = number_components(begin, size, np.arange(len(begin)), max(1, min_size))
        tables.append(store_table(f"{scratch}/numbers-{index}", numbers))
        totals.append(int(numbers.max(initial=0)))
    work.run_pass("number", NumberBlock(found, tuple(tables)), blocks)
    return totals


@dataclass(frozen=True)
class Likely:
    """Where a class is chosen and the foreground's probability is above a threshold.

    Outside the mask of `segment` all probabilities are 0, the background's too: only the
    classes tell that nothing is there.
    """

    classes: dict[Volume, Volume]
    threshold: float

    def __call__(self, probabilities: Volume, box: Box) -> npt.NDArray[np.bool_]:
        """Read one box."""
        from unetflow.numerics.watershed import foreground_probability

        mask = self.classes[probabilities].read(box)[0] > 0
        if mask.any():
            mask &= foreground_probability(probabilities.read(box)) > self.threshold
        return np.asarray(mask)


@dataclass(frozen=True)
class Unreached:
    """Where a class is chosen and no flood came."""

    flooded: dict[Volume, Volume]

    def __call__(self, classes: Volume, box: Box) -> npt.NDArray[np.bool_]:
        """Read one box."""
        return np.asarray((classes.read(box)[0] > 0) & (self.flooded[classes].read(box)[0] == 0))


@dataclass(frozen=True)
class FloodBlock:
    """Flood one block from the seeds in it and in its halo."""

    jobs: tuple[Flooding, ...]
    pieces: Pieces
    connectivity: str

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.watershed import flood, flood_levels, foreground_probability

        index, here = self.pieces.locate(block.number)
        job = self.jobs[index]
        outer = here.outer.intersect(job.grid.domain)
        ids = job.seeds.read(outer)[0]
        if ids.any():
            mask = job.classes.read(outer)[0] > 0
            levels = flood_levels(foreground_probability(job.probabilities.read(outer)))
            ids = flood(levels, ids, mask, job.linked, self.connectivity, job.strides)
        job.flooded.write(here.inner, ids[here.inner.relative_to(outer).slices])
        return {}


@dataclass(frozen=True)
class Found:
    """The objects of both kinds under one numbering: seeds first, then what no flood reached."""

    jobs: tuple[Flooding, ...]
    pieces: Pieces
    n_seeds: tuple[int, ...]

    def read(self, index: int, box: Box) -> npt.NDArray[np.uint32]:
        """Return the ids of a box, before objects are put in order."""
        flooded, rest = self.jobs[index].flooded.read(box)[0], self.jobs[index].rest.read(box)[0]
        return np.asarray(np.where(rest > 0, rest + np.uint32(self.n_seeds[index]), flooded), np.uint32)


@dataclass(frozen=True)
class TabulateBlock:
    """List the objects of one block."""

    found: Found

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.watershed import object_table

        index, here = self.found.pieces.locate(block.number)
        shape = self.found.jobs[index].grid.domain.shape
        ids, first, sizes = object_table(self.found.read(index, here.inner), here.inner, shape)
        return {"ids": pack(ids), "first": pack(first), "sizes": pack(sizes)}


@dataclass(frozen=True)
class NumberBlock:
    """Write the final ids of one block."""

    found: Found
    numbers: tuple[Volume, ...]

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.watershed import object_table

        index, here = self.found.pieces.locate(block.number)
        job = self.found.jobs[index]
        ids = self.found.read(index, here.inner)
        present, _, _ = object_table(ids, here.inner, job.grid.domain.shape)
        numbers = np.concatenate([[0], look_up(self.numbers[index], present - 1)]).astype(job.target.dtype)
        job.target.write(here.inner, numbers[np.searchsorted(present, ids, side="right")])
        return {}
