"""How large a tile is: the least work that memory allows, from shapes alone.

Along an axis, tiles of ``t`` kept voxels stand side by side from the first voxel on; each computes
its context more, and the last one may reach over the end. The work along the axis is the length
of all inputs together, the work of the job is the product over the axes::

    |  t  |  t  |  t |.|         length 4096, t = 1368: 3 * (1368 + context)
    +-----+-----+------+             not 1472: 2 whole ones and a third, as costly, for 1152

Of lengths that need the same number of tiles the shortest is best, so few lengths come into
question, and only those whose forward pass fits the memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.forward_memory import forward_bytes
from unetflow.geometry import Box, Shape
from unetflow.memory import format_bytes
from unetflow.stages.tiles import Tiling

# Longest block per axis that is grown to hold whole shards and whole tiles, for 2-D and 3-D.
LONGEST_BLOCK = {2: 2048, 3: 256}

# Lengths that are tried per axis; the best is then moved to its neighbours among all of them.
_TRIED = {2: 40, 3: 10}
_MOST_LENGTHS = 4096


@dataclass(frozen=True)
class Axis:
    """One axis of the network and what is segmented along it; lengths in voxels.

    Parameters
    ----------
    length : int
        What is segmented.
    stride : int
        The network's period: tiles are multiples of it.
    context : int
        Length of a tile's input beyond what it keeps.
    unit : int
        Shard or chunk that is wished for, of which blocks are made; 1 for none.
    longest_block : int
        Beyond it, blocks need not hold whole tiles.
    overlap : float
        Share of a tile that the next one covers too: 0 but for a blend.
    """

    length: int
    stride: int
    context: int
    unit: int = 1
    longest_block: int = 2048
    overlap: float = 0.0

    @property
    def longest_tile(self) -> int:
        """The tile that holds the whole axis."""
        return round_up(self.length, self.stride)

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
        return self.runs(tile, block) * (tile + self.context)

    def lengths(self, middle: int) -> list[int]:
        """Return the tiles up to four times ``middle`` that cost less than every shorter one, shortest first.

        Only those with which blocks hold whole tiles, if there are some about as long as ``middle``.
        """
        last = min(4 * middle, self.longest_tile)
        step = self.stride * max(1, -(-last // self.stride // _MOST_LENGTHS))
        tiles = [*range(self.stride, last, step), last]
        whole = [tile for tile in tiles if self.holds_whole_tiles(tile)]
        if any(middle <= 3 * tile <= 3 * middle for tile in whole):
            tiles = whole
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
    lead, stride = tiling.n_lead, tiling.spec.total_stride
    one = replace(tiling, tile=(1,) * lead + stride)
    return tuple(
        Axis(n, s, i - s, u, LONGEST_BLOCK[tiling.spec.dims], tiling.overlap if tiling.mode == "blend" else 0.0)
        for n, s, i, u in zip(
            tiling.domain.shape[lead:], stride, one.input_shape, (unit or (1,) * tiling.domain.ndim)[lead:], strict=True
        )
    )


def choose_tile(
    spec: UNetSpec, domain: Box, memory: int, *, tile: Shape | None = None, unit: Shape | None = None,
    tta: bool = False, mode: str = "exact", overlap: float = 0.25,
) -> Shape:  # fmt: skip
    """Choose the voxels that one forward pass keeps, per grid axis: a pure function of its arguments.

    Parameters
    ----------
    domain : Box
        What is segmented, in voxels of the volume.
    memory : int
        Bytes for one forward pass in float32, without the weights.
    tile : tuple of int, optional
        The wish of the user, per grid axis, checked.
    unit : tuple of int, optional
        The shard, else the chunk, that the user wishes: blocks of whole ones should hold whole tiles.
    tta, mode, overlap
        As for `Tiling`.

    Raises
    ------
    InputError
        If ``tile`` is no multiple of the stride, or not even the smallest tile fits.
    """
    lead = (1,) * (domain.ndim - spec.dims)
    if tile is not None:
        return _checked(tile, lead + spec.total_stride, len(lead))
    tiling = Tiling(spec, domain, lead + spec.total_stride, tta, "blend" if mode == "blend" else "exact", overlap)
    return lead + _search(spec, axes_of(tiling, unit), memory)


def _checked(tile: Shape, stride: Shape, n_lead: int) -> Shape:
    good = (1,) * n_lead + tuple(round_up(n, s) for n, s in zip(tile[n_lead:], stride[n_lead:], strict=True))
    if good != tuple(tile):
        raise InputError(
            f"segment.tile must be a multiple of the network's total stride {stride[n_lead:]}, and 1 along axes that "
            f"the network does not see, got {tuple(tile)}; use {good}"
        )
    return good


@lru_cache(maxsize=4096)
def _search(spec: UNetSpec, axes: tuple[Axis, ...], memory: int) -> Shape:
    """Return the tile of least work; of two alike, the one with fewer and squarer tiles."""

    @cache
    def fits(tile: Shape) -> bool:
        return forward_bytes(spec, _input_of(axes, tile)) <= memory

    smallest = tuple(a.stride for a in axes)
    if not fits(smallest):
        shape = _input_of(axes, smallest)
        raise InputError(
            f"segment.memory must hold at least one tile of {shape} voxels, which needs about "
            f"{format_bytes(forward_bytes(spec, shape))}, got {format_bytes(memory)}; raise it"
        )
    middle = _even_tile(axes, fits)
    lengths = [a.lengths(m) for a, m in zip(axes, middle, strict=True)]
    tried = [_thin(ls, m, _TRIED[spec.dims]) for ls, m in zip(lengths, middle, strict=True)]
    best = min(_frontier(tried, fits), key=lambda tile: _rank(axes, tile), default=smallest)
    return _climb(axes, lengths, fits, best)


def _input_of(axes: Sequence[Axis], tile: Shape) -> Shape:
    return tuple(t + a.context for t, a in zip(tile, axes, strict=True))


def _rank(axes: Sequence[Axis], tile: Shape) -> tuple[int, int, int, Shape]:
    cost = math.prod(a.cost(t) for a, t in zip(axes, tile, strict=True))
    return cost, math.prod(a.runs(t) for a, t in zip(axes, tile, strict=True)), max(tile) - min(tile), tile


def _even_tile(axes: Sequence[Axis], fits: Callable[[Shape], bool]) -> Shape:
    """Return the longest tile that fits whose lengths go with the contexts: best in an endless volume."""

    def scaled(size: int) -> Shape:
        return tuple(
            min(a.longest_tile, a.stride * max(1, size * max(a.context, 1) // (64 * a.stride))) for a in axes
        )

    low, high = 0, 64 * max(a.length + a.stride for a in axes)
    while low < high:
        size = (low + high + 1) // 2
        low, high = (size, high) if fits(scaled(size)) else (low, size - 1)
    return scaled(low)


def _thin(lengths: list[int], middle: int, n_most: int) -> list[int]:
    """Return some of the lengths around the middle one, evenly chosen, the shortest and the longest among them."""
    near = [n for n in lengths if middle <= 3 * n <= 6 * middle] or lengths
    step = -(-len(near) // n_most)
    return sorted({near[0], *near[::-1][::step]})


def _frontier(tried: list[list[int]], fits: Callable[[Shape], bool]) -> Iterator[Shape]:
    """Yield, for each choice of all axes but the last, the tile with the longest last axis that fits."""
    *first, middle, last = tried
    for head in itertools.product(*first):
        k = len(last) - 1
        for n in middle:
            while k >= 0 and not fits((*head, n, last[k])):
                k -= 1
            if k < 0:
                break
            yield (*head, n, last[k])


def _climb(axes: Sequence[Axis], lengths: list[list[int]], fits: Callable[[Shape], bool], tile: Shape) -> Shape:
    """Move to neighbouring lengths as long as that saves work."""
    place = [ls.index(t) if t in ls else 0 for ls, t in zip(lengths, tile, strict=True)]
    while True:
        rank = _rank(axes, tile)
        moves = itertools.product((-1, 0, 1), repeat=len(axes))
        near = [tuple(p + d for p, d in zip(place, move, strict=True)) for move in moves]
        better = sorted(
            (ranked, where)
            for where in near
            if all(0 <= p < len(ls) for p, ls in zip(where, lengths, strict=True))
            and (ranked := _rank(axes, tuple(ls[p] for ls, p in zip(lengths, where, strict=True)))) < rank
        )
        found = next(((r[-1], w) for r, w in better if fits(r[-1])), None)
        if found is None:
            return tile
        tile, place = found[0], list(found[1])
