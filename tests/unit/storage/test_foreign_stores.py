"""Stores written by zarr-java, zarrita, zarr-python 2 and webknossos, compared with tensorstore."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unetflow.errors import InputError
from unetflow.storage.volume import open_images, open_volume

SOFTWARE = ("zarr-java", "neuroglancer", "webknossos")
TEXT = ("S7", "U13", "U7", "3d.chunked.O")
# What tensorstore does not know: the lz4 filter of numcodecs; bytes of one-byte types without endianness.
UNKNOWN_TO_TENSORSTORE = ("1d.contiguous.lz4.i2", "v3/from_zarrita/data.zarr/1d.contiguous.b1", "sharded.b1")


def arrays_below(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield each array and tensorstore's name for its format."""
    for path in sorted(folder.rglob(".zarray")):
        yield path.parent, "zarr"
    for path in sorted(folder.rglob("zarr.json")):
        if json.loads(path.read_text())["node_type"] == "array":
            yield path.parent, "zarr3"


def axes_for(path: Path) -> str | None:
    """Name the axes where the store does not: webknossos v2 names its level otherwise than its array."""
    return "cxyz" if path.name == "1-1-1" else None


def oracle(path: Path, driver: str) -> np.ndarray[Any, Any]:
    import tensorstore

    spec = {"driver": driver, "kvstore": {"driver": "file", "path": f"{path}/"}}
    array: np.ndarray[Any, Any] = tensorstore.open(spec).result().read().result()
    return array


@pytest.mark.parametrize("software", SOFTWARE)
def test_every_numeric_array_of_other_software_reads_as_tensorstore_reads_it(
    data_folder: Path, software: str
) -> None:
    n_compared = 0
    for path, driver in arrays_below(data_folder / "zarr_fixtures" / software):
        if path.name == "exists" or any(text in path.name for text in TEXT):
            continue
        volume = open_volume(path, axes=axes_for(path))
        voxels = volume.read(volume.box)
        assert voxels.shape == (volume.n_channels, *volume.shape)
        assert voxels.flags.c_contiguous
        assert voxels.dtype == np.dtype(volume.dtype)
        assert voxels.dtype.isnative
        if not str(path).endswith(UNKNOWN_TO_TENSORSTORE):
            order = [volume.axes.index(axis) for axis in "ctzyx" if axis in volume.axes]
            expected = oracle(path, driver).transpose(order)
            np.testing.assert_array_equal(voxels.reshape(expected.shape), expected, str(path))
            n_compared += 1
    assert n_compared >= {"zarr-java": 15, "neuroglancer": 50, "webknossos": 2}[software]


def test_arrays_that_tensorstore_does_not_know_read_as_their_makers_wrote_them(data_folder: Path) -> None:
    arrays = data_folder / "zarr_fixtures" / "neuroglancer"
    lz4 = open_volume(arrays / "zarr_v2/from_zarr-python/data.zarr/1d.contiguous.lz4.i2")
    raw = open_volume(arrays / "zarr_v2/from_zarr-python/data.zarr/1d.contiguous.raw.i2")
    np.testing.assert_array_equal(lz4.read(lz4.box), raw.read(raw.box))
    for name in ("1d.contiguous.b1", "1d.contiguous.compressed.sharded.b1"):
        volume = open_volume(arrays / "zarr_v3/from_zarrita/data.zarr" / name)
        assert volume.read(volume.box).tolist() == [[True, False, True, False]]


def test_arrays_of_text_are_refused(data_folder: Path) -> None:
    folder = data_folder / "zarr_fixtures/neuroglancer/zarr_v2/from_zarr-python/data.zarr"
    for path in folder.iterdir():
        if any(text in path.name for text in TEXT):
            with pytest.raises(InputError, match="integers, floats or booleans"):
                open_volume(path)


def test_a_storage_transformer_is_refused_and_an_empty_list_of_them_is_read(data_folder: Path) -> None:
    folder = data_folder / "zarr_fixtures/zarr-java/storage_transformer"
    with pytest.raises(InputError, match="no storage transformers.*chunk-manifest-json.*copy it"):
        open_volume(folder / "exists")
    volume = open_volume(folder / "empty")
    assert volume.read(volume.box).shape == (1, 1)


@pytest.mark.parametrize(
    ("image", "axes", "voxel_size", "translation", "unit"),
    [
        ("zarr-java/ome/v0.4", "tczyx", (0.5, 0.5, 0.5), (0, 0, 0), "micrometer"),
        ("zarr-java/ome/v0.5", "tczyx", (0.5, 0.5, 0.5), (0, 0, 0), "micrometer"),
        ("zarr-java/ome/v0.5/labels/nuclei", "zyx", (0.5, 0.5, 0.5), (0, 0, 0), "micrometer"),
        ("zarr-java/ome/v0.4_hcs/A/1/0", "tczyx", (1, 1, 1), (0, 0, 0), "micrometer"),
        ("neuroglancer/ome_zarr/all_0.6_basic_scale.zarr", "zyx", (4, 3, 2), (0, 0, 0), "micrometer"),
        ("neuroglancer/ome_zarr/simple_0.4", "yx", (4, 30), (0, 0), "nanometer"),
        ("neuroglancer/ome_zarr/simple_0.5", "yx", (4, 30), (0, 0), "nanometer"),
        ("webknossos/simple_zarr3_dataset", "cxyz", (1, 1, 1), (0, 0, 0), "nanometer"),
    ],
)
def test_images_of_other_software_open_with_their_axes_and_voxel_sizes(
    data_folder: Path,
    image: str,
    axes: str,
    voxel_size: tuple[float, ...],
    translation: tuple[float, ...],
    unit: str,
) -> None:
    volume = open_volume(data_folder / "zarr_fixtures" / image)
    assert (volume.axes, volume.voxel_size, volume.unit) == (axes, voxel_size, unit)
    assert volume.translation == translation


def test_a_coarser_level_has_its_own_voxel_size_and_position(data_folder: Path) -> None:
    image = data_folder / "zarr_fixtures/neuroglancer/ome_zarr/simple_0.5"
    level = open_volume(image, level=1)
    assert (level.voxel_size, level.translation, level.level) == ((8, 60), (2, 15), 1)
    assert open_volume(image / "scale1/image") == level
    with pytest.raises(InputError, match="levels 0 to 2, got 3"):
        open_volume(image, level=3)


@pytest.mark.parametrize("version", ["v0.4_hcs", "v0.5_hcs"])
def test_a_plate_is_refused_with_the_path_of_an_image_in_it(data_folder: Path, version: str) -> None:
    plate = data_folder / "zarr_fixtures/zarr-java/ome" / version
    with pytest.raises(InputError, match="plate.*A/1/0'"):
        open_images(plate)
    assert open_volume(plate / "A/1/0").n_channels == 2


def test_a_scene_of_several_images_is_a_collection(data_folder: Path) -> None:
    scene = data_folder / "zarr_fixtures/zarr-java/ome/v0.6_scene/example1_instrument_registration.zarr"
    images = open_images(scene)
    assert list(images) == ["sampleA_instrument1", "sampleA_instrument2"]
    with pytest.raises(InputError, match="one image is wanted.*sampleA_instrument1"):
        open_volume(scene)
