"""Connected components of a volume of any size.

Passes over the same grid of blocks; voxels go store -> worker -> store, and so do tables:

::

    label     each block by itself -> fragments, numbered within the block; a table of them; the planes at its faces
    pair      planes on both sides of a face -> which open fragments touch
              the driver joins open fragments, slab by slab (`unetflow.stages.joining`)
    count     components that start in a block -> how many in each line
    number    what starts before a block -> numbers 1..N by first voxel (`unetflow.stages.ranking`)
              the driver tells open fragments the numbers of their components
    relabel   fragments and numbers -> final ids

Nothing that is as long as the volume has objects is in anyone's memory: a worker holds the table
of its block, the driver the open fragments of one slab of blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetflow.errors import StageError
from unetflow.geometry import BlockGrid, Box, Shape
from unetflow.stages.component_blocks import ComponentStarts, Keep, LabelBlock, PairBlock, RelabelBlock, face_arrays
from unetflow.stages.joining import OpenFragments, join_fragments, publish_numbers
from unetflow.stages.pieces import Pieces, Some
from unetflow.stages.ranking import number_objects
from unetflow.stages.tables import Rows

if TYPE_CHECKING:
    from unetflow.stages.work import Report, Work
    from unetflow.storage.volume import Volume

Foreground = Callable[["Volume", Box], npt.NDArray[np.bool_]]
Widen = Callable[[int], "Volume"]


@dataclass(frozen=True)
class Labelling:
    """One volume to label: what is read, where fragments and results are written.

    Parameters
    ----------
    source, fragments, target : Volume
        Classes; block-local ids (temporary); final ids.
    grid : BlockGrid
        Blocks that own whole shards of ``fragments`` and ``target``.
    linked : tuple of bool
        Axes along which neighbours belong together.
    """

    source: Volume
    fragments: Volume
    target: Volume
    grid: BlockGrid
    linked: tuple[bool, ...]


def label_volumes(
    work: Work,
    jobs: tuple[Labelling, ...],
    foreground: Foreground,
    *,
    connectivity: str,
    scratch: str | Path,
    min_size: int = 0,
    keep: Keep | None = None,
    prefix: str = "",
    only: npt.NDArray[np.int64] | None = None,
    widen: Widen | None = None,
) -> list[int]:
    """Label several volumes and return the number of objects of each.

    Objects are numbered 1..N by their first voxel in C order, whatever the cut.

    Parameters
    ----------
    foreground : callable
        ``(source, box)`` -> what is labelled.
    min_size : int
        Smaller objects are dropped before numbers are given.
    keep : Keep, optional
        Which objects are kept, instead of ``min_size``.
    prefix : str
        Of the names of passes and temporary arrays.
    only : ndarray of int64, optional
        Numbers of the blocks that may hold foreground; the others are known to hold none.
    widen : callable, optional
        Given the index of a volume with more objects than its target counts, returns a wider target.

    Raises
    ------
    StageError
        If a target has too few bits for its objects and cannot be widened.
    """
    task = _Task(jobs, foreground, connectivity, keep or Keep(min_size), str(scratch), prefix, only, widen)
    return [int(n) for n in work.once(f"{prefix}labelled", lambda: _label(work, task))]


@dataclass(frozen=True, eq=False)
class _Task:
    """The arguments of `label_volumes`."""

    jobs: tuple[Labelling, ...]
    foreground: Foreground
    connectivity: str
    keep: Keep
    scratch: str
    prefix: str
    only: npt.NDArray[np.int64] | None
    widen: Widen | None


def _label(work: Work, task: _Task) -> list[int]:
    jobs, prefix, scratch, only = task.jobs, task.prefix, task.scratch, task.only
    pieces = Pieces(tuple(job.grid for job in jobs))
    blocks: Pieces | Some = pieces if only is None else Some(pieces, only)
    place = f"{scratch}/{prefix}"
    longest = max(int(np.prod(job.grid.block_shape)) for job in jobs)
    table = Rows.create(f"{place}table", len(pieces), 3, longest, keep=True)
    n_open = np.zeros(len(pieces), np.int64)
    found = OpenFragments(
        Rows.create(f"{place}open", len(pieces), 4, longest, keep=True),
        Rows.create(f"{place}pairs", len(pieces), 2, 9 ** jobs[0].grid.domain.ndim * longest, keep=True),
        Rows.create(f"{place}joined", len(pieces), 3, longest),
        Rows.create(f"{place}published", len(pieces), 1, longest),
        n_open,
    )

    def add(number: int, report: Report) -> None:
        n_open[number] = report["open"]

    faces = tuple(face_arrays(f"{place}faces-{i}", job) for i, job in enumerate(jobs))
    label = LabelBlock(jobs, pieces, task.foreground, task.connectivity, faces, table, found.table)
    work.run_pass(f"{prefix}label", label, blocks, add)
    open_blocks = Some(pieces, np.flatnonzero(n_open))
    work.run_pass(f"{prefix}pair", PairBlock(jobs, pieces, task.connectivity, faces, found.pairs), open_blocks)
    for index, job in enumerate(jobs):
        if n_open[pieces.first[index] : pieces.first[index + 1]].any():
            n_slabs = job.grid.counts[0]
            between = Rows.create(f"{place}slabs", n_slabs, 5, 2 * len(job.grid) // n_slabs * longest)
            join_fragments(pieces, index, found, between)
    starts = ComponentStarts(jobs, pieces, table, found.table, found.joined, task.keep)
    totals, numbered = number_objects(
        work, pieces, blocks, starts, scratch=scratch, prefix=prefix, longest=longest
    )
    for index in range(len(jobs)):
        publish_numbers(pieces, index, found, numbered.rows)
    jobs = tuple(
        replace(job, target=fit_target(job.target, i, n, task.widen))
        for i, (job, n) in enumerate(zip(jobs, totals, strict=True))
    )
    relabel = RelabelBlock(jobs, pieces, table, found.table, found.published, numbered.rows)
    work.run_pass(f"{prefix}relabel", relabel, blocks)
    return totals


def label_bytes(shard: Shape, shape: Shape) -> int:
    """Return the bytes that a worker takes for a block of a labelling: 20 a voxel.

    Classes and mask, fragments and the library's own copy; then fragments, final ids and a packed copy.
    """
    return 20 * math.prod(min(s, n) for s, n in zip(shard, shape, strict=True))


def fit_target(target: Volume, index: int, n: int, widen: Widen | None) -> Volume:
    """Return a target that counts to ``n``: the one there is, or a wider one."""
    most = int(np.iinfo(target.dtype).max)
    if n <= most:
        return target
    if widen is None:
        raise StageError(f"{n} objects need more than {target.dtype} counts in {target.path}")
    return widen(index)


def is_foreground(volume: Volume, box: Box) -> npt.NDArray[np.bool_]:
    """Return where the classes of a box are above 0."""
    return np.asarray(volume.read(box)[0] > 0)
