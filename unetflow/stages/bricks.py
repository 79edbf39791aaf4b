"""What a segmentation reads: chunks that blocks share, and the bricks of blocks that share them.

A worker goes through a *brick* of neighbouring blocks in C order and keeps decoded chunks, the
most recently used ones. If those of two planes of its blocks fit the cache, each chunk is fetched
once a brick, so the chunks that are fetched factor over the axes::

    chunks      |  a  |  b  |  c  |  d  |  e  |
    brick 0     [ block | block ]..                 fetches a, b, c
    brick 1                   ..[ block | block ]   fetches c, d, e: 6 for 5

Planes are counted along the first axis on which a brick has more than one block.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Shape
from unetflow.stages.tiles import Tiling

if TYPE_CHECKING:
    from unetflow.stages.predict import Image

# Decoded chunks of the raw volume that a worker keeps for the next blocks.
CHUNK_CACHE_BYTES = 9 * 2**27

_GOOD_AMPLIFICATION = 1.25
_MOST_BLOCKS = 512
_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512)

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AxisReads:
    """What the blocks read along one axis.

    Parameters
    ----------
    low, high : ndarray of int64
        First chunk that each block reads and first beyond.
    chunk, length : int
        Of the volume, in voxels.
    outer : int
        Voxels, as the network sees them, that a block reads at most, mirrored ones too.
    """

    low: Integers
    high: Integers
    chunk: int
    length: int
    outer: int

    @property
    def n_blocks(self) -> int:
        """Number of blocks along the axis."""
        return len(self.low)

    def fetched(self, count: int) -> tuple[int, int]:
        """Return chunks, and their voxels, that are fetched along the axis by bricks of ``count`` blocks."""
        firsts = np.arange(0, self.n_blocks, count)
        low = np.minimum.reduceat(self.low, firsts)
        high = np.maximum.reduceat(self.high, firsts)
        return int((high - low).sum()), int(self._voxels(low, high).sum())

    def widest(self, count: int) -> int:
        """Return the most voxels of chunks that so many neighbouring blocks read along the axis."""
        behind = self.high[min(count, self.n_blocks) - 1 :]
        return int(self._voxels(self.low[: len(behind)], behind).max())

    def _voxels(self, low: Integers, high: Integers) -> Integers:
        return np.asarray(np.minimum(high * self.chunk, self.length) - low * self.chunk)


@dataclass(frozen=True, eq=False)
class Reads:
    """What all blocks of an image read.

    Parameters
    ----------
    axes : tuple of AxisReads
        Per grid axis.
    voxel_bytes : int
        Of all channels of a voxel.
    """

    axes: tuple[AxisReads, ...]
    voxel_bytes: int

    def chunks(self, brick: Shape) -> int:
        """Return the number of chunks that a run fetches, brick by brick; channels count as one."""
        return math.prod(a.fetched(n)[0] for a, n in zip(self.axes, brick, strict=True))

    def bytes(self, brick: Shape) -> int:
        """Return the decoded bytes of these chunks."""
        return self.voxel_bytes * math.prod(a.fetched(n)[1] for a, n in zip(self.axes, brick, strict=True))

    @property
    def all(self) -> Shape:
        """The brick that holds every block: it fetches each chunk once."""
        return tuple(a.n_blocks for a in self.axes)

    def amplification(self, brick: Shape) -> float:
        """Return bytes fetched for each byte that must be."""
        return self.bytes(brick) / self.bytes(self.all)

    def needed(self, brick: Shape) -> int:
        """Return the bytes of chunks that a worker must keep to fetch each once a brick."""
        counts = [min(n, a.n_blocks) for n, a in zip(brick, self.axes, strict=True)]
        cut = next((i for i, n in enumerate(counts) if n > 1), None)
        if cut is None:
            return 0
        counts[cut] = 2
        return self.voxel_bytes * math.prod(a.widest(n) for a, n in zip(self.axes, counts, strict=True))


def plan_reads(image: Image, tiling: Tiling) -> Reads:
    """Work out what each block of an image reads, axis by axis."""
    volume, n_axes = image.volume, image.domain.ndim
    axes = []
    for axis, n in enumerate(image.domain.shape):
        start = np.arange(0, n, image.block[axis], dtype=np.int64)
        stop = np.minimum(start + image.block[axis], n)
        step, tile = tiling.step[axis], tiling.tile[axis]
        low, _ = tiling.along(axis, -((tile - 1 - start) // step))[2]
        _, high = tiling.along(axis, (stop - 1) // step)[2]
        axes.append(_chunks(low, high, volume.chunk[axis], volume.shape[axis], (tiling.ratio or (1.0,) * n_axes)[axis]))
    return Reads(tuple(axes), volume.n_channels * np.dtype(volume.dtype).itemsize)


def _chunks(low: Integers, high: Integers, chunk: int, length: int, ratio: float) -> AxisReads:
    """Turn ranges that may leave the volume into the chunks that are read, mirrored voxels among them."""
    outer = int((high - low).max())
    if ratio != 1:
        from unetflow.numerics.rescale import reach, rescaled_length

        low, high = _inside(low, high, rescaled_length(length, ratio))
        low, high = reach(low, ratio)[0], reach(high - 1, ratio)[1]
    first, beyond = _inside(low, high, length)
    return AxisReads(first // chunk, -(-beyond // chunk), chunk, length, outer)


def _inside(low: Integers, high: Integers, length: int) -> tuple[Integers, Integers]:
    """Return the voxels of an axis that ranges hold, mirrored where they leave it."""
    first = np.maximum(np.where(high > length, np.minimum(low, 2 * length - 1 - high), low), 0)
    beyond = np.minimum(np.where(low < 0, np.maximum(high, 1 - low), high), length)
    return first, beyond


def choose_brick(image: Image, tiling: Tiling, cache: int = CHUNK_CACHE_BYTES) -> Shape:
    """Choose how many blocks, per grid axis, one worker does at a stretch.

    The smallest brick that fetches at most a quarter more than there is and whose shared chunks fit
    the cache; else the one that fetches least. A pure function of its arguments.

    Parameters
    ----------
    cache : int
        Bytes of decoded chunks that a worker keeps.
    """
    reads = plan_reads(image, tiling)
    choices = [sorted({min(n, a.n_blocks) for n in _COUNTS}) for a in reads.axes]
    least = reads.bytes(reads.all)
    voxels = [{n: a.fetched(n)[1] for n in counts} for a, counts in zip(reads.axes, choices, strict=True)]

    def rank(brick: Shape) -> tuple[float, int, Shape]:
        fetched = reads.voxel_bytes * math.prod(v[n] for v, n in zip(voxels, brick, strict=True))
        return max(fetched / least, _GOOD_AMPLIFICATION), math.prod(brick), brick

    bricks = (b for b in itertools.product(*choices) if math.prod(b) <= _MOST_BLOCKS)
    for brick in sorted(bricks, key=rank):
        if reads.needed(brick) <= cache:
            return brick
    raise AssertionError("a brick of one block shares nothing")
