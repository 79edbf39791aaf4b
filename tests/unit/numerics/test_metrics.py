"""Scores are scikit-image's, add over blocks, and follow their definitions."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from skimage.metrics import adapted_rand_error, variation_of_information

from unetflow.numerics.metrics import (
    THRESHOLDS,
    Contingency,
    Matches,
    add,
    class_scores,
    contingency,
    object_matches,
    object_scores,
    section_scores,
)


@st.composite
def segmentations(draw: st.DrawFn, *, n_labels: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Draw a truth and a segmentation that partly agrees with it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.sampled_from([(40,), (9, 12), (4, 6, 7)]))
    truth = np.repeat(rng.integers(0, n_labels, shape), 2, axis=-1)
    agreement = draw(st.sampled_from([0.0, 0.6, 0.95]))
    seg = np.where(rng.random(truth.shape) < agreement, truth, rng.integers(0, n_labels, truth.shape))
    return seg, truth


@given(segmentations(), st.integers(0, 2**32 - 1))
def test_tables_of_blocks_add_to_that_of_the_volume(case: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    seg, truth = case
    valid = np.random.default_rng(seed).random(seg.shape) < 0.7
    cut = seed % (len(seg) + 1)
    whole = contingency(seg, truth, valid)
    parts = [contingency(seg[s], truth[s], valid[s]) for s in (slice(cut), slice(cut, None))]
    assert add(*parts) == add(*parts[::-1]) == add(whole, Contingency.empty()) == whole
    pairs, counts = np.unique(np.stack([seg[valid], truth[valid]], 1), axis=0, return_counts=True)
    np.testing.assert_array_equal(whole.pairs, pairs)
    np.testing.assert_array_equal(whole.counts, counts)
    assert Contingency.from_json(json.loads(json.dumps(whole.to_json()))) == whole


@given(segmentations())
def test_rand_and_information_scores_are_scikit_images(case: tuple[np.ndarray, np.ndarray]) -> None:
    seg, truth = case
    scores = object_scores(contingency(seg, truth))
    expected = [*adapted_rand_error(truth, seg), *variation_of_information(truth, seg, ignore_labels=(0,))]
    keys = ["adapted_rand_error", "rand_precision", "rand_recall", "voi_split", "voi_merge"]
    np.testing.assert_allclose([scores[key] for key in keys], expected, rtol=0, atol=1e-9)


@given(segmentations(n_labels=4))
def test_matches_are_a_best_assignment_of_objects(case: tuple[np.ndarray, np.ndarray]) -> None:
    seg, truth = case
    found = object_matches(contingency(seg, truth))
    segs, truths = (np.unique(a[a > 0]) for a in case)
    iou, covers = np.zeros((2, len(segs), len(truths)))
    for i, j in np.ndindex(iou.shape):
        a, b = seg == segs[i], truth == truths[j]
        iou[i, j] = (a & b).sum() / (a | b).sum()
        covers[i, j] = 2 * (a & b).sum() > b.sum()
    assert (found.n_segmented, found.n_truth) == iou.shape
    for percent, n in zip(THRESHOLDS, found.n_matched, strict=True):
        is_match = iou >= percent / 100
        assert n == is_match[linear_sum_assignment(~is_match)].sum()
    assert found.seg_sum == pytest.approx(float((iou * covers).sum()))


def test_two_halves_of_an_object_are_one_match_at_one_half() -> None:
    halves, whole = np.array([1, 1, 2, 2]), np.array([7, 7, 7, 7])
    assert object_matches(contingency(halves, whole)).n_matched[0] == 1
    assert object_matches(contingency(whole, halves)).n_matched[0] == 1
    assert object_matches(contingency(halves, whole)).seg_sum == 0


def test_a_perfect_segmentation_has_perfect_scores() -> None:
    truth = np.array([[0, 1, 1, 0, 2, 2, 2]])
    table = contingency(truth * 10, truth)
    scores = object_scores(table)
    assert [scores[k] for k in ("adapted_rand_error", "voi_split", "voi_merge")] == [0, 0, 0]
    assert [scores[k] for k in ("rand_precision", "rand_recall", "seg", "ap50", "ap90", "map")] == [1] * 6
    assert class_scores(contingency(truth, truth))["pixel_error"] == 0


@given(segmentations(n_labels=3))
def test_class_scores_follow_their_definitions(case: tuple[np.ndarray, np.ndarray]) -> None:
    seg, truth = case
    scores = class_scores(contingency(seg, truth))
    assert scores["pixel_error"] == pytest.approx((seg != truth).mean())
    assert set(scores["iou"]) == set(map(str, np.unique(case)))
    for k in np.unique(case):
        both, either = ((seg == k) & (truth == k)).sum(), ((seg == k) | (truth == k)).sum()
        assert scores["iou"][str(k)] == pytest.approx(both / either)
        assert scores["dice"][str(k)] == pytest.approx(2 * both / (both + either))


@given(segmentations())
def test_sections_pool_matches_and_average_the_rest(case: tuple[np.ndarray, np.ndarray]) -> None:
    seg, truth = case
    tables = [contingency(seg, truth), contingency(truth, truth)]
    found, each = section_scores(tables), [object_scores(table) for table in tables]
    pooled = (object_matches(tables[0]) + object_matches(tables[1])).scores()
    for key, value in found.items():
        expected = pooled[key] if key in pooled else np.mean([scores[key] for scores in each])
        assert value == pytest.approx(expected)
    assert found.keys() == each[0].keys()


def test_an_empty_section_counts_in_no_average() -> None:
    empty = contingency(np.zeros(4, int), np.zeros(4, int))
    full = contingency(np.array([1, 1, 2, 0]), np.array([1, 1, 1, 0]))
    assert section_scores([empty, full]) == pytest.approx(object_scores(full))


def test_scores_of_nothing_are_not_a_number_and_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = object_scores(Contingency.empty())
        assert all(np.isnan(value) for value in scores.values())
        assert np.isnan(class_scores(Contingency.empty())["pixel_error"])
        assert np.isnan(section_scores([])["seg"])
    assert Matches() + Matches() == Matches()


def test_arrays_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        contingency(np.zeros(3, int), np.zeros(4, int))
