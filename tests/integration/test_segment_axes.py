"""Channels, times, planes of depth 1, volumes smaller than a tile: each voxel gets what the network says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from project import SCALE, make_model

from unetflow.geometry import Box
from unetflow.nn.predict import Predictor
from unetflow.settings import make_settings
from unetflow.stages.segment import segment
from unetflow.storage.volume import Volume, open_volume


def expected(predictor: Predictor, volume: Volume, place: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """One forward pass over a whole plane, or volume, with its mirrored surroundings."""
    spec = predictor.spec
    lead = len(place)
    shape = volume.shape[lead:]
    kept = [-(-n // s) * s for n, s in zip(shape, spec.total_stride, strict=True)]
    length, before = spec.tile_input(kept), spec.halo[0]
    start = (*place, *(-b for b in before))
    stop = (*(i + 1 for i in place), *(n - b for n, b in zip(length, before, strict=True)))
    raw = volume.read_mirrored(Box(start, stop)).reshape(volume.n_channels, *length)
    p = predictor.probabilities((raw.astype(np.float32) - 128) / np.float32(SCALE))
    return p[(slice(None), *(slice(b - m, b - m + n) for b, m, n in zip(before, spec.margin, shape, strict=True)))]


CASES: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("yx", (37, 61), {}),
    ("yx", (3, 5), {"padding": "same"}),
    ("cyx", (2, 37, 61), {"in_channels": 2}),
    ("zyx", (3, 20, 33), {}),
    ("czyx", (2, 3, 20, 33), {"in_channels": 2, "padding": "same"}),
    ("tczyx", (2, 2, 3, 20, 33), {"in_channels": 2}),
    ("tyx", (3, 20, 33), {}),
    ("zyx", (1, 40, 40), {"dims": 3, "depth": 1}),
    ("tzyx", (2, 9, 21, 14), {"dims": 3, "depth": 1}),
    ("czyx", (2, 13, 7, 30), {"dims": 3, "depth": 1, "in_channels": 2, "padding": "same"}),
]


@pytest.mark.parametrize(("axes", "shape", "numbers"), CASES, ids=[f"{a}-{n.get('dims', 2)}" for a, _, n in CASES])
@pytest.mark.parametrize("tile", [False, True], ids=["planned", "small"])
def test_each_voxel_gets_what_one_forward_pass_says(
    tmp_path: Path, axes: str, shape: tuple[int, ...], numbers: dict[str, Any], tile: bool
) -> None:
    spatial = axes.replace("t", "").replace("c", "")
    predictor = make_model(tmp_path / "model.safetensors", spatial, **numbers)
    raw = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    zarr.save_array(tmp_path / "raw.zarr", raw)
    dims = predictor.spec.dims
    wish = [1] * (len(spatial) - dims) + [8] * dims
    chosen: dict[str, Any] = {"dtype": "float32", **({"tile": wish, "shard": wish, "chunk": wish} if tile else {})}
    settings = make_settings({"segment": chosen, "model": {"dims": dims}})
    out = tmp_path / "out.zarr"
    found = segment(settings, str(tmp_path / "raw.zarr"), model=str(tmp_path), out=str(out), axes=axes)
    assert found["quarantined"] == []
    volume = open_volume(str(tmp_path / "raw.zarr"), axes=axes)
    p = open_volume(str(out)).read(volume.box)
    classes = open_volume(str(out / "labels" / "classes")).read(volume.box)[0]
    assert p.shape == (3, *volume.shape)
    for place in np.ndindex(*volume.shape[: volume.ndim - dims]):
        here = expected(predictor, volume, tuple(int(i) for i in place))
        assert np.abs(p[(slice(None), *place)] - here).max() <= 1e-5
    assert np.array_equal(classes, p.argmax(0))
    stored = zarr.open_group(out).attrs["ome"]["multiscales"][0]["axes"]
    assert [axis["name"] for axis in stored] == [a for a in "tczyx" if a in axes or a == "c"]
