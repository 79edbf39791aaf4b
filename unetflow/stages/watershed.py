"""Tell objects apart that touch: a watershed over a volume of any size, from seeds of high probability.

::

    seed-label, -pair, -relabel    components of what is likely, numbered over the volume
    flood                          outer: probabilities, classes, seeds -> inner: flooded
    rest-label, -pair, -relabel    components of the classes that no flood reached
    tabulate                       both -> id, first voxel and size of what a block holds; the driver adds them up
    count, number                  numbers 1..N by first voxel (`unetflow.stages.ranking`)
    write                          both -> instances

A seed has one id over the whole volume before anything is flooded, and a flood ends where the
halo of a block does (48 voxels of the finest axis): nothing is joined over faces, and the result
does not depend on the cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import BlockGrid, Shape
from unetflow.stages.components import Labelling, Widen, fit_target, label_volumes
from unetflow.stages.flood_blocks import (
    DepthBlock,
    FloodBlock,
    Found,
    FoundStarts,
    Likely,
    TabulateBlock,
    Unreached,
    WriteBlock,
)
from unetflow.stages.gathering import Gatherer, bucket_length
from unetflow.stages.pieces import Pieces, Some
from unetflow.stages.ranking import number_objects
from unetflow.stages.stored import stored_only
from unetflow.stages.tables import Rows, write_table

if TYPE_CHECKING:
    from unetflow.stages.work import Work
    from unetflow.storage.volume import Volume

# A block is at least this many halos long, or most of what it reads would be halo.
_HALOS_A_BLOCK = 4
# With its halo it is at most so large where the shards allow it.
_MOST_VOXELS = 2**25
# What a flood holds of each of its voxels.
FLOOD_BYTES = 30


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


def flood_bytes(shard: Shape, shape: Shape, voxel_size: tuple[float, ...], linked: tuple[bool, ...]) -> int:
    """Return the bytes that a worker takes for a block with its halo.

    Parameters
    ----------
    shard, shape : tuple of int
        Of the instances, per grid axis.
    voxel_size : tuple of float
        Per spatial axis.
    linked : tuple of bool
        Axes along which neighbours belong together.
    """
    from unetflow.numerics.watershed import flood_halo, flood_strides

    halo = flood_halo(flood_strides(voxel_size, len(shape)), linked)
    return FLOOD_BYTES * _with_halo(flood_block(shard, shape, halo), shape, halo)


def flood_volumes(
    work: Work,
    jobs: tuple[Flooding, ...],
    *,
    seed_threshold: float,
    seed_size: int,
    connectivity: str,
    min_size: int,
    scratch: str | Path,
    widen: Widen | None = None,
) -> list[int]:
    """Find the objects of several volumes and return how many there are in each.

    Objects are numbered 1..N by their first voxel in C order, whatever the cut.
    """
    asked: dict[str, Any] = {"seed_threshold": seed_threshold, "seed_size": seed_size, "connectivity": connectivity}
    passes = partial(_flood_volumes, work, jobs, **asked, min_size=min_size, scratch=str(scratch), widen=widen)
    return [int(n) for n in work.once("flooded", passes)]


def with_depths(work: Work, jobs: tuple[Flooding, ...], depths: tuple[Volume, ...]) -> tuple[Flooding, ...]:
    """Let depth in the classes stand for probability: seeds lie deep, and floods come from there.

    ``depths`` (uint8, one channel) are written here, with the halo of a flood, so that they are those of the
    whole volume.
    """
    from unetflow.numerics.depth import depth_halo
    from unetflow.numerics.watershed import FLOOD_STEPS

    halos = [depth_halo(j.classes.voxel_size, j.linked, FLOOD_STEPS) for j in jobs]
    pieces = Pieces(tuple(replace(j.grid, before=h, after=h) for j, h in zip(jobs, halos, strict=True)))
    work.run_pass("depth", DepthBlock(jobs, depths, pieces), stored_only(pieces, [job.classes for job in jobs]))
    return tuple(replace(job, probabilities=depth) for job, depth in zip(jobs, depths, strict=True))


def seed_depth(distance: float) -> float:
    """Return the share of the deepest depth that seeds lie beyond, for a distance in voxels of the finest axis."""
    from unetflow.numerics.watershed import FLOOD_STEPS

    return distance / FLOOD_STEPS


def _flood_volumes(
    work: Work, jobs: tuple[Flooding, ...], *, seed_threshold: float, seed_size: int, connectivity: str, min_size: int,
    scratch: str, widen: Widen | None,
) -> list[int]:  # fmt: skip
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
    return _number_found(work, found, counts, blocks, min_size, scratch, widen)


def _number_found(
    work: Work, found: Found, counts: list[int], blocks: Some, min_size: int, scratch: str, widen: Widen | None
) -> list[int]:
    """Give what was found its numbers by first voxel, and write it."""
    pieces = found.pieces
    longest = max(math.prod(job.flood_grid.block_shape) for job in found.jobs)
    rows = Rows.create(f"{scratch}/found", len(pieces), 3, longest, keep=True)
    seen = Gatherer(rows)
    work.run_pass("tabulate", TabulateBlock(found, rows), blocks, seen.add)
    ranges = [range(a, b) for a, b in zip(pieces.first, pieces.first[1:], strict=False)]
    firsts, sizes = [], []
    for index, (span, n) in enumerate(zip(ranges, counts, strict=True)):
        firsts.append(write_table(f"{scratch}/first-{index}", n, _reduced(seen, span, n, 0, np.minimum)))
        sizes.append(write_table(f"{scratch}/size-{index}", n, _reduced(seen, span, n, 1, np.add)))
    starts = FoundStarts(rows, pieces, tuple(firsts), tuple(sizes), max(1, min_size))
    totals, given = number_objects(work, pieces, blocks, starts, scratch=scratch, prefix="", longest=longest)
    tables = tuple(
        write_table(f"{scratch}/numbers-{index}", n, _reduced(given, span, n, 0, np.maximum))
        for index, (span, n) in enumerate(zip(ranges, counts, strict=True))
    )
    jobs = tuple(
        replace(job, target=fit_target(job.target, i, n, widen))
        for i, (job, n) in enumerate(zip(found.jobs, totals, strict=True))
    )
    work.run_pass("write", WriteBlock(replace(found, jobs=jobs), tables), blocks)
    return totals


def _reduced(seen: Gatherer, blocks: range, n: int, column: int, reduce: np.ufunc) -> Iterator[npt.NDArray[np.int64]]:
    """Yield one column of all objects by id, bucket by bucket; 0 or the largest number where there is none."""
    for bucket, (ids, columns) in enumerate(seen.buckets(blocks, n)):
        empty = np.iinfo(np.int64).max if reduce is np.minimum else 0
        values = np.full(bucket_length(bucket, n), empty, np.int64)
        reduce.at(values, ids, columns[column])
        yield values
