"""Histograms add exactly, and statistics made from them are NumPy's."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetflow.errors import InputError
from unetflow.numerics.intensity import (
    Histogram,
    add,
    histogram,
    maximum,
    mean,
    minimum,
    normalisation,
    normalise,
    percentile,
    std,
)

EXACT = ["bool", "int8", "uint8", "int16", "uint16"]
BINNED = ["int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]


def arrays(dtype: str) -> st.SearchStrategy[np.ndarray]:
    kinds = {"allow_nan": True, "allow_infinity": True} if dtype.startswith("float") else None
    shape = hnp.array_shapes(min_dims=2, max_dims=3, max_side=6)
    return hnp.arrays(dtype, shape, elements=kinds)


@pytest.mark.parametrize("dtype", EXACT + BINNED)
def test_the_sum_of_histograms_does_not_depend_on_the_cut(dtype: str) -> None:
    @settings(max_examples=15)
    @given(arrays(dtype), st.data())
    def check(array: np.ndarray, data: st.DataObject) -> None:
        cut = data.draw(st.integers(0, len(array)))
        parts = histogram(array[:cut]), histogram(array[cut:])
        assert add(*parts) == add(*parts[::-1]) == histogram(array)
        assert add(Histogram.empty(dtype), histogram(array)) == histogram(array)

    check()


@given(st.lists(st.sampled_from(EXACT + BINNED).flatmap(arrays), min_size=3, max_size=3))
def test_adding_is_associative_over_dtypes(parts: list[np.ndarray]) -> None:
    a, b, c = (histogram(part) for part in parts)
    left, right = add(add(a, b), c), add(a, add(b, c))
    assert left.to_json() == right.to_json()


@given(st.sampled_from(EXACT).flatmap(arrays), st.floats(0, 100))
def test_statistics_of_small_integers_are_numpys(array: np.ndarray, q: float) -> None:
    h, values = histogram(array), array.astype(float)
    assert percentile(h, q) == pytest.approx(np.percentile(values, q), abs=1e-9)
    assert mean(h) == pytest.approx(values.mean(), abs=1e-9)
    assert std(h) == pytest.approx(values.std(), abs=1e-6)
    assert (minimum(h), maximum(h)) == (values.min(), values.max())


@given(hnp.arrays(np.float32, (5, 7), elements=st.floats(-(2.0**99), 2.0**99, width=32)), st.integers(0, 34))
def test_binned_values_are_right_within_their_bound(array: np.ndarray, rank: int) -> None:
    value = np.sort(array.ravel())[rank]
    found = percentile(histogram(array), 100 * rank / 34)
    assert found == pytest.approx(float(value), rel=2.0**-11, abs=1e-35)


def test_small_whole_numbers_are_exact_in_wide_dtypes() -> None:
    array = np.arange(-4096, 4097)
    for dtype in ("int32", "int64", "float32", "float64"):
        np.testing.assert_array_equal(histogram(array.astype(dtype)).values, array)


def test_nan_and_infinite_voxels_are_counted_apart() -> None:
    h = histogram(np.array([[np.nan, 1.0, -np.inf, 1e300, -0.0, 0.0]]))
    assert (h.n_invalid, h.n) == (2, 4)
    assert h.keys[0] == 0
    assert h.counts.tolist() == [2, 1, 1]


def test_a_mask_chooses_the_voxels_of_every_channel() -> None:
    image = np.arange(8, dtype=np.uint16).reshape(2, 2, 2)
    mask = np.array([[True, False], [False, False]])
    assert histogram(image, mask).keys.tolist() == [0, 4]


@given(st.sampled_from(EXACT + BINNED).flatmap(arrays))
def test_a_histogram_survives_json(array: np.ndarray) -> None:
    h = histogram(array)
    assert Histogram.from_json(json.loads(json.dumps(h.to_json()))) == h


@given(hnp.arrays(np.uint8, (200,)))
def test_percentile_normalisation_sends_the_percentiles_to_one(array: np.ndarray) -> None:
    offset, scale = normalisation(histogram(array), "percentile")
    low, high = np.percentile(array, [1, 99])
    if low < high:
        np.testing.assert_allclose((np.array([low, high]) - offset) / scale, [-1, 1], atol=1e-9)


def test_a_constant_volume_is_normalised_to_zero() -> None:
    array = np.full((1, 4, 4), 7, np.int32)
    for method in ("percentile", "zscore"):
        assert normalisation(histogram(array), method) == (7.0, 1.0)
        assert not normalise(array, *normalisation(histogram(array), method)).any()


def test_a_few_bright_voxels_on_empty_ground_do_not_blow_up() -> None:
    array = np.zeros((1, 100, 100), np.uint8)
    array[0, 0, 0] = 255
    assert np.abs(normalise(array, *normalisation(histogram(array), "percentile"))).max() == 1


def test_wide_integers_keep_their_contrast_when_normalised() -> None:
    array = np.array([4_000_000_000, 4_000_000_001], np.uint32)
    result = normalise(array, 4_000_000_000.0, 1.0)
    assert result.dtype == np.float32
    assert result.tolist() == [0, 1]


def test_statistics_of_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="at least one valid voxel"):
        normalisation(histogram(np.full((3, 3), np.nan)), "percentile")
    with pytest.raises(InputError, match="percentile, zscore or none"):
        normalisation(histogram(np.ones((3, 3))), "median")
