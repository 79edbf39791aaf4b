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
from unetflow.stages.tile_runner import Kept, Loaded, TileRunner, hull
from unetflow.stages.tiles import Tiling
from unetflow.storage.chunks import ChunkCache
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
    model = UNet(UNetSpec.build(base_channels=4, **NETWORKS[name]))
    for name_of, parameter in model.named_parameters():
        if name_of.endswith("bias"):
            torch.nn.init.normal_(parameter, 0.0, 0.2)  # as after training: without, emptiness says nothing
    return Predictor(model)


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


def blockwise(
    predictor: Predictor, volume: Any, tiling: Tiling, box: Box, cache: ChunkCache
) -> np.ndarray[Any, Any]:
    """Predict a box of the domain as the predict pass does."""
    tiles = list(tiling.touching(box))
    outer = hull([tile.source for tile in tiles])
    loaded = Loaded(tiles, outer, volume.read_mirrored(outer, cache=cache), None)
    runner = TileRunner(predictor, tiling, ([128.0], [100.0]), volume.fill_value, Kept(cache, {}))
    p = np.full((predictor.spec.out_channels, *box.shape), np.nan, np.float32)
    for part, values in runner.parts(loaded, box):
        p[(slice(None), *part.relative_to(box).slices)] = values
    return p


def draw_case(data: st.DataObject, spec: UNetSpec, folder: Path) -> tuple[Any, Box, Box, tuple[int, ...]]:
    """Draw a volume, partly empty, a domain in it, a box of the domain, and a tile."""
    longest = 70 if spec.dims == 2 else 22
    n_lead = data.draw(st.integers(0, 1)) if spec.dims == 2 else 0
    shape = (2,) * n_lead + tuple(data.draw(st.integers(1, longest)) for _ in range(spec.dims))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    voxels = rng.integers(0, 255, shape).astype(np.uint8)
    voxels[..., data.draw(st.integers(1, longest)) :] = 0
    path = folder / f"{next(_COUNTER)}.zarr"
    zarr.create_array(path, shape=shape, chunks=(1,) * n_lead + (16,) * spec.dims, dtype="uint8")[...] = voxels
    tile = (1,) * n_lead + tuple(s * data.draw(st.integers(1, 6)) for s in spec.total_stride)
    domain = draw_box(data, Box.of_shape(shape))
    return open_volume(str(path)), domain, draw_box(data, domain), tile


def draw_box(data: st.DataObject, within: Box) -> Box:
    ends = [
        sorted(data.draw(st.lists(st.integers(a, b), min_size=2, max_size=2, unique=True)))
        for a, b in zip(within.start, within.stop, strict=True)
    ]
    return Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=4, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_box_and_tile_gives_the_probabilities_of_one_forward_pass(
    name: str, tmp_path: Path, data: st.DataObject
) -> None:
    predictor = network(name)
    volume, domain, box, tile = draw_case(data, predictor.spec, tmp_path)
    tta = data.draw(st.booleans()) and name in ("2-D Keras", "2-D unpadded, resized")
    p = blockwise(predictor, volume, Tiling(predictor.spec, domain, tile, tta), box, ChunkCache(10**6))
    expected = whole(predictor, volume, tta)[(slice(None), *box.slices)]
    assert expected.std() > 1e-4 or p.size < 200, "the network says the same everywhere"
    assert np.abs(p - expected).max() <= 1e-5


@pytest.mark.parametrize("name", ["2-D unpadded", "2-D padded", "3-D"])
@settings(max_examples=4, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), overlap=st.sampled_from([0.0, 0.25, 0.5]))
def test_a_blend_does_not_depend_on_the_blocks(name: str, tmp_path: Path, data: st.DataObject, overlap: float) -> None:
    predictor = network(name)
    volume, domain, box, tile = draw_case(data, predictor.spec, tmp_path)
    tiling = Tiling(predictor.spec, domain, tile, mode="blend", overlap=overlap)
    cache = ChunkCache(10**6)
    whole_domain = blockwise(predictor, volume, tiling, domain, cache)
    part = blockwise(predictor, volume, tiling, box, cache)
    assert np.array_equal(part, whole_domain[(slice(None), *box.relative_to(domain).slices)])
    if predictor.spec.padding == "valid":  # every window is exact, so is their mean
        assert np.abs(part - whole(predictor, volume, False)[(slice(None), *box.slices)]).max() <= 1e-5


@pytest.mark.parametrize("name", ["2-D unpadded", "2-D padded"])
def test_the_answer_for_emptiness_is_computed_once_and_is_that_of_the_network(name: str, tmp_path: Path) -> None:
    predictor = network(name)
    zarr.create_array(tmp_path / "empty.zarr", shape=(96, 96), chunks=(16, 16), dtype="uint8")
    volume = open_volume(str(tmp_path / "empty.zarr"))
    tiling = Tiling(predictor.spec, volume.box, (16, 16))
    tiles = list(tiling.touching(volume.box))
    outer = hull([tile.source for tile in tiles])
    cache = ChunkCache(10**6)
    runner = TileRunner(predictor, tiling, ([128.0], [100.0]), volume.fill_value, Kept(cache, {}))
    parts = dict(runner.parts(Loaded(tiles, outer, volume.read_mirrored(outer, cache=cache), None), volume.box))
    assert runner.n_passes == 1
    assert len(parts) == 36
    expected = whole(predictor, volume, False)
    for part, p in parts.items():
        assert np.abs(p - expected[(slice(None), *part.slices)]).max() <= 1e-5
    assert expected[0].std() > 1e-6, "where nothing is, the place within the stride still shows"
