"""What of the labels is worth reading: their chunks that exist, within roi and mask.

A volume of terabytes is often annotated in a few places, and the rest of the label array was
never written. A block whose label chunks are all missing holds background and nothing else: it
is counted by arithmetic, weighs what the weight array is filled with, and needs no task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetflow.geometry import BlockGrid, Box
from unetflow.stages.pieces import Pieces, Some

if TYPE_CHECKING:
    from unetflow.stages.inputs import Item

Integers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Presence:
    """Which blocks each pass over the labels has to do.

    Parameters
    ----------
    counted, weighed, labelled : Some
        Blocks that hold something to count and draw from; that weigh anything but the fill
        value; that can hold foreground.
    n_absent : tuple of int
        Per image, the voxels that count as background in blocks that are not counted.
    """

    counted: Some
    weighed: Some
    labelled: Some
    n_absent: tuple[int, ...]


def find_presence(items: tuple[Item, ...], plain: Pieces, with_halo: Pieces) -> Presence:
    """Look which label chunks are stored.

    Parameters
    ----------
    plain, with_halo : Pieces
        The same blocks of all label volumes, without and with the halo of the weights.
    """
    counted, weighed, labelled, n_absent = [], [], [], []
    for index, item in enumerate(items):
        grid, outer = plain.grids[index], with_halo.grids[index]
        assert isinstance(grid, BlockGrid)
        assert isinstance(outer, BlockGrid)
        stored, near = _stored(item, grid, outer)
        region = _touching(grid, item.region)
        masked = np.ones(len(grid), bool) if item.mask is None else item.mask.stored_blocks(grid)[0]
        live = region & masked & (stored if item.mask is None else True)
        counted.append(live)
        # What is outside of roi and mask weighs 0, which has to be written.
        weighed.append(near | ~_inside(grid, item.region) | (item.mask is not None) | _is_fill_ignored(item))
        labelled.append(stored)
        n_absent.append(_n_absent(item, grid, live, region))
    first = plain.first

    def some(flags: list[Mask]) -> Some:
        return Some(plain, np.concatenate([np.flatnonzero(f) + first[i] for i, f in enumerate(flags)]))

    over = Some(with_halo, some(weighed).numbers)
    return Presence(some(counted), over, some(labelled), tuple(n_absent))


def annotated_region(item: Item) -> Box:
    """Return the part of an image's region where labels are stored: what training and validation share."""
    if not _is_fill_background(item):
        return item.region
    region = item.region.intersect(item.labels.stored_extent())
    return region if region.size else item.region


def _stored(item: Item, *grids: BlockGrid) -> list[Mask]:
    """Say which blocks may hold more than background; all where missing chunks are something else."""
    if _is_fill_background(item):
        return item.labels.stored_blocks(*grids)
    return [np.ones(len(grid), bool) for grid in grids]


def _is_fill_background(item: Item) -> bool:
    """Say whether a missing chunk holds background, or voxels that do not count."""
    class_map = item.data.class_map
    is_background = item.labels.fill_value == 0 and (class_map is None or class_map.get(0) == 0)
    return is_background or _is_fill_ignored(item)


def _is_fill_ignored(item: Item) -> bool:
    return int(item.labels.fill_value) in item.data.ignore


def _touching(grid: BlockGrid, box: Box) -> Mask:
    """Say which blocks share a voxel with a box."""
    return _where(grid, lambda starts, stops, axis: (starts < box.stop[axis]) & (stops > box.start[axis]))


def _inside(grid: BlockGrid, box: Box) -> Mask:
    """Say which blocks lie wholly inside a box."""
    return _where(grid, lambda starts, stops, axis: (starts >= box.start[axis]) & (stops <= box.stop[axis]))


def _where(grid: BlockGrid, holds: Callable[[Integers, Integers, int], Mask]) -> Mask:
    """Ask each axis by itself: what must hold of a block must hold along all of them."""
    flags = np.ones(grid.counts, bool)
    for axis, (count, length) in enumerate(zip(grid.counts, grid.block_shape, strict=True)):
        starts = grid.domain.start[axis] + np.arange(count) * length
        along = holds(starts, np.minimum(starts + length, grid.domain.stop[axis]), axis)
        flags &= along.reshape([-1 if a == axis else 1 for a in range(len(grid.counts))])
    return flags.reshape(-1)


def _n_absent(item: Item, grid: BlockGrid, live: Mask, region: Mask) -> int:
    """Count the background voxels of the blocks that are not read."""
    if item.mask is not None or _is_fill_ignored(item) or not (region & ~live).any():
        return 0
    read = sum(grid[int(number)].inner.intersect(item.region).size for number in np.flatnonzero(live))
    return item.region.size - read
