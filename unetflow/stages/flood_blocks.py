"""The blocks of a flooding: one block on one worker, and what each reads of a volume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Block, BlockGrid, Box
from unetflow.stages.gathering import buckets_of
from unetflow.stages.pieces import Pieces
from unetflow.stages.tables import Rows, look_up

if TYPE_CHECKING:
    from unetflow.stages.watershed import Flooding
    from unetflow.stages.work import Report
    from unetflow.storage.volume import Volume


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
class DepthBlock:
    """Write how deep the voxels of one block lie in the classes."""

    jobs: tuple[Flooding, ...]
    depths: tuple[Volume, ...]
    pieces: Pieces

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.depth import stored_depth
        from unetflow.numerics.watershed import FLOOD_STEPS

        index, here = self.pieces.locate(block.number)
        job = self.jobs[index]
        outer = here.outer.intersect(job.grid.domain)
        mask = job.classes.read(outer)[0] > 0
        if mask.any():
            depth = stored_depth(mask, job.classes.voxel_size, job.linked, FLOOD_STEPS)
            self.depths[index].write(here.inner, depth[here.inner.relative_to(outer).slices])
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
    rows: Rows

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.watershed import object_table

        index, here = self.found.pieces.locate(block.number)
        shape = self.found.jobs[index].grid.domain.shape
        ids, first, sizes = object_table(self.found.read(index, here.inner), here.inner, shape)
        if len(ids):
            self.rows.write(block.number, np.stack([ids, first, sizes]))
        return {"buckets": buckets_of(ids)}


@dataclass(frozen=True)
class FoundStarts:
    """The objects whose first voxel lies in a block, and that are large enough."""

    rows: Rows
    pieces: Pieces
    firsts: tuple[Volume, ...]
    sizes: tuple[Volume, ...]
    min_size: int

    def __call__(self, number: int, here: Block) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return ids and, sorted, first voxels in the block."""
        index, _ = self.pieces.locate(number)
        grid = self.pieces.grids[index]
        assert isinstance(grid, BlockGrid)
        ids, first, _ = self.rows.read(number)
        is_start = look_up(self.firsts[index], ids - 1) == first
        is_start &= look_up(self.sizes[index], ids - 1) >= self.min_size
        ids, first = ids[is_start], first[is_start]
        order = np.argsort(first)
        place = np.stack(np.unravel_index(first[order], grid.domain.shape)) - np.array([here.inner.start]).T
        return ids[order], np.asarray(np.ravel_multi_index(tuple(place), here.inner.shape), np.int64)


@dataclass(frozen=True)
class WriteBlock:
    """Write the final ids of one block."""

    found: Found
    numbers: tuple[Volume, ...]

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.ranking import renumber

        index, here = self.found.pieces.locate(block.number)
        job = self.found.jobs[index]
        ids = self.found.read(index, here.inner)
        present = np.unique(ids).astype(np.int64)
        present = present[present > 0]
        given = look_up(self.numbers[index], present - 1)
        job.target.write(here.inner, renumber(ids, present, given, job.target.dtype))
        return {}
