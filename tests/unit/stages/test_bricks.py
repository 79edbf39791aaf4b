"""The chunks that a run is planned to fetch, held against a cache that is simulated chunk by chunk."""

from __future__ import annotations

import math
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetflow.architecture import UNetSpec
from unetflow.geometry import BlockGrid, Box, Shape, mirror_indices
from unetflow.numerics.rescale import rescaled_length, source_box
from unetflow.stages.bricks import choose_brick, plan_reads
from unetflow.stages.layout import choose_output_layout
from unetflow.stages.tile_choice import choose_tile
from unetflow.stages.tiles import Tiling


def image_of(shape: Shape, chunk: Shape, domain: Box, block: Shape, dtype: str = "uint8") -> Any:
    volume = SimpleNamespace(shape=shape, chunk=chunk, dtype=dtype, n_channels=1)
    return SimpleNamespace(volume=volume, domain=domain, block=block)


def chunks_read(image: Any, tiling: Tiling, inner: Box) -> list[Shape]:
    """List the chunks of a block in the order of its reading: from the voxels that its tiles see."""
    tiles = [tile.source for tile in tiling.touching(inner)]
    ranges = []
    for axis, (n, c) in enumerate(zip(image.volume.shape, image.volume.chunk, strict=True)):
        ratio = (tiling.ratio or (1.0,) * inner.ndim)[axis]
        seen = mirror_indices(
            min(t.start[axis] for t in tiles), max(t.stop[axis] for t in tiles), rescaled_length(n, ratio)
        )
        needed = source_box(Box((int(seen.min()),), (int(seen.max()) + 1,)), [ratio])
        voxels = mirror_indices(needed.start[0], needed.stop[0], n)
        ranges.append(range(int(voxels.min()) // c, int(voxels.max()) // c + 1))
    return [tuple(r[i] for r, i in zip(ranges, at, strict=True)) for at in np.ndindex(*map(len, ranges))]


def simulate(image: Any, tiling: Tiling, brick: Shape, budget: float) -> tuple[int, int]:
    """Return chunks and bytes that a least-recently-used cache fetches, with a fresh cache for each brick."""
    shape, chunk = image.volume.shape, image.volume.chunk
    n_chunks = n_bytes = 0
    for part in BlockGrid(image.domain, image.block).bricks(brick):
        kept: OrderedDict[Shape, int] = OrderedDict()
        for block in part:
            for index in chunks_read(image, tiling, block.inner):
                size = math.prod(min(c, n - i * c) for i, c, n in zip(index, chunk, shape, strict=True))
                size *= np.dtype(image.volume.dtype).itemsize
                if index not in kept:
                    n_chunks, n_bytes = n_chunks + 1, n_bytes + size
                kept[index] = kept.pop(index, size)
                while sum(kept.values()) > budget:
                    kept.popitem(last=False)
    return n_chunks, n_bytes


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Any, Tiling, Shape]:
    dims = draw(st.sampled_from([2, 3]))
    spec = UNetSpec.build(dims=dims, depth=1, base_channels=2, padding=draw(st.sampled_from(["valid", "same"])))
    lead = draw(st.integers(0, 1)) if dims == 2 else 0
    longest = 80 if dims == 2 else 30
    shape = (4,) * lead + tuple(draw(st.integers(1, longest)) for _ in range(dims))
    ends = [sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in shape]
    domain = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
    chunk = tuple(draw(st.integers(1, 20)) for _ in shape)
    tile = (1,) * lead + tuple(2 * draw(st.integers(2, 6)) for _ in range(dims))
    block = tuple(t * draw(st.integers(1, 2)) for t in tile)
    brick = tuple(draw(st.integers(1, 4)) for _ in shape)
    image = image_of(shape, chunk, domain, block, draw(st.sampled_from(["uint8", "uint16"])))
    mode = draw(st.sampled_from(["exact", "blend"]))
    seen = (1.0,) * lead + tuple(draw(st.sampled_from([1.0, 2.0, 0.6])) for _ in range(dims))
    return image, Tiling(spec, domain, tile, mode=mode, ratio=draw(st.sampled_from([(), seen]))), brick


@settings(max_examples=60, deadline=None)
@given(jobs())
def test_planned_fetches_are_those_of_a_simulated_cache_of_the_needed_size(job: Any) -> None:
    image, tiling, brick = job
    reads = plan_reads(image, tiling)
    chunks, n_bytes = simulate(image, tiling, brick, max(reads.needed(brick), 1))
    if reads.needed(brick) == 0:  # each block is a brick: it needs nothing kept, and finds nothing
        chunks, n_bytes = simulate(image, tiling, brick, math.inf)
    assert (reads.chunks(brick), reads.bytes(brick)) == (chunks, n_bytes)


@pytest.mark.parametrize(("shape", "chunk"), [((120, 130), (5, 7)), ((120, 130), (30, 30)), ((40, 44, 48), (6, 6, 6))])
def test_rows_of_blocks_are_found_again_in_a_cache_of_the_needed_size_and_not_in_that_of_one_block(
    shape: Shape, chunk: Shape
) -> None:
    spec = UNetSpec.build(dims=len(shape), depth=1, base_channels=2)
    domain = Box.of_shape(shape)
    image = image_of(shape, chunk, domain, (8,) * len(shape))
    tiling = Tiling(spec, domain, image.block)
    reads, brick = plan_reads(image, tiling), (5,) * len(shape)
    assert simulate(image, tiling, brick, reads.needed(brick)) == (reads.chunks(brick), reads.bytes(brick))
    one_block = reads.voxel_bytes * math.prod(axis.widest(1) for axis in reads.axes)
    assert simulate(image, tiling, brick, one_block)[0] > reads.chunks(brick)


@settings(max_examples=30, deadline=None)
@given(jobs())
def test_one_brick_of_all_blocks_fetches_each_chunk_once(job: Any) -> None:
    image, tiling, _ = job
    reads = plan_reads(image, tiling)
    seen = {c for block in BlockGrid(image.domain, image.block) for c in chunks_read(image, tiling, block.inner)}
    assert reads.chunks(reads.all) == len(seen)
    assert reads.amplification(reads.all) == 1


@settings(max_examples=30, deadline=None)
@given(jobs(), st.integers(1, 10**5))
def test_a_brick_fits_the_cache_and_no_smaller_one_does_as_well(job: Any, cache: int) -> None:
    image, tiling, _ = job
    reads = plan_reads(image, tiling)
    brick = choose_brick(image, tiling, cache)
    assert reads.needed(brick) <= cache
    one = reads.amplification((1,) * len(brick))
    assert reads.amplification(brick) <= one
    if one <= 1.25:
        assert math.prod(brick) == 1


DEEP = UNetSpec.build(dims=3, depth=3, base_channels=16)  # a margin of 44


@pytest.mark.parametrize("chunk", [(64, 64, 64), (128, 128, 128), (32, 256, 256)])
@pytest.mark.parametrize("shape", [(2048,) * 3, (300, 20_000, 30_000)])
def test_margins_of_44_fetch_at_most_half_as_much_again(shape: Shape, chunk: Shape) -> None:
    domain = Box.of_shape(shape)
    tiling = Tiling(DEEP, domain, choose_tile(DEEP, domain, 2 * 10**9))
    image = image_of(shape, chunk, domain, choose_output_layout(tiling).block)
    brick = choose_brick(image, tiling)
    assert plan_reads(image, tiling).amplification(brick) <= 1.5
    assert math.prod(brick) <= 512


def test_planes_of_thick_chunks_are_worked_through_together() -> None:
    flat = UNetSpec.build(depth=3, base_channels=32)
    domain = Box.of_shape((256, 5000, 5000))
    tiling = Tiling(flat, domain, choose_tile(flat, domain, 2 * 10**9))
    image = image_of(domain.shape, (64, 64, 64), domain, choose_output_layout(tiling).block)
    reads = plan_reads(image, tiling)
    assert reads.amplification((1, 1, 1)) > 60
    assert reads.amplification(choose_brick(image, tiling)) <= 1.25
