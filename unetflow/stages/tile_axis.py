"""Tiles and blocks along one axis: how many tiles of a length are run, and what they cost.

::

    block     |        0        |        1        |      2     |      whole units, a shard or chunk
    tile      |  t  |  t  |  t  |  t  |  t  |  t  |  t  |  t  |..|    whole tiles a block, where that can be
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from unetflow.geometry import Shape
from unetflow.stages.tiles import Tiling, whole_strides

# Longest block per axis that is grown to hold whole shards and whole tiles, for 2-D and 3-D.
LONGEST_BLOCK = {2: 2048, 3: 256}

_MOST_LENGTHS = 4096


@dataclass(frozen=True)
class Axis:
    """One axis of the network and what is segmented along it; lengths in voxels of the volume.

    Parameters
    ----------
    length : int
        What is segmented.
    stride : int
        What tiles are multiples of: the network's period, or about that.
    context : int
        Length of a tile's input beyond what it makes, as the network sees it.
    unit : int
        Shard or chunk that is wished for, of which blocks are made; 1 for none.
    longest_block : int
        Beyond it, blocks need not hold whole tiles.
    overlap : float
        Share of a tile that the next one covers too: 0 but for a blend.
    ratio : float
        Length of a voxel that the network sees.
    period : int
        Of the network, in voxels that it sees; counts where these have another length.
    """

    length: int
    stride: int
    context: int
    unit: int = 1
    longest_block: int = 2048
    overlap: float = 0.0
    ratio: float = 1.0
    period: int = 1

    @property
    def longest_tile(self) -> int:
        """The tile that holds the whole axis."""
        return round_up(self.length, self.stride)

    def input(self, tile: int) -> int:
        """Return the length of a tile's input, in voxels that the network sees."""
        return self.context + whole_strides(tile, self.ratio, self.period, is_off=False)

    def pitch(self, tile: int) -> int:
        """Return the distance from a tile to the next."""
        if not self.overlap:
            return tile
        return max(self.stride, round(tile * (1 - self.overlap) / self.stride) * self.stride)

    def holds_whole_tiles(self, tile: int) -> bool:
        """Say whether a block of usual length can be made of whole units and whole tiles."""
        return self._common(tile) <= max(self.longest_block, round_up(self.pitch(tile), self.unit))

    def block(self, tile: int) -> int:
        """Return the shortest block of whole units and whole tiles; of units alone where it would be too long."""
        if self.holds_whole_tiles(tile):
            return self._common(tile)
        # Tiles that two blocks share are run twice: long blocks share few.
        return max(round_up(self.pitch(tile), self.unit), 2 * self.longest_block // self.unit * self.unit)

    def _common(self, tile: int) -> int:
        both, pitch = math.lcm(self.pitch(tile), self.unit), self.pitch(tile)
        return round_up(self.length, self.unit) if both > self.length > pitch else both

    def runs(self, tile: int, block: int | None = None) -> int:
        """Return the number of tiles that are run along the axis; one that two blocks need counts twice."""
        pitch = self.pitch(tile)
        n_tiles = (self.length - 1) // pitch + (tile - 1) // pitch + 1
        if block is None:
            return n_tiles
        if not self.overlap:
            n_cuts = -(-self.length // block) - 1
            return n_tiles + n_cuts - n_cuts // (tile // math.gcd(block, tile))
        return sum(
            times * ((start + n - 1) // pitch - -(-(start - tile + 1) // pitch) + 1)
            for start, n, times in self._blocks(block, pitch)
        )

    def _blocks(self, block: int, pitch: int) -> Iterator[tuple[int, int, int]]:
        """Yield start, length and number of blocks that meet the tiles alike."""
        n_whole, rest = divmod(self.length, block)
        period = pitch // math.gcd(block, pitch)
        for first in range(min(period, n_whole)):
            yield first * block, block, -(-(n_whole - first) // period)
        if rest:
            yield n_whole * block, rest, 1

    def cost(self, tile: int) -> int:
        """Return the length of all inputs together."""
        # The blocks of a blend are not known yet; they will be much longer than a tile.
        block = None if self.overlap or self.unit == 1 else self.block(tile)
        return self.runs(tile, block) * self.input(tile)

    def lengths(self, middle: int) -> list[int]:
        """Return the tiles up to four times ``middle`` that cost less than every shorter one, shortest first."""
        last = min(4 * middle, self.longest_tile)
        step = self.stride * max(1, -(-last // self.stride // _MOST_LENGTHS))
        tiles = [*range(self.stride, last, step), last]
        found: list[int] = []
        least = math.inf
        for tile in tiles:
            cost = self.cost(tile)
            if cost < least:
                found.append(tile)
                least = cost
        return found


def round_up(length: int, unit: int) -> int:
    """Return the next multiple of ``unit``."""
    return -(-length // unit) * unit


def axes_of(tiling: Tiling, unit: Shape | None = None) -> tuple[Axis, ...]:
    """Describe the network's axes of what is segmented.

    Parameters
    ----------
    tiling : Tiling
        Of any tile: what it says of domain, context and mode counts.
    unit : tuple of int, optional
        Shard or chunk that is wished for, per grid axis.
    """
    lead, overlap = tiling.n_lead, tiling.overlap if tiling.mode == "blend" else 0.0
    one = replace(tiling, tile=(1,) * lead + tiling.unit)
    return tuple(
        Axis(n, s, i - whole_strides(s, r, p, is_off=False), u, LONGEST_BLOCK[tiling.spec.dims], overlap, r, p)
        for n, s, i, u, r, p in zip(
            tiling.domain.shape[lead:], tiling.unit, one.input_shape, (unit or (1,) * tiling.domain.ndim)[lead:],
            tiling.seen_ratio, tiling.spec.total_stride, strict=True,
        )
    )  # fmt: skip
