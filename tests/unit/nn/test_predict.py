"""Probabilities are probabilities, and symmetric where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.nn.device import pick_device, pick_precision
from unetflow.nn.predict import Predictor
from unetflow.nn.symmetry import symmetries
from unetflow.nn.unet import UNet


def build(**numbers: Any) -> Predictor:
    torch.manual_seed(0)
    return Predictor(UNet(UNetSpec.build(**{"depth": 1, "base_channels": 4, "padding": "same", **numbers})))


def draw(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def test_softmax_probabilities_add_to_one() -> None:
    p = build(out_channels=3).probabilities(draw(1, 12, 14))
    assert p.shape == (3, 12, 14) and p.dtype == np.float32
    assert np.allclose(p.sum(0), 1, atol=1e-6)


def test_sigmoid_gives_one_probability_a_channel() -> None:
    p = build(head="sigmoid", out_channels=2, dims=3).probabilities(draw(1, 6, 4, 8))
    assert p.shape == (2, 6, 4, 8)
    assert 0 < p.min() < p.max() < 1


def test_a_batch_holds_the_same_answers_as_its_tiles() -> None:
    predictor = build(in_channels=2)
    images = draw(3, 2, 8, 8)
    batch = predictor.probabilities_batch(images)
    for image, p in zip(images, batch, strict=True):
        assert np.allclose(predictor.probabilities(image), p, atol=1e-6)


@pytest.mark.parametrize("n_images", [0, 1, 4, 7])
@pytest.mark.parametrize("tta", [False, True])
def test_batches_give_each_tile_its_answer_in_order(n_images: int, tta: bool) -> None:
    predictor = build()
    images = draw(n_images, 1, 8, 8)
    taken = 0

    def source() -> Iterator[np.ndarray[Any, np.dtype[np.float32]]]:
        nonlocal taken
        for image in images:
            taken += 1
            yield image

    found = []
    for p in predictor._each_in_batches(source(), tta, 3):
        found.append(p)
        assert taken <= len(found) + 2 * 3, "more than two batches are on their way"
    assert len(found) == n_images
    for image, p in zip(images, found, strict=True):
        assert np.allclose(predictor.probabilities(image, tta=tta), p, atol=1e-6)


def test_there_are_8_symmetries_in_the_plane_and_16_in_space() -> None:
    assert len(set(symmetries(UNetSpec.build(dims=2)))) == 8
    assert len(set(symmetries(UNetSpec.build(dims=3, depth=1, pool=[(1, 2, 2)])))) == 16
    oblong = UNetSpec.build(dims=2, depth=1, pool=[(1, 2)])
    assert len(symmetries(oblong)) == 4


@pytest.mark.parametrize("dims", [2, 3])
def test_the_average_turns_with_the_image(dims: int) -> None:
    predictor = build(dims=dims, upsample="resize")
    image = draw(1, *(8,) * dims)
    p = predictor.probabilities(image, tta=True)
    for axis in range(-dims, 0):
        flipped = predictor.probabilities(np.flip(image, axis).copy(), tta=True)
        assert np.allclose(flipped, np.flip(p, axis), atol=1e-6)
    turned = predictor.probabilities(np.rot90(image, 1, (-2, -1)).copy(), tta=True)
    assert np.allclose(turned, np.rot90(p, 1, (-2, -1)), atol=1e-6)
    assert not np.allclose(predictor.probabilities(image), p, atol=1e-4)


def test_an_oblong_tile_is_averaged_over_transpositions_too() -> None:
    predictor = build()
    image = draw(1, 8, 12)
    p = predictor.probabilities(image, tta=True)
    swapped = predictor.probabilities(image.swapaxes(1, 2), tta=True)
    assert np.allclose(swapped, p.swapaxes(1, 2), atol=1e-6)


def test_prediction_is_without_dropout_and_repeats_bit_by_bit() -> None:
    predictor = build(dropout=0.5)
    image = draw(1, 16, 16)
    assert np.array_equal(predictor.probabilities(image), predictor.probabilities(image))


def test_unknown_devices_and_precisions_are_refused() -> None:
    with pytest.raises(InputError, match="use auto"):
        pick_device("gpu7")
    with pytest.raises(InputError, match="use auto"):
        pick_device("cuda:99")
    with pytest.raises(InputError, match="use auto"):
        pick_precision("float8", torch.device("cpu"))


def test_the_processor_computes_in_float32_unless_told_otherwise() -> None:
    assert pick_precision("auto", torch.device("cpu")) == "float32"


def test_tiles_give_the_same_bits_on_any_number_of_threads() -> None:
    predictor = build(base_channels=24, depth=2)
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((1, 96, 96), np.float32) for _ in range(5)]
    before, found = torch.get_num_threads(), []
    try:
        for outside, threads in ((1, 1), (2, 1), (2, 3)):
            torch.set_num_threads(outside)
            found.append(np.stack(list(predictor.each(iter(images), threads=threads))))
            assert torch.get_num_threads() == outside
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0][0], found[0][1])
