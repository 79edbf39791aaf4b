"""Tiles leave no trace: blockwise prediction equals one forward pass over the whole mirrored array."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from unetflow.architecture import UNetSpec
from unetflow.geometry import Box
from unetflow.nn.predict import Predictor
from unetflow.nn.unet import UNet
from unetflow.stages.layout import choose_tile
from unetflow.stages.predict import predict_box
from unetflow.storage.volume import open_volume

NETWORKS: dict[str, dict[str, Any]] = {
    "2-D unpadded": {"dims": 2, "depth": 2},
    "2-D padded": {"dims": 2, "depth": 2, "padding": "same"},
    "2-D Keras": {"dims": 2, "depth": 2, "padding": "same", "upsample": "resize", "extra_conv": 2, "head": "sigmoid",
                  "out_channels": 1},
    "2-D unpadded, resized": {"dims": 2, "depth": 2, "upsample": "resize", "skip": "sum"},
    "2-D layer norm": {"dims": 2, "depth": 1, "norm": "layer"},
    "3-D": {"dims": 3, "depth": 1},
    "3-D padded, anisotropic": {
        "dims": 3, "depth": 2, "padding": "same", "pool": [[1, 2, 2], [2, 2, 2]],
        "kernel": [[1, 3, 3], 3 * [3], 3 * [3]],
    },
}  # fmt: skip


_COUNTER = itertools.count()


def network(name: str) -> Predictor:
    torch.manual_seed(1)
    return Predictor(UNet(UNetSpec.build(base_channels=4, **NETWORKS[name])))


def whole(predictor: Predictor, volume: Any, tta: bool) -> np.ndarray[Any, Any]:
    """One forward pass over the whole volume with its mirrored surroundings, plane by plane."""
    spec = predictor.spec
    n_lead = volume.ndim - spec.dims
    shape = volume.shape[n_lead:]
    stride = spec.total_stride
    kept = tuple(-(-n // s) * s for n, s in zip(shape, stride, strict=True))
    before = (spec.symmetric_halo if tta else spec.halo)[0]
    length = spec.tile_input(kept, symmetric=tta)
    planes = []
    for lead in np.ndindex(*volume.shape[:n_lead]):
        start = (*lead, *(-b for b in before))
        stop = (*(i + 1 for i in lead), *(n - b for n, b in zip(length, before, strict=True)))
        image = (volume.read_mirrored(Box(start, stop)).astype(np.float32) - 128) / 100
        p = predictor.probabilities(image.reshape(image.shape[0], *length), tta=tta)
        inner = tuple(
            slice(b - m, b - m + n) for b, m, n in zip(before, spec.margin, shape, strict=True)
        )
        planes.append(p[(slice(None), *inner)])
    return np.stack(planes, 1).reshape(len(planes[0]), *volume.shape)


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=3, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_box_and_tile_gives_the_probabilities_of_one_forward_pass(
    name: str, tmp_path: Path, data: st.DataObject
) -> None:
    predictor = network(name)
    spec = predictor.spec
    longest = 70 if spec.dims == 2 else 22
    n_lead = data.draw(st.integers(0, 1)) if spec.dims == 2 else 0
    shape = (2,) * n_lead + tuple(data.draw(st.integers(1, longest)) for _ in range(spec.dims))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    path = tmp_path / f"{next(_COUNTER)}.zarr"
    zarr.save_array(path, rng.integers(0, 255, shape).astype(np.uint8))
    volume = open_volume(str(path))
    tile = (1,) * n_lead + tuple(s * data.draw(st.integers(1, 6)) for s in spec.total_stride)
    ends = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in shape]
    box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
    tta = data.draw(st.booleans()) and name in ("2-D Keras", "2-D unpadded, resized")
    p, _ = predict_box(predictor, spec, volume, box, tile, ([128.0], [100.0]), tta=tta)
    expected = whole(predictor, volume, tta)[(slice(None), *box.slices)]
    assert p.std() > 1e-4 or p.size < 200, "the network says the same everywhere"
    assert np.abs(p - expected).max() <= 1e-5


@given(
    memory=st.integers(10**7, 10**9),
    shape=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    depth=st.integers(1, 4),
)
def test_a_tile_fits_memory_and_stands_on_the_stride(memory: int, shape: tuple[int, int], depth: int) -> None:
    spec = UNetSpec.build(depth=depth, base_channels=8)
    tile = choose_tile(spec, shape, memory)
    assert all(t % s == 0 and t <= -(-n // s) * s for t, s, n in zip(tile, spec.total_stride, shape, strict=True))
    assert spec.activation_bytes(spec.tile_input(tile)) <= memory
