"""What a level of rounding explains is right; all else is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetflow.stages.predict import choose_classes, quantise
from unetflow.stages.verify_rules import ObjectRule, wrong_classes, wrong_probabilities


@given(st.integers(0, 2**32 - 1), st.sampled_from(["uint8", "float16", "float32"]))
def test_rounding_to_the_stored_type_and_a_neighbouring_sum_are_right(seed: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    p = rng.random((2, 4, 5), dtype=np.float32)
    elsewhere = (p + rng.uniform(-1e-5, 1e-5, p.shape)).clip(0, 1).astype(np.float32)
    assert not wrong_probabilities(quantise(elsewhere, dtype), p).any()


@given(st.integers(0, 2**32 - 1), st.sampled_from([("uint8", 0.012), ("float16", 0.002), ("float32", 3e-5)]))
def test_one_voxel_beyond_rounding_is_wrong_and_alone(seed: int, case: tuple[str, float]) -> None:
    dtype, step = case
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.1, 0.9, (2, 4, 5)).astype(np.float32)
    changed = p.copy()
    at = tuple(int(rng.integers(n)) for n in p.shape)
    changed[at] += np.float32(step)
    assert np.argwhere(wrong_probabilities(quantise(changed, dtype), p)).tolist() == [list(at)]


def test_nan_is_wrong() -> None:
    assert wrong_probabilities(np.array([[np.nan]], np.float32), np.array([[0.5]], np.float32)).all()


def test_bf16_may_differ_by_three_levels_on_a_hundredth_of_the_voxels_and_no_more() -> None:
    p = np.full((1, 1000), 0.5, np.float32)
    stored = quantise(p, "uint8")
    few, far, many = stored.copy(), stored.copy(), stored.copy()
    few[0, :10] += 3
    far[0, 0] += 4
    many[0, :11] += 3
    assert wrong_probabilities(few, p).sum() == 10
    assert not wrong_probabilities(few, p, is_bf16=True).any()
    assert wrong_probabilities(far, p, is_bf16=True).sum() == 1
    assert wrong_probabilities(many, p, is_bf16=True).sum() == 11


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_class_may_differ_only_where_the_network_was_next_to_undecided(n_classes: int) -> None:
    p = np.zeros((n_classes, 3), np.float32)
    p[1] = [0.4, 0.400004, 0.6]
    p[0] = 1 - p[1] if n_classes == 2 else [0.2, 0.400003, 0.1]
    threshold = 0.4
    right = choose_classes(p, "softmax", threshold, 0, 1)
    for place, is_wrong in ((1, False), (2, True)):
        stored = right.copy()
        stored[place] = 1 - stored[place]
        wrong = wrong_classes(stored, right, p, threshold=threshold, head="softmax", channel=None)
        assert wrong.tolist() == [is_wrong and i == place for i in range(3)]
    nonsense = np.full_like(right, 7)
    assert wrong_classes(nonsense, right, p, threshold=threshold, head="softmax", channel=None).all()


def rule(**changes: Any) -> ObjectRule:
    values = {"linked": (True, True), "connectivity": "face", "min_size": 0, "fills_holes": False, "is_flooded": False}
    return ObjectRule(**{**values, **changes})


CLASSES = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 1, 0]], np.uint8)
OBJECTS = np.array([[5, 5, 0, 9], [5, 0, 0, 9], [0, 0, 7, 0]], np.uint32)


@pytest.mark.parametrize(
    ("place", "value"),
    [((0, 0), 6), ((0, 0), 0), ((1, 1), 5), ((2, 3), 1), ((2, 2), 0)],
    ids=["another number", "a hole", "beyond its class", "from nothing", "lost"],
)
def test_one_wrong_voxel_of_objects_is_found_alone(place: tuple[int, int], value: int) -> None:
    assert not rule().wrong(OBJECTS, CLASSES).any()
    changed = OBJECTS.copy()
    changed[place] = value
    assert np.argwhere(rule().wrong(changed, CLASSES)).tolist() == [list(place)]


def test_only_small_components_may_be_dropped() -> None:
    without = np.where(OBJECTS == 7, 0, OBJECTS).astype(np.uint32)
    assert not rule(min_size=2).wrong(without, CLASSES).any()
    assert rule(min_size=1).wrong(without, CLASSES).sum() == 1
    assert rule(min_size=3).wrong(np.zeros_like(OBJECTS), CLASSES).sum() == 3  # the first object has three voxels


def test_filled_holes_and_floods_have_rules_of_their_own() -> None:
    filled = OBJECTS.copy()
    filled[1, 1] = 5
    assert rule().wrong(filled, CLASSES).any()
    assert not rule(fills_holes=True).wrong(filled, CLASSES).any()
    cut = OBJECTS.copy()
    cut[1, 0] = 6
    assert rule().wrong(cut, CLASSES).any()
    assert not rule(is_flooded=True).wrong(cut, CLASSES).any()
    assert rule(is_flooded=True).wrong(np.zeros_like(OBJECTS), CLASSES).sum() == CLASSES.sum()
