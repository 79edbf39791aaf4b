"""How large a tile is: the least work that memory allows, from shapes alone.

Along an axis, tiles of ``t`` kept voxels stand side by side from the first voxel on; each computes
its context more, and the last one may reach over the end. The work along the axis is the length
of all inputs together, the work of the job is the product over the axes::

    |  t  |  t  |  t |.|         length 4096, t = 1368: 3 * (1368 + context)
    +-----+-----+------+             not 1472: 2 whole ones and a third, as costly, for 1152

Of lengths that need the same number of tiles the shortest is best, so few lengths come into
question, and only those whose forward pass fits the memory. Rows along the first axis flow through the
network (`unetflow.row_stream`), so that a long first axis costs little memory.

A few large tiles leave workers idle at the end of a job: one tile more is reckoned to its work. In a
large volume that is nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.forward_memory import forward_bytes
from unetflow.geometry import Box, Shape
from unetflow.memory import format_bytes
from unetflow.stages.tile_axis import Axis, axes_of, round_up
from unetflow.stages.tiles import Mode, Tiling

Rank = tuple[int, int, int, Shape]

# Lengths that are tried per axis; the best is then moved to its neighbours among all of them.
_TRIED = {2: 40, 3: 10}
# The first axis of an even tile, in the length that its context would give it.
_FIRST_AXIS = 4
# Voxels that a tile keeps at most: a minute or two on a processor, and no more is lost when it dies. In a
# stack of planes fewer, for chunks are often thick: a brick of tiles of many planes should fit the cache.
_MOST_VOXELS = 2**26
_MOST_OF_A_PLANE = 2**22
_IDLE_TILES = 1


def choose_tile(
    spec: UNetSpec, domain: Box, memory: int, *, tile: Shape | None = None, unit: Shape | None = None,
    tta: bool = False, mode: str = "exact", overlap: float = 0.25, ratio: tuple[float, ...] = (),
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
    tta, mode, overlap, ratio
        As for `Tiling`.

    Raises
    ------
    InputError
        If ``tile`` is no multiple of the stride, or not even the smallest tile fits.
    """
    lead = (1,) * (domain.ndim - spec.dims)
    chosen: Mode = "blend" if mode == "blend" else "exact"
    tiling = Tiling(spec, domain, lead + spec.total_stride, tta, chosen, overlap, ratio)
    if tile is not None:
        return _checked(tile, lead + tiling.unit, len(lead))
    n_planes = math.prod(domain.shape[: len(lead)])
    return lead + _search(spec, axes_of(tiling, unit), memory, n_planes)


def _checked(tile: Shape, stride: Shape, n_lead: int) -> Shape:
    good = (1,) * n_lead + tuple(round_up(n, s) for n, s in zip(tile[n_lead:], stride[n_lead:], strict=True))
    if good != tuple(tile):
        raise InputError(
            f"segment.tile must be a multiple of the network's stride {stride[n_lead:]}, and 1 along axes that "
            f"the network does not see, got {tuple(tile)}; use {good}"
        )
    return good


@lru_cache(maxsize=4096)
def _search(spec: UNetSpec, axes: tuple[Axis, ...], memory: int, n_planes: int) -> Shape:
    """Return the tile of least work; of two alike, the one with fewer and squarer tiles."""

    def rank(tile: Shape) -> Rank:
        cost = math.prod(a.cost(t) for a, t in zip(axes, tile, strict=True))
        n_tiles = math.prod(a.runs(t) for a, t in zip(axes, tile, strict=True))
        idle = _IDLE_TILES * cost // (n_tiles * n_planes)
        return cost + idle, n_tiles, max(tile) - min(tile), tile

    smallest = tuple(a.stride for a in axes)

    @cache
    def fits(tile: Shape) -> bool:
        most = _MOST_VOXELS if n_planes == 1 else _MOST_OF_A_PLANE
        # Short voxels of the volume cost memory, and short ones of the network's work.
        n_voxels = math.prod(t * max(1.0, 1 / a.ratio) for t, a in zip(tile, axes, strict=True))
        is_short = n_voxels <= most or tile == smallest
        return is_short and forward_bytes(spec, _input_of(axes, tile)) <= memory

    if not fits(smallest):
        shape = _input_of(axes, smallest)
        raise InputError(
            f"segment.memory must hold at least one tile of {shape} voxels, which needs about "
            f"{format_bytes(forward_bytes(spec, shape))}, got {format_bytes(memory)}; raise it"
        )
    middle = _even_tile(axes, fits)
    lengths = [a.lengths(m) for a, m in zip(axes, middle, strict=True)]
    tried = [_thin(ls, m, _TRIED[spec.dims]) for ls, m in zip(lengths, middle, strict=True)]
    best = min(_fitting(tried, fits), key=rank, default=smallest)
    return _climb(lengths, fits, rank, best)


def _input_of(axes: Sequence[Axis], tile: Shape) -> Shape:
    return tuple(a.input(t) for t, a in zip(tile, axes, strict=True))


def _even_tile(axes: Sequence[Axis], fits: Callable[[Shape], bool]) -> Shape:
    """Return the longest tile that fits whose lengths go with the contexts: good in an endless volume."""
    weights = [_FIRST_AXIS, *(1 for _ in axes[1:])]

    def scaled(size: int) -> Shape:
        return tuple(
            min(a.longest_tile, a.stride * max(1, size * w * max(round(a.context * a.ratio), 1) // (64 * a.stride)))
            for a, w in zip(axes, weights, strict=True)
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


def _fitting(tried: list[list[int]], fits: Callable[[Shape], bool]) -> Iterator[Shape]:
    """Yield the tiles that fit; few are asked, as what is shorter than one that fits does too."""
    *first, middle, last = tried
    for head in itertools.product(*first):
        k = len(last) - 1
        for n in middle:
            while k >= 0 and not fits((*head, n, last[k])):
                k -= 1
            if k < 0:
                break
            yield from ((*head, n, length) for length in last[: k + 1])


def _climb(
    lengths: list[list[int]], fits: Callable[[Shape], bool], rank: Callable[[Shape], Rank], tile: Shape
) -> Shape:
    """Move to neighbouring lengths as long as that saves work."""
    place = [ls.index(t) if t in ls else 0 for ls, t in zip(lengths, tile, strict=True)]
    while True:
        here = rank(tile)
        moves = itertools.product((-1, 0, 1), repeat=len(lengths))
        near = [tuple(p + d for p, d in zip(place, move, strict=True)) for move in moves]
        better = sorted(
            (ranked, where)
            for where in near
            if all(0 <= p < len(ls) for p, ls in zip(where, lengths, strict=True))
            and (ranked := rank(tuple(ls[p] for ls, p in zip(lengths, where, strict=True)))) < here
        )
        found = next(((r[-1], w) for r, w in better if fits(r[-1])), None)
        if found is None:
            return tile
        tile, place = found[0], list(found[1])
