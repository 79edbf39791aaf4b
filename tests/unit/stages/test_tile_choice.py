"""Tiles by their laws: they cover, stand on the stride, fit memory, and cost no more than growing them greedily."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.forward_memory import forward_bytes
from unetflow.geometry import BlockGrid, Box, Shape
from unetflow.stages.layout import choose_output_layout
from unetflow.stages.tile_axis import Axis, axes_of
from unetflow.stages.tile_choice import choose_tile
from unetflow.stages.tiles import Tiling

FLAT = UNetSpec.build(depth=3, base_channels=32)
SOLID = UNetSpec.build(dims=3, depth=2, base_channels=16)
DEEP = UNetSpec.build(dims=3, depth=3, base_channels=16)  # a margin of 44


@st.composite
def jobs(draw: st.DrawFn, mode: str = "exact") -> tuple[UNetSpec, Box, int, bool]:
    """Draw a network, what is segmented with it, and memory that holds at least one tile."""
    dims = draw(st.sampled_from([2, 3]))
    spec = UNetSpec.build(
        dims=dims,
        depth=draw(st.integers(1, 3)),
        base_channels=draw(st.sampled_from([4, 16])),
        padding=draw(st.sampled_from(["valid", "same"])),
        upsample=draw(st.sampled_from(["transpose", "resize"])),
    )
    lead = draw(st.integers(0, 1))
    longest = 5000 if dims == 2 else 600
    start = tuple(draw(st.integers(0, 20)) for _ in range(lead + dims))
    shape = (3,) * lead + tuple(draw(st.integers(1, longest)) for _ in range(dims))
    domain = Box(start, tuple(a + n for a, n in zip(start, shape, strict=True)))
    memory = draw(st.integers(10**8, 2 * 10**9))
    tta = draw(st.booleans())
    smallest = Tiling(spec, domain, (1,) * lead + spec.total_stride, tta)
    assume(forward_bytes(spec, smallest.input_shape) <= memory)
    return spec, domain, memory, tta


def work_of(tiling: Tiling, block: Shape | None = None) -> int:
    """Voxels that the network computes, tile by tile and block by block: the oracle."""
    grid = BlockGrid(tiling.domain, block or tiling.domain.shape)
    return math.prod(tiling.input_shape) * sum(tiling.count(b.inner) for b in grid)


def grow_greedily(spec: UNetSpec, domain: Box, memory: int, tta: bool) -> Tiling:
    """Grow the tile stride by stride where it saves most, whatever the length of the volume."""
    lead, stride = domain.ndim - spec.dims, spec.total_stride
    lengths = domain.shape[lead:]
    best = stride

    def tiling(kept: Shape) -> Tiling:
        return Tiling(spec, domain, (1,) * lead + kept, tta)

    while True:
        grown = [
            tuple(n + s * (a == axis) for a, (n, s) in enumerate(zip(best, stride, strict=True)))
            for axis in range(spec.dims)
            if best[axis] < lengths[axis]
        ]
        grown = [g for g in grown if math.prod(g) <= 2**26 and forward_bytes(spec, tiling(g).input_shape) <= memory]
        if not grown:
            return tiling(best)
        best = min(grown, key=lambda g: (math.prod(tiling(g).input_shape) / math.prod(g), g))


@given(jobs())
def test_a_tile_stands_on_the_stride_fits_memory_and_is_no_longer_than_needed(job: Any) -> None:
    spec, domain, memory, tta = job
    tile = choose_tile(spec, domain, memory, tta=tta)
    lead = domain.ndim - spec.dims
    assert tile[:lead] == (1,) * lead
    for n, s, length in zip(tile[lead:], spec.total_stride, domain.shape[lead:], strict=True):
        assert n % s == 0
        assert n < length + s
    assert forward_bytes(spec, Tiling(spec, domain, tile, tta).input_shape) <= memory


@pytest.mark.parametrize("ratio", [(2.0, 2.0, 2.0), (1.0, 0.5, 0.5), (8.0, 1.3, 1.3), (0.125, 0.125, 0.125)])
def test_a_tile_of_other_voxels_than_the_networks_fits_memory_and_costs_what_axes_say(ratio: tuple[float, ...]) -> None:
    domain, memory = Box((3, 0, 5), (303, 250, 705)), 10**9
    tile = choose_tile(SOLID, domain, memory, ratio=ratio)
    tiling = Tiling(SOLID, domain, tile, ratio=ratio)
    assert forward_bytes(SOLID, tiling.input_shape) <= memory
    assert all(n % u == 0 for n, u in zip(tile, tiling.unit, strict=True))
    # The network computes less where its voxels are long, and more where they are short; context comes on top.
    assert work_of(tiling) >= domain.size / math.prod(ratio)
    smallest = Tiling(SOLID, domain, tiling.unit, ratio=ratio)
    assert work_of(tiling) < work_of(smallest) / 4
    layout = choose_output_layout(tiling)
    axes = axes_of(tiling)
    assert tuple(a.input(t) for a, t in zip(axes, tile, strict=True)) == tiling.input_shape
    runs = math.prod(a.runs(t, b) for a, t, b in zip(axes, tile, layout.block, strict=True))
    assert runs * math.prod(tiling.input_shape) == work_of(tiling, layout.block)
    assert all(b % s == 0 and s % c == 0 and c >= 16 for c, s, b in zip(*layout, strict=True))


@given(jobs())
def test_tiles_of_all_blocks_cover_what_is_segmented_once(job: Any) -> None:
    spec, domain, memory, tta = job
    tiling = Tiling(spec, domain, choose_tile(spec, domain, memory, tta=tta), tta)
    grid = BlockGrid(domain, choose_output_layout(tiling).block)
    assume(len(grid) < 300)
    covered = sum(t.kept.intersect(domain).size for block in grid for t in tiling.touching(block.inner))
    assert covered == domain.size


@settings(max_examples=30)
@given(jobs())
def test_no_choice_is_costlier_than_growing_a_tile_greedily(job: Any) -> None:
    spec, domain, memory, tta = job
    tiling = Tiling(spec, domain, choose_tile(spec, domain, memory, tta=tta), tta)
    assert reckoned(tiling) <= reckoned(grow_greedily(spec, domain, memory, tta))


def reckoned(tiling: Tiling) -> int:
    """The work and that of one tile more, which is what workers wait for at the end."""
    return work_of(tiling) + math.prod(tiling.input_shape)


@given(jobs())
def test_a_tile_is_the_shortest_for_its_number_of_tiles(job: Any) -> None:
    spec, domain, memory, tta = job
    tile = choose_tile(spec, domain, memory, tta=tta)
    lead = domain.ndim - spec.dims
    for t, s, n in zip(tile[lead:], spec.total_stride, domain.shape[lead:], strict=True):
        assert t == s or (t - s) * -(-n // t) < n, "a shorter tile would do, and cost less"


@pytest.mark.parametrize("spec", [FLAT, SOLID])
def test_a_long_volume_has_tiles_enough_for_two_workers_and_large_ones_no_end(spec: UNetSpec) -> None:
    side = 4096 if spec.dims == 2 else 384
    tiling = Tiling(
        spec, Box.of_shape((side,) * spec.dims), choose_tile(spec, Box.of_shape((side,) * spec.dims), 10**11)
    )
    assert tiling.count(tiling.domain) >= 4
    endless = Box.of_shape((10**6,) * spec.dims)
    assert math.prod(choose_tile(spec, endless, 10**12)) <= 2**26


@pytest.mark.parametrize("spec", [FLAT, SOLID, DEEP, UNetSpec.build(depth=1, base_channels=4)])
def test_a_longer_axis_takes_no_longer_to_plan(spec: UNetSpec) -> None:
    def seconds(length: int) -> float:
        domain = Box.of_shape((length,) * spec.dims)
        taken = []
        for memory in (2_000_000_000, 2_000_000_001, 2_000_000_002):  # none is remembered
            start = time.process_time()
            choose_tile(spec, domain, memory)
            taken.append(time.process_time() - start)
        return min(taken)

    # Ten thousand times the length: whoever walked along an axis would take ten thousand times as long.
    assert seconds(1_000_000_007) < 10 * seconds(100_003)


@given(
    length=st.integers(1, 3000), stride=st.sampled_from([1, 2, 8]), periods=st.integers(1, 40),
    block=st.integers(1, 500), overlap=st.sampled_from([0.0, 0.25, 0.5]),
)  # fmt: skip
def test_runs_are_the_tiles_that_blocks_touch(
    length: int, stride: int, periods: int, block: int, overlap: float
) -> None:
    tile = stride * periods
    axis = Axis(length, stride, 0, overlap=overlap)
    pitch = axis.pitch(tile)
    places = range(-(tile // pitch + 1) * pitch, length, pitch)
    expected = sum(
        start < min(b + block, length) and start + tile > b for b in range(0, length, block) for start in places
    )
    assert axis.runs(tile, block) == expected


# Blocks, shards and chunks


@given(jobs(), st.data())
@example((SOLID, Box.of_shape((512, 512, 512)), 2 * 10**9, False), None)
def test_blocks_are_whole_shards_of_whole_chunks_and_cost_what_axes_say(job: Any, data: st.DataObject | None) -> None:
    spec, domain, memory, tta = job
    lead = domain.ndim - spec.dims
    chunk = shard = None
    if data is not None and data.draw(st.booleans()):
        wish = st.tuples(*[st.just(1)] * lead, *[st.integers(16, 300)] * spec.dims)
        chunk = data.draw(st.none() | wish)
        times = st.tuples(*[st.integers(1, 3)] * domain.ndim)
        shard = data.draw(st.none() | (wish if chunk is None else times.map(lambda n: _times(n, chunk))))
    tile = choose_tile(spec, domain, memory, unit=shard or chunk, tta=tta)
    tiling = Tiling(spec, domain, tile, tta)
    layout = choose_output_layout(tiling, chunk, shard)
    assert (chunk or layout.chunk, shard or layout.shard) == layout[:2]
    for c, s, b in zip(*layout, strict=True):
        assert b % s == 0
        assert s % c == 0
    axes = axes_of(tiling, shard or chunk)
    for axis, t, b in zip(axes, tile[lead:], layout.block[lead:], strict=True):
        if axis.holds_whole_tiles(t):
            assert b % t == 0 or b >= axis.length
    if math.prod(BlockGrid(domain, layout.block).counts) < 2000:
        runs = math.prod(a.runs(t, b) for a, t, b in zip(axes, tile[lead:], layout.block[lead:], strict=True))
        planes = math.prod(domain.shape[:lead])
        assert planes * runs * math.prod(tiling.input_shape) == work_of(tiling, layout.block)


def _times(a: Shape, b: Shape) -> Shape:
    return tuple(x * y for x, y in zip(a, b, strict=True))


def factor(spec: UNetSpec, shape: Shape, shard: Shape | None) -> float:
    domain = Box.of_shape(shape)
    tiling = Tiling(spec, domain, choose_tile(spec, domain, 2 * 10**9, unit=shard))
    return work_of(tiling, choose_output_layout(tiling, None, shard).block) / domain.size


@pytest.mark.parametrize("shard", [(64, 64, 64), (128, 128, 128), (512, 512, 512), (96, 96, 96)])
def test_a_wish_for_a_shard_does_not_multiply_the_work(shard: Shape) -> None:
    assert factor(DEEP, (1024, 1024, 1024), shard) < 1.3 * factor(DEEP, (1024, 1024, 1024), None)


@pytest.mark.parametrize("length", [1021, 501, 1000])
def test_a_shard_that_fits_no_tile_costs_less_than_twice(length: int) -> None:
    assert factor(FLAT, (20_000, 20_000), (length, length)) < 2 * factor(FLAT, (20_000, 20_000), None)


def test_blocks_are_one_to_a_few_tiles() -> None:
    for spec, shape, memory in [(FLAT, (4096, 4096), 10**9), (FLAT, (9999, 9999), 10**8), (SOLID, (999,) * 3, 10**9)]:
        domain = Box.of_shape(shape)
        tiling = Tiling(spec, domain, choose_tile(spec, domain, memory))
        layout = choose_output_layout(tiling)
        n_tiles = math.prod(b // t for b, t in zip(layout.block, tiling.tile, strict=True))
        limit = {2: 2048, 3: 256}[spec.dims] ** spec.dims
        assert n_tiles == 1 or min(limit // 8, domain.size // 64) <= math.prod(layout.block) <= limit
        assert n_tiles == 1 or len(BlockGrid(domain, layout.block)) >= 12
        assert all(16 <= c <= 1024 for c in layout.chunk)


def test_a_shard_of_broken_chunks_is_refused_with_the_next_good_one() -> None:
    tiling = Tiling(FLAT, Box.of_shape((500, 500)), (256, 256))
    with pytest.raises(InputError, match=r"use \(128, 128\)"):
        choose_output_layout(tiling, (64, 64), (100, 128))


def test_a_tile_off_the_stride_is_refused_with_the_next_good_one() -> None:
    with pytest.raises(InputError, match=r"use \(1, 104, 96\)"):
        choose_tile(FLAT, Box.of_shape((5, 500, 500)), 10**9, tile=(1, 100, 96))


def test_memory_for_no_tile_is_refused_with_what_one_needs() -> None:
    with pytest.raises(InputError, match=r"segment.memory must hold .* got 1.0 MB; raise it"):
        choose_tile(FLAT, Box.of_shape((500, 500)), 10**6)


def test_tile_and_layout_follow_from_shapes_alone() -> None:
    domains = [Box.of_shape(s) for s in itertools.permutations((700, 800, 900))]
    first = [choose_tile(SOLID, d, 10**9) for d in domains]
    assert first == [choose_tile(SOLID, d, 10**9) for d in reversed(domains)][::-1]
