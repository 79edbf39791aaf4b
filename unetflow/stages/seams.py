"""The seam score: how much more probabilities jump across the faces of blocks than beside them.

::

    block  . . . a | b . . .  block        across: |a - b|
               a' a|b b'                   beside: |a' - a| and |b - b'|

1.0 is no seam. Up to 256 faces, chosen by seed, are read from the finished output. Between voxels that were
interpolated from longer ones, jumps differ with the place between these: there *beside* is one such voxel away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Block, BlockGrid, Box
from unetflow.stages.pieces import Pieces

if TYPE_CHECKING:
    from unetflow.stages.work import Report, Work
    from unetflow.storage.volume import Volume

MOST_FACES = 256
_LONGEST = 2048


@dataclass(frozen=True)
class Faces:
    """Some far faces of blocks along one axis, each as four planes: two before it and two behind.

    Parameters
    ----------
    step : int
        Voxels from a face to what is beside it: for more than 1 there are as many more planes.
    """

    grid: BlockGrid
    axis: int
    chosen: tuple[int, ...]
    step: int = 1

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, number: int) -> Block:
        inner = self.grid[self.chosen[number]].inner
        face = inner.stop[self.axis]
        # A face may be large: its middle tells as much.
        start = [a + max(0, (b - a - _LONGEST) // 2) for a, b in zip(inner.start, inner.stop, strict=True)]
        stop = [min(a + _LONGEST, b) for a, b in zip(start, inner.stop, strict=True)]
        start[self.axis], stop[self.axis] = face - 1 - self.step, face + 1 + self.step
        box = Box(tuple(start), tuple(stop))
        return Block(number, box, box)

    def __iter__(self) -> Iterator[Block]:
        return (self[number] for number in range(len(self)))


def choose_faces(
    grid: BlockGrid, axis: int, seed: int, stored: npt.NDArray[np.bool_], most: int = MOST_FACES, step: int = 1
) -> Faces:
    """Draw faces with two voxels (1 + step) on either side, between blocks that are both stored."""
    counts, length = grid.counts, grid.block_shape[axis]
    last = grid.domain.shape[axis] - (counts[axis] - 1) * length
    there = np.moveaxis(stored.reshape(counts), axis, 0)
    has_face = np.zeros_like(there)
    if length > step:
        has_face[:-1] = there[:-1] & there[1:]
        has_face[counts[axis] - 2 :] &= last > step
    numbers = np.flatnonzero(np.moveaxis(has_face, 0, axis))
    if len(numbers) > most:
        numbers = np.sort(np.random.default_rng([seed, 2, axis]).choice(numbers, most, replace=False))
    return Faces(grid, axis, tuple(int(n) for n in numbers), step)


@dataclass(frozen=True)
class SeamBlock:
    """Measure one face."""

    images: tuple[Volume, ...]
    faces: Pieces

    def __call__(self, block: Block) -> Report:
        """Read four planes; sum the jumps across the face and beside it, the same number of each."""
        index, here = self.faces.locate(block.number)
        faces = self.faces.grids[index]
        assert isinstance(faces, Faces)
        voxels = self.images[index].read(here.inner).astype(np.float32)
        jumps = np.abs(np.diff(voxels, axis=faces.axis + 1)).sum(axis=0, dtype=np.float64)
        before, across, behind = (jumps.take(i * faces.step, axis=faces.axis) for i in range(3))
        return {"across": float(across.sum()), "beside": float((before.sum() + behind.sum()) / 2)}


def measure_seams(
    work: Work, images: tuple[Volume, ...], blocks: Pieces, linked: tuple[bool, ...], seed: int,
    ratios: Sequence[tuple[float, ...]] = (),
) -> float | None:  # fmt: skip
    """Return the seam score of stored probabilities; None where there are no faces, or nothing jumps.

    Parameters
    ----------
    ratios : sequence of tuple of float, optional
        For each image, the length of the voxels that the network saw, per grid axis; empty where these are the image's.
    """
    found = []
    for image, grid, ratio in zip(images, blocks.grids, ratios or [()] * len(images), strict=True):
        assert isinstance(grid, BlockGrid)
        [stored] = image.stored_blocks(grid)
        steps = [max(1, math.ceil(r)) for r in ratio] or [1] * len(linked)
        axes = [axis for axis, is_linked in enumerate(linked) if is_linked]
        faces = [choose_faces(grid, axis, seed, stored, step=steps[axis]) for axis in axes]
        found += [(image, some) for some in faces if len(some)]
    if not found:
        return None
    pieces = Pieces(tuple(faces for _, faces in found))
    sums = {"across": 0.0, "beside": 0.0}

    def add(number: int, report: Report) -> None:
        for key in sums:
            sums[key] += report[key]

    work.run_pass("seam", SeamBlock(tuple(image for image, _ in found), pieces), pieces, add)
    return sums["across"] / sums["beside"] if sums["beside"] else None
