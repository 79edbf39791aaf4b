"""The blocks of a labelling: one block on one worker, with what it stores for the next pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Block, Box
from unetflow.stages.joining import KEY_BITS
from unetflow.stages.pieces import Pieces
from unetflow.stages.tables import Rows, scratch_array

if TYPE_CHECKING:
    from unetflow.stages.components import Labelling
    from unetflow.stages.work import Report
    from unetflow.storage.volume import Volume

Integers = npt.NDArray[np.int64]
Faces = Mapping[int, "Volume"]


@dataclass(frozen=True)
class Keep:
    """Which components are kept.

    Parameters
    ----------
    min_size : int
        Voxels at least.
    max_size : int, optional
        Voxels at most.
    inside_only : bool
        Whether those that touch the volume's border, along axes that are linked, are dropped.
    """

    min_size: int = 0
    max_size: int | None = None
    inside_only: bool = False

    def __call__(self, sizes: Integers, border: Integers) -> npt.NDArray[np.bool_]:
        """Say which are kept."""
        most = np.iinfo(np.int64).max if self.max_size is None else self.max_size
        return np.asarray((sizes >= self.min_size) & (sizes <= most) & ~(self.inside_only & (border > 0)))


def face_arrays(path: str, job: Labelling) -> dict[int, Volume]:
    """Create, or find, an array for each axis that faces between blocks cut.

    It holds the first and the last plane of each block along that axis, side by side, so that a
    slab over a face is two planes of it.
    """
    found = {}
    for axis, is_linked in enumerate(job.linked):
        if is_linked and job.grid.counts[axis] > 1:
            shape, chunk = list(job.grid.domain.shape), list(job.grid.block_shape)
            shape[axis], chunk[axis] = 2 * job.grid.counts[axis], 2
            axes = job.fragments.axes
            found[axis] = scratch_array(f"{path}-{axis}", axes=axes, shape=shape, dtype="uint32", chunk=chunk)
    return found


@dataclass(frozen=True)
class LabelBlock:
    """Label one block by itself."""

    jobs: tuple[Labelling, ...]
    pieces: Pieces
    foreground: Callable[[Volume, Box], npt.NDArray[np.bool_]]
    connectivity: str
    faces: tuple[Faces, ...]
    table: Rows
    opened: Rows

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.labelling import at_faces, first_in_volume, label_block

        index, here = self.pieces.locate(block.number)
        job = self.jobs[index]
        labelled = label_block(self.foreground(job.source, here.inner), job.linked, self.connectivity)
        fragments, first, sizes = labelled
        if not len(first):
            return {"open": 0}
        job.fragments.write(here.inner, fragments)
        border = np.zeros(len(first), np.int64)
        border[at_faces(fragments, _faces(job, here.inner, are_ends=True)) - 1] = 1
        self.table.write(block.number, np.stack([first, sizes, border]))
        ids = at_faces(fragments, _faces(job, here.inner, are_ends=False))
        if len(ids):
            self._store_planes(index, here, fragments)
            places = first_in_volume(first[ids - 1], here.inner, job.grid.domain.shape)
            self.opened.write(block.number, np.stack([ids, places, sizes[ids - 1], border[ids - 1]]))
        return {"open": len(ids)}

    def _store_planes(self, index: int, here: Block, fragments: npt.NDArray[np.uint32]) -> None:
        for axis, volume in self.faces[index].items():
            planes = fragments.take([0, -1], axis=axis)
            volume.write(_at(here.inner, axis, 2 * self.jobs[index].grid.index_of(here.number)[axis], 2), planes)


@dataclass(frozen=True)
class PairBlock:
    """Find the fragments that touch across the far faces of one block."""

    jobs: tuple[Labelling, ...]
    pieces: Pieces
    connectivity: str
    faces: tuple[Faces, ...]
    pairs: Rows

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.labelling import slab_pairs

        index, here = self.pieces.locate(block.number)
        job = self.jobs[index]
        found = [np.zeros((0, 2), np.uint64)]
        for axis in self.faces[index]:
            if here.inner.stop[axis] < job.grid.domain.stop[axis]:
                front, back = self._slab(index, here, axis)
                found.append(slab_pairs(front, back, axis, job.linked, self.connectivity))
        pairs = np.unique(np.concatenate(found), axis=0)
        if len(pairs):
            self.pairs.write(block.number, pairs.T.astype(np.int64))
        return {}

    def _slab(self, index: int, here: Block, axis: int) -> tuple[Any, Any]:
        """Read the two planes either side of a face, with a rim for edges and corners."""
        job = self.jobs[index]
        is_full = self.connectivity == "full"
        rim = [int(is_full and linked and a != axis) for a, linked in enumerate(job.linked)]
        box = _at(here.inner, axis, here.inner.stop[axis] - 1, 2).grow(rim, rim).intersect(job.grid.domain)
        stored = _at(box, axis, 2 * job.grid.index_of(here.number)[axis] + 1, 2)
        local = self.faces[index][axis].read(stored)[0].astype(np.uint64)
        numbers = (job.grid.numbers_of(box) + self.pieces.first[index]).astype(np.uint64)
        keys = np.where(local > 0, (numbers << np.uint64(KEY_BITS)) | local, np.uint64(0))
        front, back = np.split(keys, 2, axis=axis)
        return front, back


@dataclass(frozen=True)
class ComponentStarts:
    """The components that start in a block: closed fragments, and open ones with a component's first voxel."""

    jobs: tuple[Labelling, ...]
    pieces: Pieces
    table: Rows
    opened: Rows
    joined: Rows
    keep: Keep

    def __call__(self, number: int, here: Block) -> tuple[Integers, Integers]:
        """Return local ids and first voxels in the block."""
        first, sizes, border = self.table.read(number)
        is_start = np.ones(len(first), bool)
        ids, places, _, _ = self.opened.read(number)
        if len(ids):
            whole_first, whole_sizes, whole_border = self.joined.read(number)
            is_start[ids - 1] = whole_first == places
            sizes, border = sizes.copy(), border.copy()
            sizes[ids - 1], border[ids - 1] = whole_sizes, whole_border
        found = np.flatnonzero(is_start & self.keep(sizes, border))
        return found + 1, first[found]


@dataclass(frozen=True)
class RelabelBlock:
    """Write the final ids of one block."""

    jobs: tuple[Labelling, ...]
    pieces: Pieces
    table: Rows
    opened: Rows
    published: Rows
    numbered: Rows

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.labelling import relabel

        index, here = self.pieces.locate(block.number)
        job = self.jobs[index]
        numbers = np.zeros(self.table.read(block.number).shape[1], job.target.dtype)
        ids, given = self.numbered.read(block.number)
        numbers[ids - 1] = given
        opened = self.opened.read(block.number)[0]
        if len(opened):
            numbers[opened - 1] = self.published.read(block.number)[0]
        if numbers.any():
            job.target.write(here.inner, relabel(job.fragments.read(here.inner)[0], numbers))
        return {}


def _at(box: Box, axis: int, start: int, length: int) -> Box:
    """Return the box with another range along an axis."""
    return Box(
        (*box.start[:axis], start, *box.start[axis + 1 :]),
        (*box.stop[:axis], start + length, *box.stop[axis + 1 :]),
    )


def _faces(job: Labelling, inner: Box, *, are_ends: bool) -> list[tuple[int, bool]]:
    """Return the faces of a block that are the volume's, or those behind which its objects may go on."""
    return [
        (axis, is_far)
        for axis, is_linked in enumerate(job.linked)
        for is_far in (False, True)
        if is_linked and _is_end(job, inner, axis, is_far) == are_ends
    ]


def _is_end(job: Labelling, inner: Box, axis: int, is_far: bool) -> bool:
    domain = job.grid.domain
    return inner.stop[axis] == domain.stop[axis] if is_far else inner.start[axis] == domain.start[axis]
