"""Targets follow the labels voxel for voxel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetflow.errors import InputError
from unetflow.numerics.targets import (
    apply_class_map,
    class_counts,
    class_target,
    ignore_mask,
    instance_target,
    multilabel_counts,
    multilabel_target,
)

IDS = hnp.arrays(np.int32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=5), elements=st.integers(0, 3))


@given(IDS, st.data())
def test_the_seam_is_each_voxel_beside_another_object(ids: np.ndarray, data: st.DataObject) -> None:
    connected = data.draw(st.tuples(*[st.booleans()] * ids.ndim))
    expected = np.zeros(ids.shape, np.uint8)
    for index in np.ndindex(ids.shape):
        near = []
        for axis in np.flatnonzero(connected):
            for step in (-1, 1):
                other = list(index)
                other[axis] += step
                if 0 <= other[axis] < ids.shape[axis]:
                    near.append(ids[tuple(other)])
        expected[index] = ids[index] > 0 and all(n in (0, ids[index]) for n in near)
    np.testing.assert_array_equal(instance_target(ids, connected), expected)


@given(IDS)
def test_a_block_with_one_voxel_of_halo_has_the_volumes_seam(ids: np.ndarray) -> None:
    everywhere = (True,) * ids.ndim
    middle = len(ids) // 2
    cut = max(0, middle - 1)
    part = instance_target(ids[cut:], everywhere)[middle - cut :]
    np.testing.assert_array_equal(part, instance_target(ids, everywhere)[middle:])


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.uint8, (0, 7, 255)),
        (np.int16, (-300, 0, 9)),
        (np.uint64, (0, 2**40, 2**63 + 5)),
        (np.int64, (-(2**50), 3, 2**50)),
        (np.uint64, (2**63 + 1, 2**63 + 2, 2**63 + 5)),
    ],
)
def test_a_class_map_reaches_every_integer(dtype: type, values: tuple[int, int, int]) -> None:
    labels = np.array([[values[0], values[1]], [values[2], values[1]]], dtype)
    class_map = {values[0]: 0, values[1]: 1, values[2]: 2}
    np.testing.assert_array_equal(apply_class_map(labels, class_map), [[0, 1], [2, 1]])
    del class_map[values[2]]
    with pytest.raises(InputError, match=str(values[2])):
        apply_class_map(labels, class_map)
    np.testing.assert_array_equal(apply_class_map(labels, class_map, (values[2],)), [[0, 1], [0, 1]])


def test_booleans_pass_through_a_class_map() -> None:
    assert apply_class_map(np.array([True, True]), {1: 2}).tolist() == [2, 2]


def test_without_a_map_only_ignored_values_change() -> None:
    labels = np.array([5, 9, 0], np.uint16)
    assert apply_class_map(labels, None) is labels
    result = apply_class_map(labels, None, (9,))
    assert result.dtype == np.uint16
    assert result.tolist() == [5, 0, 0]
    assert ignore_mask(labels, (9, 5)).tolist() == [True, True, False]


def test_a_label_that_is_no_class_is_refused_by_value() -> None:
    assert class_target(np.array([0, 2]), None, 3).dtype == np.uint8
    for labels in ([0, 3], [-1, 0]):
        with pytest.raises(InputError, match=r"from 0 to 2, got (3|-1)"):
            class_target(np.array(labels), None, 3)
    assert class_target(np.array([0, 99]), None, 2, ignore=(99,)).tolist() == [0, 0]
    with pytest.raises(InputError, match="0..255"):
        apply_class_map(np.array([0]), {0: 256})


def test_an_empty_block_has_an_empty_target() -> None:
    assert class_target(np.zeros((0, 4), np.int64), {0: 0}, 2).shape == (0, 4)


@given(hnp.arrays(np.uint8, (4, 5), elements=st.integers(0, 2)), hnp.arrays(np.bool_, (4, 5)))
def test_counts_leave_out_what_is_not_valid(target: np.ndarray, valid: np.ndarray) -> None:
    counts = class_counts(target, 4, valid)
    assert counts.tolist() == [int(((target == k) & valid).sum()) for k in range(4)]
    masks = multilabel_target(np.stack([target == 1, target == 2]))
    positives, n = multilabel_counts(masks, valid)
    assert (positives.tolist(), n) == (counts[1:3].tolist(), int(valid.sum()))
    assert multilabel_counts(masks)[1] == target.size
