"""Fill the coarser levels of images, one pass a level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Block, BlockGrid, Box, Shape
from unetflow.stages.pieces import Pieces, Some
from unetflow.stages.stored import stored_only

if TYPE_CHECKING:
    from unetflow.stages.work import Report, Work
    from unetflow.storage.volume import Volume

Levels = Sequence["Volume"]


@dataclass(frozen=True)
class PoolBlock:
    """Pool one block of a level from the level above it."""

    finer: tuple[Volume, ...]
    coarser: tuple[Volume, ...]
    factors: tuple[Shape, ...]
    pieces: Pieces
    is_labels: bool

    def __call__(self, block: Block) -> Report:
        """Read slab by slab, so that memory stays near that of the block written."""
        index, here = self.pieces.locate(block.number)
        finer, coarser, factors = self.finer[index], self.coarser[index], self.factors[index]
        out = np.empty((coarser.n_channels, *here.inner.shape), coarser.dtype)
        for slab in slabs(here.inner, coarser.chunk):
            pooled = pool(finer, slab, factors, is_labels=self.is_labels)
            out[(slice(None), *slab.relative_to(here.inner).slices)] = pooled
        coarser.write(here.inner, out)
        return {}


def pool(finer: Volume, box: Box, factors: Shape, *, is_labels: bool) -> npt.NDArray[Any]:
    """Return what a box of the next coarser level holds, ``(C, *box.shape)``: means, or modes of labels."""
    from unetflow.numerics.pyramid import average_pool, mode_pool

    above = Box(_times(box.start, factors), _times(box.stop, factors)).intersect(finer.box)
    voxels = finer.read(above)
    if is_labels:
        return np.stack([mode_pool(channel, factors) for channel in voxels])
    return np.asarray(average_pool(voxels, factors))


def build_pyramids(work: Work, images: Sequence[Levels], *, is_labels: bool, name: str = "pyramid") -> None:
    """Fill levels 1, 2, ... of images whose level 0 is written.

    Parameters
    ----------
    images : sequence of sequence of Volume
        The levels of each image, finest first, as `storage.ngff.create_image` returns them.
    is_labels : bool
        Take the mode of the labels instead of the mean.
    """
    from unetflow.storage.ngff import level_shapes

    for level in range(1, max((len(levels) for levels in images), default=0)):
        deep = [levels for levels in images if len(levels) > level]
        tops = [levels[0] for levels in deep]
        pieces = Pieces(tuple(BlockGrid(v[level].box, v[level].shard or v[level].chunk) for v in deep))
        task = PoolBlock(
            tuple(levels[level - 1] for levels in deep),
            tuple(levels[level] for levels in deep),
            tuple(level_shapes(v.shape, v.voxel_size, v.spatial_axes)[level].factors for v in tops),
            pieces,
            is_labels,
        )
        work.run_pass(f"{name}-{level}", task, _stored_above(pieces, task))


def _stored_above(pieces: Pieces, task: PoolBlock) -> Some:
    """Leave out the blocks below which nothing is stored: what they pool to is fill value too."""
    blocks = [_times(c.shard or c.chunk, f) for c, f in zip(task.coarser, task.factors, strict=True)]
    return stored_only(pieces, task.finer, [BlockGrid(v.box, b) for v, b in zip(task.finer, blocks, strict=True)])


def stand_alone(path: str) -> None:
    """Take the source image out of the metadata of a label image that lies beside none."""
    from unetflow.storage.ngff import get_attributes, set_attributes

    set_attributes(path, {"ome": {**get_attributes(path)["ome"], "image-label": {}}})


def slabs(box: Box, chunk: Shape) -> Iterator[Box]:
    """Cut a box along its first long axis into pieces as thick as a chunk."""
    axis = next((a for a, (n, c) in enumerate(zip(box.shape, chunk, strict=True)) if n > c), 0)
    for start in range(box.start[axis], box.stop[axis], chunk[axis]):
        stop = min(start + chunk[axis], box.stop[axis])
        yield Box(
            (*box.start[:axis], start, *box.start[axis + 1 :]),
            (*box.stop[:axis], stop, *box.stop[axis + 1 :]),
        )


def _times(position: Shape, factors: Shape) -> Shape:
    return tuple(p * f for p, f in zip(position, factors, strict=True))
