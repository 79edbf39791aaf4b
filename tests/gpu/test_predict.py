"""On a GPU: what batches, arithmetic and a dask-cuda cluster may change, and what they may not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from unetflow.architecture import UNetSpec
from unetflow.nn.predict import Predictor
from unetflow.nn.unet import UNet

pytestmark = pytest.mark.gpu


def build(precision: str, device: str = "cuda") -> Predictor:
    torch.manual_seed(0)
    return Predictor(UNet(UNetSpec.build(depth=3, base_channels=32, padding="same")), device, precision)


def tiles(n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((n, 1, 256, 256), np.float32)


def test_float32_on_a_gpu_is_that_of_a_processor() -> None:
    [here] = build("float32", "cpu").each(tiles(1))
    [there] = build("float32").each(tiles(1))
    assert np.abs(here - there).max() <= 1e-5


def test_bf16_differs_by_at_most_three_levels_on_one_voxel_of_a_hundred() -> None:
    [exact] = build("float32").each(tiles(1))
    [quick] = build("bf16").each(tiles(1))
    levels = np.abs(np.rint(exact * 255) - np.rint(quick * 255))
    assert (levels > 3).mean() <= 0.01


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_tile_does_not_depend_on_the_company_in_its_batch(precision: str) -> None:
    predictor = build(precision)
    images = tiles(7)
    together = list(predictor.each(iter(images), batch=4))
    for image, p in zip(images, together, strict=True):
        [alone] = predictor.each([image], batch=4)
        assert np.array_equal(alone, p)
