"""Voxels drawn at random: uniform, and the same however the volume is cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetflow.geometry import BlockGrid, Box
from unetflow.numerics.sampling import lowest_ranked, rank_of


@given(hnp.array_shapes(min_dims=1, max_dims=4, max_side=9), st.integers(0, 2**64 - 1), st.integers(1, 30), st.data())
def test_the_lowest_ranks_of_blocks_hold_those_of_the_volume(
    shape: tuple[int, ...], key: int, count: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(key % 1000)
    classes = rng.integers(0, 3, shape).astype(np.uint8)
    allowed = rng.random(shape) < 0.7
    block_shape = tuple(data.draw(st.integers(1, n)) for n in shape)
    found: dict[int, list[int]] = {}
    for block in BlockGrid(Box.of_shape(shape), block_shape):
        box = block.inner
        part = lowest_ranked(classes[box.slices], allowed[box.slices], box.start, shape, key, count)
        for value, (ranks, places) in part.items():
            assert np.array_equal(rank_of(places.astype(np.int64), key), ranks)
            found.setdefault(value, []).extend(ranks.tolist())
    every = rank_of(np.arange(classes.size), key)
    for value in range(3):
        chosen = (classes.ravel() == value) & allowed.ravel()
        assert sorted(found.get(value, []))[:count] == np.sort(every[chosen])[:count].tolist()


def test_ranks_are_uniform_and_follow_the_key() -> None:
    ranks = rank_of(np.arange(100_000), 7) / 2.0**64
    assert np.histogram(ranks, 10, (0, 1))[0].min() > 9_600
    assert abs(np.corrcoef(ranks[:-1], ranks[1:])[0, 1]) < 0.02
    assert not np.array_equal(rank_of(np.arange(9), 7), rank_of(np.arange(9), 8))
