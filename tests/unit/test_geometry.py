"""Boxes, grids and mirrors: properties drawn at random, NumPy as the oracle."""

from __future__ import annotations

import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetflow.errors import InputError
from unetflow.geometry import BlockGrid, Box, mirror_indices, parse_roi

lengths = st.integers(1, 9)
places = st.integers(-20, 20)


@st.composite
def boxes(draw: st.DrawFn, ndim: int | None = None, smallest: int = 0) -> Box:
    ndim = draw(st.integers(1, 4)) if ndim is None else ndim
    start = draw(st.tuples(*[places] * ndim))
    shape = draw(st.tuples(*[st.integers(smallest, 7)] * ndim))
    return Box(start, tuple(a + n for a, n in zip(start, shape, strict=True)))


@st.composite
def box_pairs(draw: st.DrawFn) -> tuple[Box, Box]:
    ndim = draw(st.integers(1, 3))
    return draw(boxes(ndim)), draw(boxes(ndim))


@st.composite
def grids(draw: st.DrawFn) -> BlockGrid:
    domain = draw(boxes(draw(st.integers(1, 3)), smallest=1))
    per_axis = st.tuples(*[lengths] * domain.ndim)
    halo = st.tuples(*[st.integers(0, 5)] * domain.ndim)
    return BlockGrid(domain, draw(per_axis), draw(halo), draw(halo))


def voxels(box: Box) -> set[tuple[int, ...]]:
    """Return the set of the box's voxels: the plain meaning of a box."""
    ranges = [range(a, a + n) for a, n in zip(box.start, box.shape, strict=True)]
    return set(itertools.product(*ranges))


# Box


@given(box_pairs())
def test_an_intersection_holds_the_voxels_that_both_boxes_hold(pair: tuple[Box, Box]) -> None:
    a, b = pair
    assert voxels(a.intersect(b)) == voxels(a) & voxels(b)
    assert a.intersect(b).size == len(voxels(a) & voxels(b))


@given(box_pairs())
def test_a_box_that_contains_another_holds_all_its_voxels(pair: tuple[Box, Box]) -> None:
    a, b = pair
    if b.size:
        assert a.contains(b) == (voxels(b) <= voxels(a))
    assert a.contains(a)


@given(boxes(), st.data())
def test_shifting_there_and_back_gives_the_same_box(box: Box, data: st.DataObject) -> None:
    offset = data.draw(st.tuples(*[places] * box.ndim))
    moved = box.shift(offset)
    assert moved.shape == box.shape
    assert moved.shift([-o for o in offset]) == box
    assert moved.relative_to(box).start == offset


@given(boxes(), st.data())
def test_a_grown_box_is_longer_by_its_halo_and_shrinks_back(box: Box, data: st.DataObject) -> None:
    before, after = (data.draw(st.tuples(*[st.integers(0, 9)] * box.ndim)) for _ in range(2))
    grown = box.grow(before, after)
    assert grown.contains(box)
    assert grown.shape == tuple(n + b + a for n, b, a in zip(box.shape, before, after, strict=True))
    assert grown.grow([-b for b in before], [-a for a in after]) == box


@given(hnp.array_shapes(max_dims=3, max_side=6), st.data())
def test_the_slices_of_a_box_cut_its_shape_out_of_an_array(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    stop = data.draw(st.tuples(*[st.integers(0, n) for n in shape]))
    start = data.draw(st.tuples(*[st.integers(0, n) for n in stop]))
    cut = np.arange(math.prod(shape)).reshape(shape)[Box(start, stop).slices]
    assert cut.shape == Box(start, stop).shape
    assert cut.size == Box(start, stop).size


def test_a_box_that_ends_before_it_starts_is_empty() -> None:
    assert Box((5, 0), (3, 4)).shape == (0, 4)
    assert Box((5, 0), (3, 4)).size == 0


def test_boxes_of_different_dimensions_do_not_mix() -> None:
    with pytest.raises(ValueError, match="zip"):
        Box.of_shape((2, 3)).intersect(Box.of_shape((2, 3, 4)))


def test_a_box_is_a_key_that_travels() -> None:
    box = Box.of_shape((2, 3))
    assert {box: 1}[pickle.loads(pickle.dumps(box))] == 1
    assert str(box.shift((1, -1))) == "1:3,-1:2"


# BlockGrid


@given(grids())
def test_each_voxel_of_the_domain_is_written_by_exactly_one_block(grid: BlockGrid) -> None:
    written = np.zeros(grid.domain.shape, int)
    for block in grid:
        assert grid.domain.contains(block.inner)
        assert block.inner.size > 0
        written[block.inner.relative_to(grid.domain).slices] += 1
    assert (written == 1).all()


@given(grids())
def test_blocks_are_numbered_in_c_order_and_found_by_their_place(grid: BlockGrid) -> None:
    assert [block.number for block in grid] == list(range(len(grid)))
    places_in_order = list(np.ndindex(*grid.counts))
    for number, place in enumerate(places_in_order):
        assert grid.index_of(number) == place
        assert grid.number_at(place) == number
    assert len(grid) == len(places_in_order)


@given(grids())
def test_an_outer_box_is_the_inner_one_with_its_halo(grid: BlockGrid) -> None:
    for block in grid:
        assert block.outer == block.inner.grow(grid.before, grid.after)


@given(grids())
def test_block_starts_stand_on_multiples_of_the_block_shape(grid: BlockGrid) -> None:
    for block in grid:
        start = block.inner.relative_to(grid.domain).start
        assert all(a % b == 0 for a, b in zip(start, grid.block_shape, strict=True))
        assert all(n <= b for n, b in zip(block.inner.shape, grid.block_shape, strict=True))


@given(grids(), st.data())
def test_touching_blocks_are_those_that_share_a_voxel(grid: BlockGrid, data: st.DataObject) -> None:
    box = data.draw(boxes(grid.domain.ndim))
    expected = [block for block in grid if block.inner.intersect(box).size]
    assert list(grid.touching(box)) == expected


@given(grids())
def test_numbers_of_a_box_name_the_block_that_writes_each_voxel(grid: BlockGrid) -> None:
    expected = np.full(grid.domain.shape, -1)
    for block in grid:
        expected[block.inner.relative_to(grid.domain).slices] = block.number
    np.testing.assert_array_equal(grid.numbers_of(grid.domain), expected)


def test_a_grid_makes_blocks_on_demand_however_large_the_volume() -> None:
    grid = BlockGrid(Box.of_shape((10**6, 10**6, 10**6)), (64, 64, 64))
    assert len(grid) == 15625**3
    assert grid[len(grid) - 1].inner.stop == (10**6, 10**6, 10**6)
    assert next(iter(grid)).outer == Box.of_shape((64, 64, 64))


@pytest.mark.parametrize("number", [-1, 4])
def test_a_block_beyond_the_grid_is_an_index_error(number: int) -> None:
    with pytest.raises(IndexError, match="of 4"):
        BlockGrid(Box.of_shape((5, 6)), (4, 4))[number]


@pytest.mark.parametrize("block_shape", [(4,), (4, 0), (4, 4, 4), (-1, 4)])
def test_a_block_shape_of_no_use_is_refused(block_shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="block shape needs 2 lengths"):
        BlockGrid(Box.of_shape((5, 6)), block_shape)


def test_an_empty_domain_has_no_blocks() -> None:
    assert list(BlockGrid(Box((3, 3), (3, 9)), (2, 2))) == []


# mirror_indices


@given(st.integers(1, 12), st.integers(0, 60), st.integers(0, 60))
def test_mirroring_is_numpy_reflect_even_where_the_halo_is_longer_than_the_axis(
    length: int, before: int, after: int
) -> None:
    expected = np.pad(np.arange(length), (before, after), mode="reflect")
    np.testing.assert_array_equal(mirror_indices(-before, length + after, length), expected)


@given(st.integers(1, 12), st.integers(-99, 99), st.integers(0, 30), st.integers(0, 30))
def test_a_part_of_a_mirrored_range_is_mirrored_alike(length: int, start: int, skip: int, count: int) -> None:
    whole = mirror_indices(start, start + skip + count, length)
    np.testing.assert_array_equal(mirror_indices(start + skip, start + skip + count, length), whole[skip:])


@given(st.integers(1, 12), places, places)
def test_mirrored_positions_lie_on_the_axis(length: int, start: int, stop: int) -> None:
    positions = mirror_indices(start, stop, length)
    assert len(positions) == max(0, stop - start)
    assert ((positions >= 0) & (positions < length)).all()


def test_an_axis_without_voxels_cannot_be_mirrored() -> None:
    with pytest.raises(ValueError, match="at least 1 voxel"):
        mirror_indices(0, 3, 0)


# parse_roi


@given(boxes(smallest=1))
def test_a_region_that_is_written_out_is_read_back(box: Box) -> None:
    inside = box.shift([max(0, -a) for a in box.start])
    volume = [b + 3 for b in inside.stop]
    assert parse_roi(str(inside), volume) == inside


@given(hnp.array_shapes(max_dims=4))
def test_empty_bounds_are_the_volume(shape: tuple[int, ...]) -> None:
    assert parse_roi(",".join(":" * len(shape)), shape) == Box.of_shape(shape)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0:4", "one start:stop for each of 2 axes"),
        ("0:4,0:4,0:4", "one start:stop for each of 2 axes"),
        ("0:4,3", "one start:stop"),
        ("0:4,a:b", "one start:stop"),
        ("0:4,0:4:2", "one start:stop"),
        ("", "one start:stop"),
        ("0:9,0:9", "inside the volume 0:8,0:9"),
        ("-1:4,0:4", "inside the volume"),
        ("4:2,0:4", "hold a voxel"),
        ("4:4,0:4", "hold a voxel"),
    ],
)
def test_a_bad_region_is_refused_with_the_rule_and_the_value(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        parse_roi(text, (8, 9))
    assert f"got '{text}'" in str(refusal.value)


@given(st.data())
def test_blocks_that_read_a_box_are_found_without_asking_each(data: st.DataObject) -> None:
    ndim = data.draw(st.integers(1, 3))
    lengths = st.tuples(*[st.integers(1, 12)] * ndim)
    halos = st.tuples(*[st.integers(0, 5)] * ndim)
    shape, block = data.draw(lengths), data.draw(lengths)
    domain = Box.of_shape(shape).shift(data.draw(halos))
    grid = BlockGrid(domain, block, data.draw(halos), data.draw(halos))
    starts = np.array(data.draw(st.lists(st.tuples(*[st.integers(-6, 20)] * ndim), max_size=4)), np.int64)
    starts = starts.reshape(-1, ndim)
    stops = starts + data.draw(lengths)
    found = set(grid.numbers_reading(starts, stops).tolist())
    boxes = [Box(tuple(a), tuple(b)) for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
    # Of blocks that the domain cuts short, the halo may be taken from the full block.
    whole = [
        Box(b.inner.start, tuple(a + n for a, n in zip(b.inner.start, block, strict=True))).grow(
            grid.before, grid.after
        )
        for b in grid
    ]
    must = {b.number for b in grid if any(b.outer.intersect(box).size for box in boxes)}
    may = {n for n, outer in enumerate(whole) if any(outer.intersect(box).size for box in boxes)}
    assert must <= found <= may


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    data=st.data(),
)
def test_bricks_tile_a_grid_in_c_order(shape: list[int], data: st.DataObject) -> None:
    counts = [data.draw(st.integers(1, 4)) for _ in shape]
    grid = BlockGrid(Box.of_shape(shape), (2,) * len(shape), (1,) * len(shape))
    bricks = [list(brick) for brick in grid.bricks(counts)]
    assert sorted(b.number for brick in bricks for b in brick) == list(range(len(grid)))
    assert len(bricks) == math.prod(-(-n // c) for n, c in zip(grid.counts, counts, strict=True))
    for brick in bricks:
        places = np.array([grid.index_of(b.number) for b in brick])
        assert (np.ptp(places, axis=0) < counts).all()
        assert (places // counts == places[0] // counts).all()
        assert [b.number for b in brick] == sorted(b.number for b in brick)
        assert brick == [grid[b.number] for b in brick]


def test_the_last_axes_of_a_brick_count_and_wrong_ones_are_refused() -> None:
    grid = BlockGrid(Box.of_shape((4, 4)), (1, 1))
    assert list(grid.bricks((9, 2, 2))) == list(grid.bricks((2, 2)))
    for wrong in [(2,), (0, 2)]:
        with pytest.raises(ValueError, match="a brick needs 2 counts of at least 1"):
            list(grid.bricks(wrong))
    with pytest.raises(IndexError):
        next(grid.bricks((2, 2)))[4]
