"""The flood is a watershed, and its labels follow from their surroundings alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage.segmentation import watershed

from unetflow.geometry import BlockGrid, Box
from unetflow.numerics.watershed import (
    flood,
    flood_halo,
    flood_levels,
    flood_strides,
    foreground_probability,
    object_table,
)

Field = tuple[np.ndarray, np.ndarray, np.ndarray, tuple[bool, ...], str, tuple[int, ...]]


@st.composite
def fields(draw: st.DrawFn) -> Field:
    """Draw levels full of ties, seeds, a mask with holes, linked axes, a connectivity and strides."""
    ndim = draw(st.integers(2, 4))
    shape = draw(hnp.array_shapes(min_dims=ndim, max_dims=ndim, max_side=(20, 9, 5)[ndim - 2]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = rng.integers(0, draw(st.sampled_from([1, 4, 254])) + 1, shape).astype(np.uint8)
    seeds = np.where(rng.random(shape) < 0.05, rng.integers(1, 9, shape), 0).astype(np.uint32)
    mask = (rng.random(shape) < draw(st.sampled_from([0.6, 0.9, 1.0]))) | (seeds > 0)
    n_apart = draw(st.integers(0, ndim - 1))
    linked = (False,) * n_apart + (True,) * (ndim - n_apart)
    strides = draw(st.tuples(*[st.integers(1, 3)] * ndim))
    return levels, seeds, mask, linked, draw(st.sampled_from(["face", "full"])), strides


def queue(levels: np.ndarray, seeds: np.ndarray, mask: np.ndarray, connectivity: str) -> np.ndarray:
    """Flood from a plain priority queue: the definition, without rounds."""
    import heapq

    near = np.argwhere(ndimage.generate_binary_structure(levels.ndim, 1 if connectivity == "face" else levels.ndim))
    heap = [(int(levels[at]), 0, int(seeds[at]), at) for at in map(tuple, np.argwhere(seeds > 0).tolist())]
    heapq.heapify(heap)
    ids = seeds.copy()
    while heap:
        level, depth, label, at = heapq.heappop(heap)
        for step in near - 1:
            to = tuple((np.array(at) + step).tolist())
            if all(0 <= i < n for i, n in zip(to, levels.shape, strict=True)) and mask[to] and not ids[to]:
                ids[to] = label
                key = (int(levels[to]), 0) if levels[to] > level else (level, depth + 1)
                heapq.heappush(heap, (*key, label, to))
    return ids


@settings(deadline=None, max_examples=60)
@given(fields())
def test_with_steps_enough_it_is_the_flood_from_a_priority_queue(field: Field) -> None:
    levels, seeds, mask, linked, connectivity, strides = field
    expected = np.zeros_like(seeds)
    n_apart = linked.count(False)
    for plane in np.ndindex(levels.shape[:n_apart]):
        expected[plane] = queue(levels[plane], seeds[plane], mask[plane], connectivity)
    assert np.array_equal(flood(levels, seeds, mask, linked, connectivity, strides, steps=254), expected)


@settings(deadline=None, max_examples=60)
@given(fields(), st.integers(0, 6), st.integers(1, 7))
def test_a_block_with_a_halo_of_as_many_voxels_as_steps_has_the_labels_of_the_whole(
    field: Field, steps: int, side: int
) -> None:
    levels, seeds, mask, linked, connectivity, strides = field
    whole = flood(levels, seeds, mask, linked, connectivity, strides, steps)
    halo = flood_halo(strides, linked, steps)
    volume = Box.of_shape(levels.shape)
    for block in BlockGrid(volume, (side,) * levels.ndim, halo, halo):
        outer = block.outer.intersect(volume)
        parts = (array[outer.slices] for array in (levels, seeds, mask))
        found = flood(*parts, linked, connectivity, strides, steps)
        inner = block.inner.relative_to(outer).slices
        assert np.array_equal(found[inner], whole[block.inner.slices])


def test_two_discs_that_touch_part_at_the_saddle_between_them() -> None:
    y, x = np.mgrid[:41, :81]
    p = np.maximum(*(np.exp(-((y - 20) ** 2 + (x - c) ** 2) / 300) for c in (26, 54)))
    seeds = np.where(p > 0.9, np.where(x < 40, 5, 9), 0).astype(np.uint32)
    found = flood(flood_levels(p), seeds, p > 0.3, (True, True))
    assert np.array_equal(found > 0, p > 0.3)
    assert set(np.unique(found[:, :40])) == {0, 5}
    assert set(np.unique(found[:, 41:])) == {0, 9}


def test_a_leak_into_the_basin_of_another_seed_is_flushed_out_to_its_rim() -> None:
    # Label 1 is near, over a pass at 70; label 2 comes later, over 50. The rim of 90 follows its own side.
    levels = np.array([[0, 70, 10, 50, 50, 50, 50, 0], [255, 255, 90, 255, 255, 255, 255, 255]], np.uint8)
    seeds = np.zeros((2, 8), np.uint32)
    seeds[0, 0], seeds[0, 7] = 1, 2
    found = flood(levels, seeds, levels < 255, (True, True))
    assert found[0].tolist() == [1, 1, 2, 2, 2, 2, 2, 2]
    assert found[1, 2] == 2


def test_a_tie_goes_to_the_lower_label_and_a_plateau_is_halved() -> None:
    levels = np.full((1, 9), 100, np.uint8)
    for labels, expected in (((1, 2), [1] * 5 + [2] * 4), ((2, 1), [2] * 4 + [1] * 5)):
        seeds = np.zeros((1, 9), np.uint32)
        seeds[0, 0], seeds[0, -1] = labels
        assert flood(levels, seeds, levels > 0, (True, True))[0].tolist() == expected


@pytest.mark.parametrize("shape", [(400, 400), (80, 80, 80)])
def test_it_agrees_with_scikit_image_on_smooth_fields(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    p = ndimage.gaussian_filter(rng.random(shape), 4)
    p = (p - p.min()) / (p.max() - p.min())
    seeds = ndimage.label(p > 0.65)[0].astype(np.uint32)
    levels, mask = flood_levels(p), p > 0.55
    found = flood(levels, seeds, mask, (True,) * len(shape))
    expected = watershed(levels.astype(int), seeds.astype(int), mask=mask)
    both = (found > 0) & (expected > 0)
    assert seeds.max() > 20
    assert both.sum() > 0.99 * (expected > 0).sum()
    assert np.mean(found[both] == expected[both]) > 0.99


def test_a_flood_takes_fewer_steps_along_a_coarse_axis() -> None:
    levels = np.full((9, 9, 9), 100, np.uint8)
    seeds = np.zeros((9, 9, 9), np.uint32)
    seeds[4, 4, 4] = 1
    found = flood(levels, seeds, levels > 0, (True,) * 3, strides=flood_strides((3.0, 1.0, 1.1), 3), steps=4)
    reached = np.argwhere(found > 0) - 4
    assert np.abs(reached).max(axis=0).tolist() == [1, 4, 4]


def test_a_step_along_two_axes_waits_for_the_rounds_of_both() -> None:
    levels = np.full((4, 4), 100, np.uint8)
    seeds = np.zeros((4, 4), np.uint32)
    seeds[0, 0] = 1
    found = flood(levels, seeds, levels > 0, (True, True), "full", strides=(3, 2), steps=3)
    assert flood_halo((3, 2), (True, True), 3) == (1, 1)
    assert np.argwhere(found).max(axis=0).tolist() == [1, 1]


@pytest.mark.parametrize("seed", [621, 3865, 4394])
def test_a_coarse_axis_has_its_say_again_where_a_neighbour_along_a_fine_one_came_to_be_later(seed: int) -> None:
    # Fields on which a label is wrong where only those axes are asked whose turn it is.
    rng = np.random.default_rng(seed)
    side = int(rng.integers(6, 16))
    levels = rng.integers(0, rng.choice([1, 4, 254]) + 1, (side, side)).astype(np.uint8)
    seeds = np.where(rng.random(levels.shape) < 0.05, rng.integers(1, 9, levels.shape), 0).astype(np.uint32)
    mask = (rng.random(levels.shape) < 0.8) | (seeds > 0)
    found = flood(levels, seeds, mask, (True, True), strides=(2, 1), steps=254)
    assert np.array_equal(found, queue(levels, seeds, mask, "face"))


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32"])
def test_the_foreground_is_all_that_is_not_background(dtype: str) -> None:
    whole = 255 if dtype == "uint8" else 1
    stored = np.array([[0.2, 1.0], [0.5, 0.0], [0.3, 0.0]]) * whole
    assert foreground_probability(stored.astype(dtype)) == pytest.approx([0.8, 0.0], abs=1e-3)
    assert foreground_probability(stored[1:2].astype(dtype)) == pytest.approx([0.5, 0.0], abs=2e-3)


def test_planes_that_are_not_linked_do_not_see_each_other() -> None:
    levels = np.full((2, 3, 3), 10, np.uint8)
    seeds = np.zeros((2, 3, 3), np.uint32)
    seeds[0, 0, 0] = 4
    found = flood(levels, seeds, levels > 0, (False, True, True))
    assert (found[0] == 4).all()
    assert (found[1] == 0).all()


def test_steps_that_do_not_fit_a_byte_are_refused() -> None:
    one = np.ones((1, 1), np.uint8)
    with pytest.raises(ValueError, match="0 to 254, got 255"):
        flood(one, one.astype(np.uint32), one > 0, (True, True), steps=255)


@settings(deadline=None)
@given(hnp.arrays(np.int64, hnp.array_shapes(max_dims=3, max_side=6), elements=st.integers(0, 4)))
def test_tables_of_blocks_add_up_to_that_of_the_volume(ids: np.ndarray) -> None:
    volume = Box.of_shape(ids.shape)
    first: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for block in BlockGrid(volume, (2,) * ids.ndim):
        for label, begin, size in zip(*object_table(ids[block.inner.slices], block.inner, ids.shape), strict=True):
            first[label] = min(first.get(label, ids.size), begin)
            sizes[label] = sizes.get(label, 0) + size
    flat = ids.ravel()
    assert first == {i: int(np.flatnonzero(flat == i)[0]) for i in np.unique(flat[flat > 0]).tolist()}
    assert sizes == {i: int((flat == i).sum()) for i in first}
