"""The warping error forgives shifts of borders and counts what changes topology."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from unetflow.numerics import warping
from unetflow.numerics.warping import warping_error


def blobs(seed: int, share: float = 0.5) -> np.ndarray:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((24, 30)), 2)
    return noise > np.quantile(noise, share)


def topology(image: np.ndarray) -> tuple[int, int]:
    """Count 4-connected pieces and 8-connected holes of an image with background around it."""
    padded = np.pad(image, 1)
    return int(ndimage.label(padded)[1]), int(ndimage.label(~padded, np.ones((3, 3)))[1])


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_warping_keeps_the_topology_and_never_exceeds_the_pixel_error(a: int, b: int) -> None:
    truth, seg = blobs(a), blobs(b, 0.6)
    warped = np.pad(truth.astype(np.uint8), 1)
    n = warping._warp(warped, np.pad(seg.astype(np.uint8), 1), warping._SIMPLE)
    warped = warped[1:-1, 1:-1].astype(bool)
    assert topology(warped) == topology(truth)
    assert n == (warped != seg).sum() == round(warping_error(seg, truth) * truth.size)
    assert n <= (truth != seg).sum()
    if topology(truth) != topology(seg):
        assert n > 0


def test_a_shifted_or_swollen_object_is_no_error() -> None:
    truth = np.zeros((40, 40), np.uint8)
    truth[8:20, 8:20] = 1
    assert warping_error(np.roll(truth, (5, 3), (0, 1)), truth) == 0
    assert warping_error(ndimage.binary_dilation(truth, iterations=4), truth) == 0
    assert warping_error(ndimage.binary_erosion(truth, iterations=4), truth) == 0


def test_a_merge_a_split_and_a_lost_object_are_errors() -> None:
    truth = np.zeros((20, 30), np.uint8)
    truth[4:16, 4:14] = truth[4:16, 15:25] = 1
    merged = truth.copy()
    merged[8, 14] = 1
    assert warping_error(merged, truth) == 1 / truth.size
    assert warping_error(truth, merged) == 1 / truth.size
    lost = truth.copy()
    lost[:, 15:] = 0
    # One pixel of the lost object must stay.
    assert warping_error(lost, truth) == 1 / truth.size


def test_pixels_that_are_not_valid_do_not_count() -> None:
    truth = np.zeros((10, 10), np.uint8)
    seg = truth.copy()
    seg[2, 2] = seg[7, 7] = 1
    valid = np.ones(truth.shape, bool)
    valid[:5] = False
    assert warping_error(seg, truth) == 2 / 100
    assert warping_error(seg, truth, valid) == 1 / 50
    assert np.isnan(warping_error(seg, truth, np.zeros_like(valid)))


def test_equal_sections_have_no_error() -> None:
    assert warping_error(blobs(1), blobs(1)) == 0


def test_very_large_sections_are_not_scored() -> None:
    huge = np.broadcast_to(np.uint8(0), (8193, 8192))
    assert warping_error(huge, huge) is None


def test_a_volume_is_refused() -> None:
    with pytest.raises(ValueError, match="two sections"):
        warping_error(np.zeros((2, 3, 3)), np.zeros((2, 3, 3)))
