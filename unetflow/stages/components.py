"""Connected components of a volume of any size: label, pair, join, relabel.

Three passes over the same grid of blocks. Only ids at faces and one first voxel and size a
fragment reach the driver; voxels go store -> worker -> store.

::

    label     each block by itself -> fragments, numbered within the block
    pair      two-voxel slabs at the faces -> which fragments touch
    relabel   the driver joins them; each block maps its fragments to final ids
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Block, BlockGrid, Box
from unetflow.stages.pieces import Pieces, Some

if TYPE_CHECKING:
    from unetflow.stages.work import Report, Work
    from unetflow.storage.volume import Volume

Foreground = Callable[["Volume", Box], npt.NDArray[np.bool_]]
_BLOCK_BITS = np.uint64(32)
_TABLE_CHUNK, _TABLE_SHARD = (2**16,), (2**22,)


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
    min_size: int,
    scratch: str | Path,
    prefix: str = "",
    only: npt.NDArray[np.int64] | None = None,
) -> list[int]:
    """Label several volumes in three passes and return the number of objects of each.

    Objects are numbered 1..N by their first voxel in C order, whatever the cut. Blocks that are
    not among ``only`` are known to hold no foreground.
    """
    pieces = Pieces(tuple(job.grid for job in jobs))
    blocks: Pieces | Some = pieces if only is None else Some(pieces, only)
    tables: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}
    pairs: dict[int, npt.NDArray[np.uint64]] = {}

    def keep_table(number: int, report: Report) -> None:
        tables[number] = (unpack(report["first"], np.int64), unpack(report["sizes"], np.int64))

    def keep_pairs(number: int, report: Report) -> None:
        pairs[number] = unpack(report["pairs"], np.uint64).reshape(-1, 2)

    work.run_pass(f"{prefix}label", LabelBlock(jobs, pieces, foreground, connectivity), blocks, keep_table)
    work.run_pass(f"{prefix}pair", PairBlock(jobs, pieces, connectivity), blocks, keep_pairs)
    offsets = np.zeros(len(pieces) + 1, np.int64)
    for number, (first, _) in tables.items():
        offsets[number + 1] = len(first)
    offsets = np.cumsum(offsets)
    final = np.zeros(int(offsets[-1]), np.uint64)
    totals = []
    for index in range(len(jobs)):
        numbers = range(pieces.first[index], pieces.first[index + 1])
        ids = _final_ids(numbers, tables, pairs, offsets, min_size)
        final[offsets[numbers.start] : offsets[numbers.stop]] = ids
        totals.append(int(ids.max(initial=0)))
    stored = [store_table(f"{scratch}/{prefix}{name}", t) for name, t in (("offsets", offsets), ("final", final))]
    work.run_pass(f"{prefix}relabel", RelabelBlock(jobs, pieces, *stored), blocks)
    return totals


def store_table(path: str, values: npt.NDArray[Any]) -> Volume:
    """Put a table of the driver's, ``(N,)``, into the store: workers read the part that a block needs."""
    from unetflow.storage.volume import create_array

    shape = (max(1, len(values)),)
    table = create_array(
        path, axes="x", shape=shape, dtype=values.dtype.name, chunk=_TABLE_CHUNK, shard=_TABLE_SHARD, overwrite=True
    )
    for block in BlockGrid(table.box, _TABLE_SHARD):
        part = block.inner.intersect(Box.of_shape(values.shape))
        if part.size:
            table.write(part, values[part.slices])
    return table


def look_up(table: Volume, places: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Return the entries of a stored table at sorted places: only the chunks that hold them are read."""
    chunks = places // _TABLE_CHUNK[0]
    cuts = np.flatnonzero(np.diff(chunks)) + 1
    parts = [group for group in np.split(places, cuts) if len(group)]
    found = [table.read(Box((int(g[0]),), (int(g[-1]) + 1,)))[0][g - g[0]] for g in parts]
    return np.concatenate([np.zeros(0, table.dtype), *found])


def _final_ids(
    blocks: range,
    tables: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
    pairs: dict[int, npt.NDArray[np.uint64]],
    offsets: npt.NDArray[np.int64],
    min_size: int,
) -> npt.NDArray[np.uint64]:
    """Join the fragments of one volume and number the objects."""
    from unetflow.numerics.labelling import number_components, union

    there = [n for n in blocks if n in tables]
    if not there:
        return np.zeros(0, np.uint64)
    first = np.concatenate([tables[n][0] for n in there])
    sizes = np.concatenate([tables[n][1] for n in there])
    keys = np.concatenate([pairs[n] for n in there])
    numbers = (keys >> _BLOCK_BITS).astype(np.int64)
    local = (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)
    flat = offsets[numbers] - offsets[blocks.start] + local
    roots = union(len(first), flat)
    return np.asarray(number_components(first, sizes, roots, min_size), np.uint64)


@dataclass(frozen=True)
class LabelBlock:
    """Label one block by itself."""

    jobs: tuple[Labelling, ...]
    pieces: Pieces
    foreground: Foreground
    connectivity: str

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.labelling import fragment_table, label_block

        index, here = self.pieces.locate(block.number)
        job = self.jobs[index]
        mask = self.foreground(job.source, here.inner)
        fragments, n = label_block(mask, job.linked, self.connectivity)
        job.fragments.write(here.inner, fragments.astype(np.uint32))
        first, sizes = fragment_table(fragments, n, here.inner, job.source.shape)
        return {"first": pack(first), "sizes": pack(sizes)}


@dataclass(frozen=True)
class PairBlock:
    """Find the fragments that touch across the far faces of one block."""

    jobs: tuple[Labelling, ...]
    pieces: Pieces
    connectivity: str

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.labelling import slab_pairs

        index, here = self.pieces.locate(block.number)
        job = self.jobs[index]
        found = [np.zeros((0, 2), np.uint64)]
        for axis, is_linked in enumerate(job.linked):
            if is_linked and here.inner.stop[axis] < job.grid.domain.stop[axis]:
                front, back = self._slab(index, here.inner, axis)
                found.append(slab_pairs(front, back, axis, job.linked, self.connectivity))
        return {"pairs": pack(np.unique(np.concatenate(found), axis=0))}

    def _slab(self, index: int, inner: Box, axis: int) -> tuple[Any, Any]:
        """Read the two planes either side of a face, with a rim for edges and corners."""
        job = self.jobs[index]
        rim = [int(linked and a != axis) for a, linked in enumerate(job.linked)]
        face = inner.stop[axis]
        start, stop = list(inner.start), list(inner.stop)
        start[axis], stop[axis] = face - 1, face + 1
        box = Box(tuple(start), tuple(stop)).grow(rim, rim).intersect(job.grid.domain)
        local = job.fragments.read(box)[0].astype(np.uint64)
        numbers = (job.grid.numbers_of(box) + self.pieces.first[index]).astype(np.uint64)
        keys = np.where(local > 0, (numbers << _BLOCK_BITS) | local, np.uint64(0))
        front, back = np.split(keys, 2, axis=axis)
        return front, back


@dataclass(frozen=True)
class RelabelBlock:
    """Write the final ids of one block."""

    jobs: tuple[Labelling, ...]
    pieces: Pieces
    offsets: Volume
    final: Volume

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.labelling import relabel

        index, here = self.pieces.locate(block.number)
        job = self.jobs[index]
        start, stop = self.offsets.read(Box((block.number,), (block.number + 2,)))[0].tolist()
        ids = self.final.read(Box((start,), (stop,)))[0]
        fragments = job.fragments.read(here.inner)[0]
        job.target.write(here.inner, relabel(fragments, ids).astype(job.target.dtype))
        return {}


def is_foreground(volume: Volume, box: Box) -> npt.NDArray[np.bool_]:
    """Return where the classes of a box are above 0."""
    return np.asarray(volume.read(box)[0] > 0)


def pack(array: npt.NDArray[Any]) -> str:
    """Write an array as short text for a report."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 1)).decode()


def unpack(text: str, dtype: Any) -> npt.NDArray[Any]:
    """Read what `pack` wrote."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)
