"""Where arrays are cut: chunks, shards and the axes that belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.geometry import Shape
from unetflow.memory import format_bytes

# Lengths per axis for 2-D and 3-D. A 2-D shard is about 4 million voxels, a 3-D one 17 million:
# large enough that halos stay cheap, small enough for many workers.
_CHUNK = {2: 512, 3: 64}
_SHARD = {2: 2048, 3: 256}


def linked_axes(grid_axes: str, dims: int, *, link: bool = False) -> tuple[bool, ...]:
    """Say along which axes neighbours belong together: the network's, or all with ``link``."""
    n_lead = len(grid_axes) - dims
    if n_lead < 0:
        raise InputError(
            f"a network of dims = {dims} needs {dims} spatial axes, got {grid_axes}; set model.dims = {len(grid_axes)}"
        )
    if dims == 3 and not grid_axes.endswith("zyx"):
        raise InputError(f"dims = 3 needs the axes zyx, got {grid_axes}; set model.dims = 2")
    return (link,) * n_lead + (True,) * dims if dims == 2 else (False,) * n_lead + (True,) * dims


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


def choose_tile(
    spec: UNetSpec, shape: Shape, memory: int, tile: Shape | None = None
) -> Shape:
    """Choose the voxels that one forward pass keeps: a pure function of its arguments.

    Tiles are multiples of the network's total stride, no larger than the volume needs, and
    the context around them fits ``memory``. Among those that fit, each axis grows in turn
    where that saves the most work per kept voxel.

    Parameters
    ----------
    shape : tuple of int
        The volume along the network's axes.
    memory : int
        Bytes for one forward pass.
    tile : tuple of int, optional
        The wish of the user, checked.

    Raises
    ------
    InputError
        If ``tile`` is no multiple of the stride, or not even the smallest tile fits.
    """
    stride = spec.total_stride
    if tile is not None:
        good = tuple(-(-n // s) * s for n, s in zip(tile, stride, strict=True))
        if good != tuple(tile):
            raise InputError(
                f"segment.tile must be a multiple of the network's total stride {stride}, got {tuple(tile)}; use {good}"
            )
        return good
    most = tuple(-(-n // s) * s for n, s in zip(shape, stride, strict=True))
    best = stride
    if spec.activation_bytes(spec.tile_input(best)) > memory:
        raise InputError(
            f"segment.memory must hold at least one tile of {spec.tile_input(best)} voxels, which needs about "
            f"{format_bytes(spec.activation_bytes(spec.tile_input(best)))}, got {format_bytes(memory)}; raise it"
        )
    while True:
        grown = [
            tuple(n + s * (a == axis) for a, (n, s) in enumerate(zip(best, stride, strict=True)))
            for axis in range(spec.dims)
            if best[axis] < most[axis]
        ]
        grown = [g for g in grown if spec.activation_bytes(spec.tile_input(g)) <= memory]
        if not grown:
            return tuple(_round_tile(n, m, s) for n, m, s in zip(best, most, stride, strict=True))
        best = min(grown, key=lambda g: (work_factor(spec, g), g))


def _round_tile(length: int, most: int, stride: int) -> int:
    """Prefer multiples of 64 to odd lengths, so that chunks of usual sizes divide tiles."""
    if length < most and length >= 128 and 64 % stride == 0:
        return length // 64 * 64
    return length


def work_factor(spec: UNetSpec, kept: Shape) -> float:
    """Return voxels computed per voxel kept."""
    factor = 1.0
    for n, k in zip(spec.tile_input(kept), kept, strict=True):
        factor *= n / k
    return factor


def choose_output_layout(
    shape: Shape, kept: Shape, chunk: Shape | None = None, shard: Shape | None = None
) -> tuple[Shape, Shape]:
    """Choose chunk and shard of an output so that blocks hold whole tiles.

    Parameters
    ----------
    shape : tuple of int
        The output, per grid axis.
    kept : tuple of int
        The tile's kept voxels along the network's axes.
    """
    dims = len(kept)
    n_lead = len(shape) - dims
    if chunk is None:
        lengths = tuple(_divisor_below(k, _CHUNK[dims] * 5 // 4) for k in kept)
        # A tile whose length has no good divisor is one chunk.
        chunk = (1,) * n_lead + tuple(d if d * 4 >= _CHUNK[dims] else k for d, k in zip(lengths, kept, strict=True))
        if shard is not None:
            chunk = tuple(_divisor_below(s, c) for s, c in zip(shard, chunk, strict=True))
    if shard is None:
        tile = (1,) * n_lead + kept
        limit = (1,) * n_lead + (_SHARD[dims],) * dims
        shard = tuple(
            _common(t, c) * max(1, min(-(-n // _common(t, c)), most // _common(t, c)))
            for t, c, n, most in zip(tile, chunk, shape, limit, strict=True)
        )
    check_multiple("shard", shard, "chunk", chunk)
    return chunk, shard


def _common(tile: int, chunk: int) -> int:
    """Return the length that holds whole tiles and whole chunks, or whole chunks where that is absurd."""
    both = math.lcm(tile, chunk)
    return both if both <= 4 * max(tile, chunk) else chunk
