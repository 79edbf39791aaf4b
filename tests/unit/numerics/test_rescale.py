"""Boxes of a rescaled array have the bits of the whole one, which is what plain integrals over windows say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetflow.geometry import Box, mirror_indices
from unetflow.numerics.rescale import reach, rescale, rescaled_length, source_box

RATIOS = [1.0, 2.0, 0.5, 3.0, round(1 / 3, 9), 8.0, 0.125, 1.07, 0.7, 2.6, round(0.05 / 0.012, 9)]


def plain(array: np.ndarray, axis: int, ratio: float) -> np.ndarray:
    """Average over windows one by one: differences of the integral of the mirrored, stepwise array."""
    n, rim = array.shape[axis], 20
    steps = np.moveaxis(array, axis, 0).astype(np.float64)[mirror_indices(-rim, n + rim, n)]
    integral = np.concatenate([np.zeros_like(steps[:1]), np.cumsum(steps, 0)])

    def up_to(edge: float) -> np.ndarray:
        whole = int(np.floor(edge)) + rim
        return integral[whole] + (edge + rim - whole) * steps[min(whole, len(steps) - 1)]

    half = max(1.0, ratio) / 2
    centres = (np.arange(rescaled_length(n, ratio)) + 0.5) * ratio
    return np.moveaxis(np.stack([(up_to(c + half) - up_to(c - half)) / (2 * half) for c in centres]), 0, axis)


def read(array: np.ndarray, box: Box, ratio: Any, rim: int = 0) -> np.ndarray:
    """Rescale a box of ``(C, ...)`` from the mirrored source, and from some more of it where that is wanted."""
    place = source_box(box, ratio).grow([rim] * box.ndim, [rim] * box.ndim)
    for axis, (a, b) in enumerate(zip(place.start, place.stop, strict=True)):
        array = array.take(mirror_indices(a, b, array.shape[axis + 1]), axis=axis + 1)
    return rescale(array, place, box, ratio)


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, tuple[float, ...], Box]:
    n_axes = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 30 if n_axes < 3 else 12)) for _ in range(n_axes))
    ratio = tuple(draw(st.sampled_from(RATIOS)) for _ in shape)
    dtype = draw(st.sampled_from(["uint8", "uint16", "int32", "float32", "float64"]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    array = rng.integers(0, 200, (draw(st.integers(1, 2)), *shape)).astype(dtype)
    target = tuple(rescaled_length(n, r) for n, r in zip(shape, ratio, strict=True))
    start = tuple(draw(st.integers(0, n - 1)) for n in target)
    stop = tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, target, strict=True))
    return array, ratio, Box(start, stop)


@settings(max_examples=60)
@given(cases(), st.integers(0, 3))
def test_any_box_has_the_bits_of_the_whole_and_these_are_means_over_windows(case: Any, rim: int) -> None:
    array, ratio, box = case
    whole = Box.of_shape([rescaled_length(n, r) for n, r in zip(array.shape[1:], ratio, strict=True)])
    expected = array
    for axis, r in enumerate(ratio):
        expected = plain(expected, axis + 1, r)
    found = read(array, whole, ratio)
    assert found.dtype == np.result_type(array.dtype, np.float32)
    assert np.abs(found - expected).max() < 2e-3  # of 200; numbers of ratios end at the ninth digit
    assert read(array, box, ratio, rim).tobytes() == found[(slice(None), *box.slices)].tobytes()


@pytest.mark.parametrize("ratio", [0.5, 0.125, 0.7])
def test_finer_targets_are_linear_interpolation(ratio: float) -> None:
    line = np.random.default_rng(0).random(20).astype(np.float32)
    n = rescaled_length(20, ratio)
    places = (np.arange(n) + 0.5) * ratio - 0.5
    inside = (places >= 0) & (places <= 19)
    expected = np.interp(places[inside], np.arange(20), line)
    assert np.abs(read(line[None], Box((0,), (n,)), [ratio])[0, inside] - expected).max() < 1e-6


def test_coarser_targets_are_the_means_of_what_they_cover() -> None:
    image = np.random.default_rng(1).integers(0, 255, (1, 12, 20), np.uint8)
    expected = image.reshape(1, 4, 3, 10, 2).mean((2, 4))
    assert np.abs(read(image, Box((0, 0), (4, 10)), [3.0, 2.0]) - expected).max() < 1e-4


@pytest.mark.parametrize("value", [0.0, 0.1, 7.0, 1e-30])
@pytest.mark.parametrize("ratio", RATIOS)
def test_what_is_the_same_everywhere_stays_the_same_number(value: float, ratio: float) -> None:
    found = read(np.full((1, 9, 11), value, np.float32), Box((0, 0), (3, 2)), [ratio, ratio])
    assert (found == np.float32(value)).all()


def test_a_place_that_holds_too_little_is_refused() -> None:
    assert source_box(Box((0,), (2,)), [0.5]) == Box((-1,), (2,))
    with pytest.raises(ValueError, match=r"made of the source's -1:2, got 0:3"):
        rescale(np.zeros((1, 3)), Box((0,), (3,)), Box((0,), (2,)), [0.5])


def test_far_away_voxels_weigh_as_near_ones_do() -> None:
    """Whole periods of a ratio of thirds bring back the same windows, a hundred million voxels on."""
    far = 3 * 10**8
    for ratio in (1 / 3, 2.5):
        low, high = reach(np.arange(6), ratio)
        moved = reach(np.arange(6) + far, ratio)
        assert (moved[0] - round(far * ratio) == low).all()
        assert (moved[1] - round(far * ratio) == high).all()
