"""Bricks of many images: neighbours together, and small images several at a time."""

from __future__ import annotations

from itertools import chain

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unetflow.geometry import BlockGrid, Box, Shape
from unetflow.stages.pieces import Pieces, Some

SHAPES = st.tuples(st.integers(1, 7), st.integers(1, 7))
BRICKS = st.tuples(st.integers(1, 4), st.integers(1, 4))


def pieces_of(shapes: list[Shape]) -> Pieces:
    return Pieces(tuple(BlockGrid(Box.of_shape(shape), (1, 1), (2, 2), (1, 1)) for shape in shapes))


@given(shapes=st.lists(SHAPES, min_size=1, max_size=5), brick=BRICKS, data=st.data())
def test_bricks_hold_each_block_once_and_never_more_than_neighbours(
    shapes: list[Shape], brick: Shape, data: st.DataObject
) -> None:
    pieces = pieces_of(shapes)
    each = data.draw(st.booleans())
    wanted = [data.draw(BRICKS) for _ in shapes] if each else [brick] * len(shapes)
    bricks = [list(b) for b in pieces.bricks(wanted if each else brick)]
    assert sorted(b.number for b in chain(*bricks)) == list(range(len(pieces)))
    for blocks in bricks:
        assert blocks == [pieces[b.number] for b in blocks]
        assert [b.number for b in blocks] == sorted(b.number for b in blocks)
        images = {pieces.locate(b.number)[0] for b in blocks}
        if len(images) == 1:
            (index,) = images
            starts = np.array([b.inner.start for b in blocks])
            assert (np.ptp(starts, axis=0) < wanted[index]).all()
        else:  # small images only
            assert all(n <= b for i in images for n, b in zip(shapes[i], wanted[i], strict=True))


@given(shapes=st.lists(SHAPES, min_size=1, max_size=5), brick=BRICKS, data=st.data())
def test_the_bricks_of_some_blocks_are_what_all_bricks_hold_of_them(
    shapes: list[Shape], brick: Shape, data: st.DataObject
) -> None:
    pieces = pieces_of(shapes)
    chosen = sorted(data.draw(st.frozensets(st.integers(0, len(pieces) - 1))))
    some = Some(pieces, np.array(chosen, np.int64))
    assert [some[i] for i in range(len(some))] == list(some)
    expected = [[b for b in blocks if b.number in chosen] for blocks in pieces.bricks(brick)]
    assert [list(b) for b in some.bricks(brick)] == [blocks for blocks in expected if blocks]


def test_small_images_are_joined_until_they_are_worth_a_brick() -> None:
    pieces = pieces_of([(1, 1)] * 10 + [(5, 5)] + [(1, 1)])
    assert [len(b) for b in pieces.bricks((2, 2))] == [4, 4, 2, 4, 4, 2, 4, 4, 2, 2, 2, 1, 1]


def test_a_sample_of_a_grid_is_one_brick() -> None:
    grid = BlockGrid(Box.of_shape((9,)), (1,))

    class Sample:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, number: int) -> object:
            return grid[3 * number]

    pieces = Pieces((Sample(), grid))  # type: ignore[arg-type]
    assert [len(b) for b in pieces.bricks((5,))] == [3, 5, 4]
    assert [b.inner.start for b in next(iter(pieces.bricks((5,))))] == [(0,), (3,), (6,)]


def test_a_brick_of_an_enormous_volume_is_made_at_once() -> None:
    pieces = Pieces((BlockGrid(Box.of_shape((10**7,) * 3), (10,) * 3),))
    first, second = (brick for brick, _ in zip(pieces.bricks((2, 2, 2)), range(2), strict=False))
    assert [b.number for b in first][:3] == [0, 1, 10**6]
    assert second[0].number == 2
