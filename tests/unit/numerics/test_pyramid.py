"""Coarser levels: means and modes of windows, the same in blocks as in the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetflow.numerics.pyramid import average_pool, mode_pool


def windows(shape: tuple[int, ...], factors: tuple[int, ...]):
    coarse = tuple(-(-n // f) for n, f in zip(shape, factors, strict=True))
    for index in np.ndindex(coarse):
        yield index, tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factors, strict=True))


@st.composite
def volumes(draw: st.DrawFn, dtype: str) -> tuple[np.ndarray, tuple[int, ...]]:
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))
    array = draw(hnp.arrays(dtype, shape))
    return array, draw(st.tuples(*[st.integers(1, 3)] * len(shape)))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32"])
def test_integers_are_averaged_and_rounded_to_the_nearest(dtype: str) -> None:
    @given(volumes(dtype))
    def check(case: tuple[np.ndarray, tuple[int, ...]]) -> None:
        array, factors = case
        found = average_pool(np.stack([array, array]), factors)
        assert found.dtype == array.dtype
        for index, window in windows(array.shape, factors):
            mean = array[window].astype(float).mean()
            assert found[(0, *index)] == found[(1, *index)] == np.floor(mean + 0.5)

    check()


@given(hnp.arrays(np.float32, (1, 5, 4), elements=st.floats(-100, 100, width=32)))
def test_floats_are_averaged(array: np.ndarray) -> None:
    found = average_pool(array, (2, 3))
    assert found.dtype == np.float32
    for index, window in windows((5, 4), (2, 3)):
        assert found[0][index] == pytest.approx(array[0][window].mean(), abs=1e-4)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "uint64"])
def test_labels_take_the_most_frequent_and_of_a_tie_the_smallest(dtype: str) -> None:
    @given(volumes(dtype))
    def check(case: tuple[np.ndarray, tuple[int, ...]]) -> None:
        labels, factors = case
        found = mode_pool(labels, factors)
        assert found.dtype == labels.dtype
        for index, window in windows(labels.shape, factors):
            values, counts = np.unique(labels[window], return_counts=True)
            assert found[index] == values[np.argmax(counts)]

    check()


@given(hnp.arrays(np.uint8, (9, 7), elements=st.integers(0, 3)), st.integers(0, 4))
def test_blocks_that_start_on_a_window_give_the_level_of_the_whole(array: np.ndarray, cut: int) -> None:
    parts = array[: 2 * cut], array[2 * cut :]
    modes = [mode_pool(part, (2, 2)) for part in parts]
    means = [average_pool(part[None], (2, 2)) for part in parts]
    np.testing.assert_array_equal(np.concatenate(modes), mode_pool(array, (2, 2)))
    np.testing.assert_array_equal(np.concatenate(means, axis=1), average_pool(array[None], (2, 2)))


def test_more_than_four_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="at most the 4 axes"):
        mode_pool(np.zeros((1,) * 5, np.uint8), (1,) * 5)
