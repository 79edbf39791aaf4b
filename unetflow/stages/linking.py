"""Link the objects of the planes of a stack by their overlap: one object from plane to plane.

::

    overlap    objects of planes, a plane beyond the block -> sizes, and who shares how many voxels with whom (stored)
               the driver finds each object's best partner before and behind it, a range of ids at a time,
               and follows the chains of those that chose each other
    link       objects of planes, numbers -> instances

Objects of planes have ids 1..N by first voxel over the whole stack before anything is linked, and an
object begins where the first of its chain does: so the final ids are 1..N by first voxel, in the order in which
chains begin. Sizes and shared voxels add over blocks; nothing depends on the cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Block, BlockGrid, Box, Shape
from unetflow.stages.components import Widen, fit_target
from unetflow.stages.gathering import Gatherer, bucket_length, buckets_of
from unetflow.stages.pieces import Pieces
from unetflow.stages.stored import stored_only
from unetflow.stages.tables import BUCKET, Rows, create_table, look_up, look_up_any, write_table

if TYPE_CHECKING:
    from unetflow.stages.work import Report, Work
    from unetflow.storage.volume import Volume

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Linking:
    """One stack whose objects are linked.

    Parameters
    ----------
    planar : Volume
        The objects of each plane, numbered over the stack by first voxel.
    target : Volume
        Final ids.
    grid : BlockGrid
        Blocks that own whole shards of ``target``.
    axis : int or None
        Along which planes are linked; None where there is one plane only.
    """

    planar: Volume
    target: Volume
    grid: BlockGrid
    axis: int | None


def link_axis(grid_axes: str) -> int | None:
    """Return the axis along which planes are linked: z, or t where there is no z.

    Examples
    --------
    >>> link_axis("tzyx"), link_axis("tyx"), link_axis("yx")
    (1, 0, None)
    """
    return len(grid_axes) - 3 if len(grid_axes) > 2 else None


def link_bytes(shard: Shape, shape: Shape) -> int:
    """Return the bytes that a worker takes for a block of a linking: 40 a voxel.

    Ids of planes (8), the place of each among those of the block (8), final ids (8) and a packed copy; or ids of
    up to twice as many planes, and the runs of pairs among them.
    """
    return 40 * math.prod(min(s, n) for s, n in zip(shard, shape, strict=True))


def link_planes(
    work: Work, jobs: tuple[Linking, ...], counts: list[int], *, iou: float, min_size: int, scratch: str | Path,
    widen: Widen | None = None,
) -> list[int]:  # fmt: skip
    """Link the objects of several stacks and return how many there are in each.

    Parameters
    ----------
    counts : list of int
        Objects of planes in each stack.
    iou : float
        Objects of neighbouring planes are one where each is the other's best and their IoU is at least this.
    min_size : int
        Linked objects with fewer voxels are dropped before numbers are given.
    widen : callable, optional
        Given the index of a stack with more objects than its target counts, returns a wider target.
    """
    return [int(n) for n in work.once("linked", lambda: _link(work, jobs, counts, iou, min_size, str(scratch), widen))]


def _link(
    work: Work, jobs: tuple[Linking, ...], counts: list[int], iou: float, min_size: int, scratch: str,
    widen: Widen | None,
) -> list[int]:  # fmt: skip
    pieces = Pieces(tuple(job.grid for job in jobs))
    blocks = stored_only(pieces, [job.planar for job in jobs])
    longest = max(math.prod(job.grid.block_shape) for job in jobs)
    sizes, onward, back = (
        Gatherer(Rows.create(f"{scratch}/{name}", len(pieces), n_columns, longest, keep=True))
        for name, n_columns in (("plane-sizes", 2), ("onward", 3), ("back", 3))
    )

    def add(number: int, report: Report) -> None:
        for gatherer, part in zip((sizes, onward, back), report["buckets"], strict=True):
            gatherer.add(number, {"buckets": part})

    work.run_pass("overlap", OverlapBlock(jobs, pieces, sizes.rows, onward.rows, back.rows), blocks, add)
    totals, chains, numbers = [], [], []
    for index, n in enumerate(counts):
        span = range(pieces.first[index], pieces.first[index + 1])
        place = f"{scratch}/linked-{index}"
        own = write_table(f"{place}-sizes", n, _sums(sizes, span, n), BUCKET)
        forward = write_table(f"{place}-onward", n, _best(onward, span, own, n, iou), BUCKET)
        table, n_chains, whole = _chains(place, own, forward, _best(back, span, own, n, iou), n)
        kept, total = _kept(place, whole, n_chains, min_size)
        chains.append(table)
        numbers.append(kept)
        totals.append(total)
    jobs = tuple(
        replace(job, target=fit_target(job.target, i, n, widen))
        for i, (job, n) in enumerate(zip(jobs, totals, strict=True))
    )
    work.run_pass("link", LinkBlock(jobs, pieces, sizes.rows, tuple(chains), tuple(numbers)), blocks)
    return totals


def _sums(seen: Gatherer, span: range, n: int) -> Iterator[Integers]:
    """Yield what blocks told of each object, added up, bucket by bucket."""
    for bucket, (ids, (values,)) in enumerate(seen.buckets(span, n)):
        total = np.zeros(bucket_length(bucket, n), np.int64)
        np.add.at(total, ids, values)
        yield total


def _best(seen: Gatherer, span: range, sizes: Volume, n: int, iou: float) -> Iterator[Integers]:
    """Yield the best partner of each object on one side, bucket by bucket."""
    from unetflow.numerics.overlap import best_partners

    for bucket, (ids, (partners, shared)) in enumerate(seen.buckets(span, n)):
        own = sizes.read(_range(bucket, n))[0]
        yield best_partners(ids, partners, shared, own, lambda wanted: look_up(sizes, wanted - 1), iou)


def _chains(
    place: str, sizes: Volume, forward: Volume, before: Iterator[Integers], n: int
) -> tuple[Volume, int, Gatherer]:
    """Return the chain of each object, how many there are, and rows of (chain, voxels)."""
    from unetflow.numerics.overlap import chain

    table, n_chains = create_table(f"{place}-chains", n, BUCKET), 0
    rows = Rows.create(f"{place}-parts", -(-n // BUCKET), 2, min(n, BUCKET))
    seen = Gatherer(rows)
    for bucket, found in enumerate(before):
        box = _range(bucket, n)
        chosen = np.flatnonzero(found)
        answers = look_up_any(forward, found[chosen] - 1)
        found[chosen[answers != chosen + box.start[0] + 1]] = 0
        chains = chain(found, box.start[0] + 1, n_chains, lambda ids: look_up_any(table, ids - 1))
        table.write(box, chains)
        n_chains += int((found == 0).sum())
        present, inverse = np.unique(chains, return_inverse=True)
        total = np.zeros(len(present), np.int64)
        np.add.at(total, inverse, sizes.read(box)[0])
        rows.write(bucket, np.stack([present, total]))
        seen.add(bucket, {"buckets": buckets_of(present)})
    return table, n_chains, seen


def _kept(place: str, parts: Gatherer, n_chains: int, min_size: int) -> tuple[Volume, int]:
    """Return the final number of each chain, 0 where it is too small, and how many are kept."""
    table, total = create_table(f"{place}-numbers", n_chains, BUCKET), 0
    for bucket, sizes in enumerate(_sums(parts, range(parts.rows.volume.shape[0]), n_chains)):
        is_kept = sizes >= min_size
        table.write(_range(bucket, n_chains), np.where(is_kept, total + np.cumsum(is_kept), 0))
        total += int(is_kept.sum())
    return table, total


def _range(bucket: int, n: int) -> Box:
    start = bucket * BUCKET
    return Box((start,), (start + bucket_length(bucket, n),))


@dataclass(frozen=True)
class OverlapBlock:
    """List the objects of one block, and those of the next plane that they overlap."""

    jobs: tuple[Linking, ...]
    pieces: Pieces
    sizes: Rows
    onward: Rows
    back: Rows

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.overlap import plane_overlaps
        from unetflow.numerics.watershed import object_table

        index, here = self.pieces.locate(block.number)
        job, inner = self.jobs[index], here.inner
        further = [int(axis == job.axis) for axis in range(job.grid.domain.ndim)]
        outer = inner.grow([0] * len(further), further).intersect(job.grid.domain)
        ids = job.planar.read(outer)[0]
        own, _, sizes = object_table(ids[inner.relative_to(outer).slices], inner, job.grid.domain.shape)
        if len(own) == 0:
            return {"buckets": [[], [], []]}
        self.sizes.write(block.number, np.stack([own, sizes]))
        found = [buckets_of(own), [], []]
        if job.axis is not None:
            shared = plane_overlaps(ids, job.axis)
            columns = np.stack([*shared.pairs.T, shared.counts])
            if columns.size:
                turned = columns[[1, 0, 2]][:, np.lexsort((columns[0], columns[1]))]
                self.onward.write(block.number, columns)
                self.back.write(block.number, turned)
                found[1:] = [buckets_of(columns[0]), buckets_of(turned[0])]
        return {"buckets": found}


@dataclass(frozen=True)
class LinkBlock:
    """Write the final ids of one block."""

    jobs: tuple[Linking, ...]
    pieces: Pieces
    sizes: Rows
    chains: tuple[Volume, ...]
    numbers: tuple[Volume, ...]

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.ranking import renumber

        index, here = self.pieces.locate(block.number)
        job = self.jobs[index]
        present = self.sizes.read(block.number)[0]
        chains = look_up(self.chains[index], present - 1)
        given = look_up_any(self.numbers[index], chains - 1)
        if given.any():
            ids = job.planar.read(here.inner)[0]
            job.target.write(here.inner, renumber(ids, present, given, job.target.dtype))
        return {}
