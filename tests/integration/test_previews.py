"""Pictures of a run: there, the same every time, right in each kind of labels, and cheap on a large volume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import project
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unetflow.geometry import Box
from unetflow.numerics.elastic import displacement
from unetflow.stages.panels import Panels, grey, overlay
from unetflow.stages.prepare import prepare
from unetflow.stages.previews import _crop_around, _source_positions


def _pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def test_prepare_leaves_pictures_that_are_the_same_in_every_run(tmp_path: Path) -> None:
    project.make_volume(tmp_path)
    old = tmp_path / "other" / "previews" / "patch-0099.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of an earlier run")
    for run in ("run", "other"):
        result = prepare(project.settings_in(tmp_path, run))
        assert [Path(path).name for path in result["previews"]] == [
            "weights-0.png", *(f"patch-{n:04d}.png" for n in range(4))
        ]  # fmt: skip
    first = _pictures(tmp_path / "run" / "previews")
    assert len(first) == 5
    assert first == _pictures(tmp_path / "other" / "previews")
    for path in (tmp_path / "run" / "previews").glob("*.png"):
        with Image.open(path) as picture:
            assert not {"Software", "date:create", "Creation Time"} & picture.info.keys()
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50, "an empty picture"


@pytest.mark.parametrize("kind", ["classes", "multilabel"])
def test_every_kind_of_labels_has_pictures_of_three_axes(tmp_path: Path, kind: str) -> None:
    import zarr

    rng = np.random.default_rng(0)
    raw = rng.integers(0, 255, (20, 48, 52), dtype=np.uint8)
    mask = np.zeros(raw.shape, np.uint8)
    mask[4:12, 10:20, 8:20] = mask[4:14, 10:20, 24:40] = 1
    labels = mask if kind == "classes" else np.stack([mask, np.roll(mask, 4, 1)])
    for name, array in (("raw", raw), ("labels", labels)):
        zarr.create_array(str(tmp_path / f"{name}.zarr"), data=array, chunks=(1,) * (array.ndim - 3) + (10, 24, 52))
    values: dict[str, Any] = {
        "data": [{"raw": "raw.zarr", "labels": "labels.zarr", "kind": kind, "voxel_size": [3.0, 1.0, 1.5]}],
        "prepare": {"patches": 6, "patch_shape": [8, 24, 24], "shard": [16, 32, 32], "elastic_sigma": 2.0},
        "model": {"dims": 3, "depth": 1, "base_channels": 2, "padding": "same", "head": "sigmoid"},
    }
    if kind == "multilabel":
        values["data"][0]["axes"] = "czyx"
    from unetflow.settings import make_settings

    result = prepare(make_settings(values, folder=str(tmp_path)))
    assert len(result["previews"]) == 5
    with Image.open(result["previews"][1]) as picture:
        width, height = picture.size
    assert width > 4 * 384 > 4 * 0.7 * height


@given(st.tuples(*[st.integers(1, 10**7)] * 3), st.integers(0, 10**9))
def test_a_crop_of_any_volume_is_one_small_plane_that_holds_the_place(shape: tuple[int, ...], seed: int) -> None:
    at = tuple(int(i) for i in np.random.default_rng(seed).integers(0, shape))
    crop = _crop_around(at, shape, 512)
    assert Box.of_shape(shape).contains(crop)
    assert crop.contains(Box(at, tuple(i + 1 for i in at)))
    assert crop.shape == (1, *(min(512, n) for n in shape[1:]))


@pytest.mark.parametrize("shape", [(30, 40), (9, 30, 40)])
def test_lines_are_drawn_where_the_voxels_came_from(shape: tuple[int, ...]) -> None:
    straight = _source_positions(displacement(0, shape, sigma=(0.0,) * len(shape)))
    assert np.array_equal(straight, np.mgrid[:30, :40])
    field = displacement(0, shape, sigma=(3.0,) * len(shape))
    moved = field.values()[-2:].reshape(2, -1, 30, 40)
    assert np.allclose(_source_positions(field) - straight, moved[:, moved.shape[1] // 2], atol=1e-3)


def test_objects_are_tinted_where_they_lie_and_keep_their_colour() -> None:
    image = grey(np.random.default_rng(0).integers(0, 9, (1, 20, 20)))
    layer = np.zeros((1, 12, 12), np.uint64)
    layer[0, 2:6, 2:6] = 2**50 + 1
    box = Box((4, 4), (16, 16))
    one = overlay(image, layer, box, is_ids=True)
    changed = (one != image).any(-1)
    assert changed[6:10, 6:10].all() and changed.sum() == 16
    layer[0, 8:10, 8:10] = 3
    two = overlay(image, layer, box, is_ids=True)
    assert np.array_equal(one[:12, :12], two[:12, :12])
    assert not np.allclose(two[6, 6], two[12, 12], atol=0.1)


def test_colours_stay_colours_and_other_channels_are_left_out() -> None:
    image = np.random.default_rng(0).integers(0, 999, (3, 8, 9)).astype(np.uint16)
    assert len(np.unique(grey(image)[0, 0])) > 1
    assert np.array_equal(grey(image[:2]), grey(image[:1]))
    assert not grey(np.full((1, 4, 4), 7)).any()


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_weights_that_are_the_same_everywhere_have_a_picture(tmp_path: Path, weight: float) -> None:
    panels = Panels("flat", (5, 8), aspect=2.0)
    panels.add_weight(np.full((3, 6), weight), Box((1, 1), (4, 7)))
    panels.save(str(tmp_path / "flat.png"))
    with Image.open(tmp_path / "flat.png") as picture:
        assert picture.size[0] < picture.size[1] + 100
