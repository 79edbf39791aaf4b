"""Components found block by block are SciPy's components of the whole volume."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from unetflow.geometry import BlockGrid, Box
from unetflow.numerics.labelling import (
    fragment_table,
    label_block,
    number_components,
    relabel,
    slab_pairs,
    union,
)


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    ndim = draw(st.integers(1, 4))
    shape = draw(hnp.array_shapes(min_dims=ndim, max_dims=ndim, max_side=(30, 12, 7, 4)[ndim - 1]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random(shape) < draw(st.sampled_from([0.2, 0.4, 0.6]))


def oracle(mask: np.ndarray, linked: tuple[bool, ...], connectivity: str, min_size: int) -> np.ndarray:
    """Label the whole volume with SciPy, drop small components, number by first voxel."""
    structure = ndimage.generate_binary_structure(mask.ndim, 1 if connectivity == "face" else mask.ndim)
    for axis, is_linked in enumerate(linked):
        if not is_linked:
            moved = np.moveaxis(structure, axis, 0)
            moved[0], moved[2] = False, False
    labels, _ = ndimage.label(mask, structure)
    result = np.zeros(mask.shape, np.uint64)
    n = 0
    for label in dict.fromkeys(labels[labels > 0].tolist()):
        component = labels == label
        if component.sum() >= min_size:
            n += 1
            result[component] = n
    return result


def blockwise(
    mask: np.ndarray, block_shape: tuple[int, ...], linked: tuple[bool, ...], connectivity: str, min_size: int
) -> np.ndarray:
    """Label in blocks as the passes do, with nothing but blocks and slabs in hand."""
    volume = Box.of_shape(mask.shape)
    grid = BlockGrid(volume, block_shape)
    blocks, firsts, sizes = [], [], []
    ids, n_before = np.zeros(mask.shape, np.uint64), 0
    for block in grid:
        fragments, n = label_block(mask[block.inner.slices], linked, connectivity)
        first, size = fragment_table(fragments, n, block.inner, mask.shape)
        ids[block.inner.slices] = np.where(fragments > 0, fragments.astype(np.uint64) + np.uint64(n_before), 0)
        blocks.append((block.inner, fragments, n_before))
        firsts.append(first)
        sizes.append(size)
        n_before += n
    pairs = [np.zeros((0, 2), np.uint64)]
    for block in grid:
        for axis in range(mask.ndim):
            face = block.inner.stop[axis]
            if face < mask.shape[axis]:
                rim = [int(a != axis) for a in range(mask.ndim)]
                box = block.inner.grow(rim, rim).intersect(volume)
                planes = [
                    Box(
                        tuple(at if a == axis else x for a, x in enumerate(box.start)),
                        tuple(at + 1 if a == axis else x for a, x in enumerate(box.stop)),
                    )
                    for at in (face - 1, face)
                ]
                front, back = (ids[plane.slices] for plane in planes)
                pairs.append(slab_pairs(front, back, axis, linked, connectivity))
    roots = union(n_before, np.concatenate(pairs))
    numbers = number_components(np.concatenate(firsts), np.concatenate(sizes), roots, min_size)
    result = np.zeros(mask.shape, np.uint64)
    for box, fragments, start in blocks:
        result[box.slices] = relabel(fragments, numbers[start : start + int(fragments.max(initial=0))])
    return result


@pytest.mark.parametrize("connectivity", ["face", "full"])
def test_any_cut_gives_scipys_components_voxel_for_voxel(connectivity: str) -> None:
    @given(masks(), st.data())
    def check(mask: np.ndarray, data: st.DataObject) -> None:
        block_shape = tuple(data.draw(st.integers(1, n)) for n in mask.shape)
        linked = data.draw(st.tuples(*[st.sampled_from([True, True, False])] * mask.ndim))
        min_size = data.draw(st.sampled_from([0, 0, 3]))
        found = blockwise(mask, block_shape, linked, connectivity, min_size)
        np.testing.assert_array_equal(found, oracle(mask, linked, connectivity, min_size))

    check()


@given(masks())
def test_a_block_s_fragments_are_numbered_by_first_voxel_in_any_memory_layout(mask: np.ndarray) -> None:
    linked = (True,) * mask.ndim
    fragments, n = label_block(np.asfortranarray(mask), linked, "full")
    np.testing.assert_array_equal(fragments, oracle(mask, linked, "full", 0))
    assert n == fragments.max(initial=0)


def test_a_fragment_table_speaks_of_the_volume() -> None:
    fragments = np.array([[0, 1, 0], [2, 0, 2]], np.int32)
    first, sizes = fragment_table(fragments, 2, Box((4, 5), (6, 8)), (10, 100))
    assert first.tolist() == [4 * 100 + 6, 5 * 100 + 5]
    assert sizes.tolist() == [1, 2]


def test_planes_of_a_stack_that_is_not_linked_never_touch() -> None:
    plane = np.ones((1, 2, 2), np.uint64)
    assert slab_pairs(plane, plane * np.uint64(2), 0, (False, True, True), "full").shape == (0, 2)


def test_pairs_are_told_once_with_the_smaller_id_first() -> None:
    front = np.array([[9, 9, 0, 3]], np.uint64)
    back = np.array([[2, 2, 2, 0]], np.uint64)
    assert slab_pairs(front, back, 0, (True, True), "face").tolist() == [[2, 9]]
    assert slab_pairs(front, back, 0, (True, True), "full").tolist() == [[2, 3], [2, 9]]


def test_ids_beyond_what_a_float_holds_stay_apart() -> None:
    front = np.array([[2**63, 2**63 + 1]], np.uint64)
    back = np.array([[2**63 + 2, 2**63 + 3]], np.uint64)
    assert len(slab_pairs(front, back, 0, (True, True), "face")) == 2


@given(st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_fragments_joined_in_a_chain_have_one_root(n: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(n) + 1
    roots = union(n, np.array(list(pairwise(order.tolist())), np.uint64).reshape(-1, 2))
    assert not roots.any()


def test_connectivity_has_two_words() -> None:
    with pytest.raises(ValueError, match="face or full"):
        label_block(np.ones((2, 2)), (True, True), "edge")
