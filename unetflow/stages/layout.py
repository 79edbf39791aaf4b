"""Where arrays are cut: chunks, shards and the axes that belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from unetflow.errors import InputError
from unetflow.geometry import Shape
from unetflow.stages.tile_axis import Axis, axes_of, round_up
from unetflow.stages.tiles import Tiling

# Lengths per axis for 2-D and 3-D. A 2-D shard is about 4 million voxels, a 3-D one 17 million:
# large enough that halos stay cheap, small enough for many workers.
_CHUNK = {2: 512, 3: 64}
_SHARD = {2: 2048, 3: 256}
_BLOCK_VOXELS = {dims: length**dims for dims, length in _SHARD.items()}
_ENOUGH_BLOCKS = 32
# Voxels, as a network sees them, that a block of several tiles may have: it is held twice, as numbers.
_MOST_SEEN = 2**26


def linked_axes(grid_axes: str, dims: int, *, link: bool | str = False) -> tuple[bool, ...]:
    """Say along which axes neighbours belong together: the network's, or all with ``link = True``.

    With ``link = "overlap"`` planes stand apart: their objects are linked afterwards (`unetflow.stages.linking`).
    """
    n_lead = len(grid_axes) - dims
    if n_lead < 0:
        raise InputError(
            f"a network of dims = {dims} needs {dims} spatial axes, got {grid_axes}; set model.dims = {len(grid_axes)}"
        )
    if dims == 3 and not grid_axes.endswith("zyx"):
        raise InputError(f"dims = 3 needs the axes zyx, got {grid_axes}; set model.dims = 2")
    return (link is True,) * n_lead + (True,) * dims if dims == 2 else (False,) * n_lead + (True,) * dims


def on_grid(lengths: Sequence[int] | None, grid_axes: str, name: str) -> Shape | None:
    """Turn lengths per spatial axis into lengths per grid axis (1 along t).

    Raises
    ------
    InputError
        If the number of lengths is not that of the spatial axes.
    """
    if lengths is None:
        return None
    spatial = grid_axes.replace("t", "")
    if len(lengths) != len(spatial) or min(lengths) < 1:
        raise InputError(f"{name} needs a length of at least 1 for each of {spatial}, got {list(lengths)}")
    return (1,) * (len(grid_axes) - len(spatial)) + tuple(lengths)


def choose_layout(
    shape: Shape, dims: int, chunk: Shape | None = None, shard: Shape | None = None
) -> tuple[Shape, Shape]:
    """Choose chunk and shard of an array that is written block by block.

    Raises
    ------
    InputError
        If a given shard is not a multiple of the chunk on each axis.
    """
    n_lead = len(shape) - dims
    if chunk is None:
        chunk = (1,) * n_lead + tuple(min(_CHUNK[dims], n) for n in shape[n_lead:])
        if shard is not None:
            chunk = tuple(_divisor_below(s, c) for s, c in zip(shard, chunk, strict=True))
    if shard is None:
        limit = (1,) * n_lead + (_SHARD[dims],) * dims
        shard = tuple(
            c * max(1, min(-(-n // c), most // c)) for c, n, most in zip(chunk, shape, limit, strict=True)
        )
    check_multiple("shard", shard, "chunk", chunk)
    return chunk, shard


def _divisor_below(length: int, most: int) -> int:
    return next(n for n in range(min(length, most), 0, -1) if length % n == 0)


def check_multiple(name: str, lengths: Shape, unit_name: str, unit: Shape) -> None:
    """Refuse lengths that are no multiple of a unit, naming the next good ones."""
    good = tuple(-(-n // u) * u for n, u in zip(lengths, unit, strict=True))
    if good != lengths:
        raise InputError(
            f"{name} {lengths} must be a multiple of the {unit_name} {unit} on each axis, or two workers would write "
            f"one {name}; use {good}"
        )


class Layout(NamedTuple):
    """How an output is cut, per grid axis: block of whole shards, shard of whole chunks."""

    chunk: Shape
    shard: Shape
    block: Shape


def choose_output_layout(
    tiling: Tiling, chunk: Shape | None = None, shard: Shape | None = None
) -> Layout:
    """Choose chunk, shard and block of an output so that blocks hold whole tiles.

    A block is one tile where that is worth a task, else a few; a shard is a block, or as much of it
    as a file should hold.

    Parameters
    ----------
    tiling : Tiling
        The tiles, chosen with the wishes in mind (`choose_tile`).
    chunk, shard : tuple of int, optional
        The wishes of the user, per grid axis.

    Raises
    ------
    InputError
        If the shard is no multiple of the chunk.
    """
    dims, lead = tiling.spec.dims, tiling.n_lead
    if chunk is not None and shard is not None:
        check_multiple("shard", shard, "chunk", chunk)
    axes = axes_of(tiling, shard or chunk)
    pitch = tiling.step
    if chunk is None:
        chunk = _choose_chunk(pitch, dims, shard)
    unit = shard or chunk
    block = unit[:lead] + _choose_block(axes, tiling, unit[lead:])
    if shard is None:
        limit = (1,) * lead + (_SHARD[dims],) * dims
        shard = tuple(c * _divisor_below(b // c, max(1, m // c)) for c, b, m in zip(chunk, block, limit, strict=True))
    return Layout(chunk, shard, block)


def _choose_chunk(pitch: Shape, dims: int, shard: Shape | None) -> Shape:
    """Return chunks of about the usual length that divide tiles and shards, where they have such divisors."""
    lead = len(pitch) - dims
    usual = _CHUNK[dims]
    chunk = []
    for tile, whole in zip(pitch[lead:], (shard or pitch)[lead:], strict=True):
        lengths = [_divisor_near(n, usual) for n in (math.gcd(tile, whole), whole)]
        # A shard or tile whose length has no good divisor is one chunk.
        chunk.append(next((n for n in lengths if n * 4 >= min(usual, whole)), whole))
    return (1,) * lead + tuple(chunk)


def _divisor_near(length: int, usual: int) -> int:
    """Return the divisor of a length that is nearest, as a ratio, to the usual one."""
    divisors = (n for n in range(1, min(length, 4 * usual) + 1) if length % n == 0)
    return min(divisors, key=lambda n: (max(n, usual) / min(n, usual), n))


def _choose_block(axes: Sequence[Axis], tiling: Tiling, unit: Shape) -> Shape:
    """Return the shortest block, doubled along its shortest axis until it is worth a task.

    As long as there are blocks enough for many workers. Windows of a blend that two blocks share are
    run twice, so its blocks are longer.
    """
    tile = tiling.tile[tiling.n_lead :]
    least = _BLOCK_VOXELS[tiling.spec.dims]
    if tiling.mode == "exact":
        least = min(least // 4, tiling.domain.size // _ENOUGH_BLOCKS)
    block = [round_up(a.block(t), u) for a, t, u in zip(axes, tile, unit, strict=True)]
    seen = math.prod(max(1.0, 1 / a.ratio) for a in axes)
    while True:
        axis = min((i for i, a in enumerate(axes) if block[i] < a.length), key=lambda i: block[i], default=None)
        if axis is None or math.prod(block) >= least or 2 * seen * math.prod(block) > _MOST_SEEN:
            return tuple(block)
        block[axis] *= 2
