"""A network run tile by tile says what it says in one pass over the whole image."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from unetflow.architecture import Shape, UNetSpec
from unetflow.nn.predict import Predictor
from unetflow.nn.unet import UNet

CASES: dict[str, dict[str, Any]] = {
    "2-D": {"depth": 2},
    "deep": {"depth": 3},
    "anisotropic": {"depth": 2, "pool": [(1, 2), (3, 2)], "kernel": [(1, 3), (3, 3), (5, 1)]},
    "keras": {"depth": 2, "head": "sigmoid", "out_channels": 1, "extra_conv": 2},
    "sum and layer norm": {"depth": 2, "skip": "sum", "norm": "layer"},
    "batch norm": {"depth": 2, "norm": "batch"},
    "3-D": {"dims": 3, "depth": 1},
    "3-D anisotropic": {"dims": 3, "depth": 2, "pool": [(1, 2, 2), (2, 1, 1)], "kernel": [(1, 3, 3)] * 3},
}


def tile_by_tile(
    predictor: Predictor, image_CS: npt.NDArray[np.float32], origin: Shape, n_tiles: int, *, tta: bool
) -> None:
    """Compare tiles that start at ``origin`` and on with one pass over all of the image."""
    spec = predictor.spec
    before, _ = spec.symmetric_halo if tta else spec.halo
    stride, margin = spec.total_stride, spec.margin
    whole = predictor.probabilities(image_CS, tta=tta)
    for kept in (stride,) if tta else (stride, tuple(2 * s for s in stride)):
        shape = spec.tile_input(kept, symmetric=tta)
        corners = [(i,) * spec.dims for i in range(n_tiles)]
        for index in corners if tta else itertools.product(range(n_tiles), repeat=spec.dims):
            first = [o + i * s for o, i, s in zip(origin, index, stride, strict=True)]
            start = [a - b for a, b in zip(first, before, strict=True)]
            part = image_CS[(slice(None), *(slice(a, a + n) for a, n in zip(start, shape, strict=True)))]
            assert part.shape[1:] == shape
            tile = predictor.probabilities(part, tta=tta)
            skip = [b - m for b, m in zip(before, margin, strict=True)]
            mine = tile[(slice(None), *(slice(a, a + k) for a, k in zip(skip, kept, strict=True)))]
            at = [a - m for a, m in zip(first, margin, strict=True)]
            there = whole[(slice(None), *(slice(a, a + k) for a, k in zip(at, kept, strict=True)))]
            assert mine.shape[1:] == tuple(kept)
            assert np.abs(mine - there).max() < 1e-5


@pytest.mark.parametrize("upsample", ["transpose", "resize"])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tta", [False, True], ids=["once", "tta"])
def test_tiles_equal_the_whole(name: str, padding: str, upsample: str, tta: bool) -> None:
    spec = UNetSpec.build(**{"base_channels": 3, "padding": padding, "upsample": upsample, **CASES[name]})
    torch.manual_seed(3)
    model = UNet(spec)
    for buffer in model.buffers():  # statistics as after training
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    before, after = spec.symmetric_halo if tta else spec.halo
    stride = spec.total_stride
    # The tiles' own halo lies inside the image, which starts where whole windows start.
    kept = tuple(3 * s for s in stride)
    origin = tuple(m + -(-(b - m) // s) * s for b, m, s in zip(before, spec.margin, stride, strict=True))
    shape = spec.round_up([o + k + a for o, k, a in zip(origin, kept, after, strict=True)])
    image = np.random.default_rng(5).standard_normal((1, *shape), np.float32)
    tile_by_tile(Predictor(model), image, origin, 2, tta=tta)


def test_a_halo_one_stride_shorter_leaves_a_trace() -> None:
    torch.manual_seed(0)
    spec = UNetSpec.build(depth=2, base_channels=3, padding="same")
    predictor = Predictor(UNet(spec))
    before, after = spec.halo
    n, stride = 2 * before[0] + 4 * after[0], spec.total_stride[0]
    image = np.random.default_rng(0).standard_normal((1, n, n), np.float32)
    whole = predictor.probabilities(image)
    first, short = 2 * before[0], before[0] - stride
    start = first - short
    tile = predictor.probabilities(image[:, start:, start:])[:, short:, short:]
    assert np.abs(tile - whole[:, first:, first:]).max() > 1e-5
