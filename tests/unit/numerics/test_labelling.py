"""The steps of a labelling: fragments of a block, pairs over a face, what hangs together."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from whole_labels import whole_labels

from unetflow.numerics.labelling import join, label_block, slab_pairs


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    ndim = draw(st.integers(1, 4))
    shape = draw(hnp.array_shapes(min_dims=ndim, max_dims=ndim, max_side=(30, 12, 7, 4)[ndim - 1]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random(shape) < draw(st.sampled_from([0.2, 0.4, 0.6]))


@pytest.mark.parametrize("connectivity", ["face", "full"])
def test_a_block_s_fragments_are_scipys_numbered_by_first_voxel_in_any_memory_layout(connectivity: str) -> None:
    @given(masks(), st.data())
    def check(mask: np.ndarray, data: st.DataObject) -> None:
        linked = data.draw(st.tuples(*[st.sampled_from([True, True, False])] * mask.ndim))
        expected = whole_labels(mask, linked, connectivity, 0)
        for layout in (mask, np.asfortranarray(mask), mask.astype(np.int16) * 3):
            fragments, first, sizes = label_block(layout, linked, connectivity)
            np.testing.assert_array_equal(fragments, expected)
        ids, places, counts = np.unique(expected, return_index=True, return_counts=True)
        assert first.tolist() == places[ids > 0].tolist()
        assert sizes.tolist() == counts[ids > 0].tolist()

    check()


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
def test_what_is_joined_in_a_chain_is_one_component(n: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(n)
    assert not join(n, np.array(list(pairwise(order.tolist())), np.int64).reshape(-1, 2)).any()


def test_components_are_told_in_the_order_of_their_first_things() -> None:
    assert join(6, np.array([[5, 1], [2, 4]])).tolist() == [0, 1, 2, 3, 2, 1]


def test_connectivity_has_two_words() -> None:
    with pytest.raises(ValueError, match="face or full"):
        label_block(np.ones((2, 2)), (True, True), "edge")


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5, 1), (7, 1, 1), (1, 5, 3)])
def test_thin_blocks_are_labelled_too(shape: tuple[int, ...]) -> None:
    mask = np.zeros(shape, np.bool_)
    mask[0, 0, 0] = mask[-1, -1, -1] = True
    assert label_block(mask, (True, True, True), "full").fragments.max() == 2
