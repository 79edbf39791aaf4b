"""Image, target and weight move together, and only the image changes its values."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetflow.nn.augment import Augmentation, augment

GEOMETRY = Augmentation(flips=True, turns=True)


@given(st.integers(0, 10_000), st.sampled_from([(8, 8), (6, 8), (5, 8, 8), (5, 6, 8)]), st.integers(0, 2))
def test_target_and_weight_stay_in_the_middle_of_the_image(seed: int, shape: tuple[int, ...], margin: int) -> None:
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    middle = image[0][tuple(slice(margin, n - margin) for n in shape)]
    result = augment(image, middle, middle * 2, GEOMETRY, np.random.default_rng(seed))
    new_image, target, weight = result
    assert new_image.shape == image.shape
    assert np.array_equal(new_image[0][tuple(slice(margin, n - margin) for n in shape)], target)
    assert np.array_equal(target * 2, weight)
    assert np.array_equal(np.sort(new_image, None), np.sort(image, None))


@pytest.mark.parametrize(("shape", "n"), [((4, 4), 8), ((3, 4), 4), ((3, 4, 4), 16), ((2, 3, 4), 8)])
def test_every_orientation_of_the_shape_is_met(shape: tuple[int, ...], n: int) -> None:
    image = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    rngs = [np.random.default_rng(seed) for seed in range(300)]
    assert len({augment(image, image, image, GEOMETRY, rng)[0].tobytes() for rng in rngs}) == n


def test_multilabel_masks_turn_in_the_plane() -> None:
    image = np.random.default_rng(0).random((2, 6, 6), np.float32)
    target = image.copy()
    for seed in range(20):
        new_image, new_target, _ = augment(image, target, target, GEOMETRY, np.random.default_rng(seed))
        assert np.array_equal(new_image, new_target)


@given(st.integers(0, 1000))
def test_grey_values_keep_their_order_under_brightness_and_contrast(seed: int) -> None:
    image = np.random.default_rng(seed).random((1, 6, 6), np.float32)
    how = Augmentation(flips=False, turns=False, brightness=0.5, contrast=0.5)
    target = np.zeros((6, 6), np.uint8)
    result, same, _ = augment(image, target, target, how, np.random.default_rng(seed))
    slope = np.polyfit(image.ravel(), result.ravel(), 1)
    assert slope[0] > 0
    assert np.allclose(np.polyval(slope, image.ravel()), result.ravel(), atol=1e-3)
    assert np.array_equal(same, target)


def test_noise_is_new_on_each_voxel_and_the_given_image_stays() -> None:
    image = np.zeros((1, 32, 32), np.float32)
    how = Augmentation(flips=False, turns=False, noise=1.0)
    result, _, _ = augment(image, image[0], image[0], how, np.random.default_rng(0))
    assert 0 < result.std() < 1.2
    assert not image.any()


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_blur_is_drawn_last_and_changes_nothing_else(noise: float) -> None:
    image = np.random.default_rng(5).random((2, 4, 24, 24), np.float32)
    clean_how = Augmentation(brightness=0.5, contrast=0.5)
    how = dataclasses.replace(clean_how, noise=noise)
    blurring = dataclasses.replace(how, blur=20.0)
    for seed in range(5):
        (clean, *_), (sharp, truth, _), (blurred, same_truth, _) = (
            augment(image, image, image, one, np.random.default_rng(seed)) for one in (clean_how, how, blurring)
        )
        assert np.array_equal(truth, same_truth)
        smooth = blurred - (sharp - clean)
        assert smooth.std() < 0.6 * clean.std(), "the image is blurred, the noise is not"
        assert np.allclose(smooth.mean((-2, -1)), clean.mean((-2, -1)), atol=0.1), "planes ran into each other"


def test_blur_reaches_up_to_its_deviation_in_the_plane() -> None:
    image = np.zeros((1, 3, 41, 41), np.float32)
    image[0, 1, 20, 20] = 1
    how = Augmentation(flips=False, turns=False, blur=2.0)
    distance = np.arange(-20, 21)
    widths = []
    for seed in range(60):
        result, _, _ = augment(image, image, image, how, np.random.default_rng(seed))
        assert result.dtype == np.float32
        assert not result[0, [0, 2]].any()
        for axis in (0, 1):
            widths.append(np.sqrt((result[0, 1].sum(axis) * distance**2).sum()))
    assert 1.7 < max(widths) < 2.01
    assert min(widths) < 0.3


def test_a_blur_that_nobody_could_see_is_left_out() -> None:
    image = np.random.default_rng(5).random((1, 12, 12), np.float32)
    still = Augmentation(flips=False, turns=False)
    for seed in range(20):
        sharp, blurred = (
            augment(image, image, image, how, np.random.default_rng(seed))[0]
            for how in (still, dataclasses.replace(still, blur=0.099))
        )
        assert np.array_equal(sharp, blurred)
