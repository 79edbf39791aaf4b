"""HDF5, N5, Zarr and picture folders through `convert`, and the comparison that ends it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorstore
import zarr
from PIL import Image

from unetflow.errors import InputError, Interrupted, StageError
from unetflow.stages.convert import convert
from unetflow.stages.work import Conditions
from unetflow.storage.volume import open_volume

RNG = np.random.default_rng(0)
CUT: dict[str, Any] = {"chunk": (2, 32, 32), "shard": (2, 64, 64)}


def whole(path: Path) -> np.ndarray:
    volume = open_volume(str(path))
    return volume.read(volume.box)


def save_hdf5(path: Path, array: np.ndarray, name: str = "raw", **options: Any) -> str:
    with h5py.File(path, "a") as file:
        file.create_dataset(name, data=array, **options)
    return f"{path}:/{name}"


def save_n5(path: Path, array: np.ndarray) -> str:
    metadata = {
        "dimensions": array.shape[::-1], "blockSize": [32] * array.ndim, "dataType": array.dtype.name,
        "compression": {"type": "gzip"}, "axes": ["x", "y", "z"], "resolution": [4, 4, 40], "units": ["nm"] * 3,
    }  # fmt: skip
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{path}/raw/"}, "metadata": metadata}
    tensorstore.open(spec, create=True).result().write(array.T).result()
    return f"{path}:/raw"


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    words = (sys.executable, "-m", "unetflow", *words, "--cluster", "none")
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("save", [save_hdf5, save_n5])
def test_a_stopped_conversion_of_a_dataset_goes_on_to_equal_pixels(tmp_path: Path, save: Any) -> None:
    array = RNG.integers(0, 60000, (6, 150, 130), dtype=np.uint16)
    source = save(tmp_path / ("a.h5" if save is save_hdf5 else "a.n5"), array)
    questions = iter(range(10**6))
    with pytest.raises(Interrupted):
        convert(source, str(tmp_path / "a.zarr"), conditions=Conditions(should_stop=lambda: next(questions) > 9), **CUT)
    report = convert(source, str(tmp_path / "a.zarr"), **CUT)
    assert 0 < report["blocks_skipped"] < report["blocks"]
    assert (report["axes"], report["blocks_compared"]) == ("zyx", 8)
    if save is save_n5:
        assert report["voxel_size"] == pytest.approx([0.04, 0.004, 0.004])
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr")[0], array)
    again = convert(source, str(tmp_path / "a.zarr"), **CUT)
    assert again["blocks_skipped"] == again["blocks"]


def test_another_dataset_of_the_same_file_is_another_conversion(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (4, 20, 20), dtype=np.uint8)
    one, other = (save_hdf5(tmp_path / "a.h5", array, name) for name in ("one", "other"))
    convert(one, str(tmp_path / "a.zarr"))
    with pytest.raises(InputError, match="source"):
        convert(other, str(tmp_path / "a.zarr"))
    attributes = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())["attributes"]
    assert attributes["unetflow"]["source"] == "a.h5:/one"


def test_files_of_one_dataset_each_are_stacked_along_time(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (3, 4, 20, 20), dtype=np.uint8)
    for number, volume in enumerate(array):
        save_hdf5(tmp_path / f"t{number + 8}.h5", volume)
    report = convert(f"{tmp_path}/t*.h5:/raw", str(tmp_path / "a.zarr"))
    assert report["axes"] == "tzyx"
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr")[0], array)


def test_axes_that_a_dataset_does_not_know_keep_its_element_size(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (2, 4, 20, 24), dtype=np.uint8)
    source = save_hdf5(tmp_path / "a.h5", array)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["raw"].attrs["element_size_um"] = [0.5, 0.1, 0.2]
    with pytest.raises(InputError, match="--axes"):
        convert(source, str(tmp_path / "a.zarr"))
    convert(source, str(tmp_path / "a.zarr"), axes="czyx")
    assert open_volume(str(tmp_path / "a.zarr")).voxel_size == (0.5, 0.1, 0.2)
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), array)


@pytest.mark.parametrize("options", [{"zarr_format": 2}, {"zarr_format": 3}, {"zarr_format": 3, "shards": (4, 64, 64)}])
def test_zarr_of_either_version_is_converted_and_compared(tmp_path: Path, options: dict[str, Any]) -> None:
    array = RNG.integers(0, 255, (5, 70, 90), dtype=np.uint8)
    zarr.create_array(str(tmp_path / "in.zarr"), data=array, chunks=(2, 32, 32), **options)
    report = convert(str(tmp_path / "in.zarr"), str(tmp_path / "a.zarr"), **CUT)
    assert report["blocks_compared"] == 8
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr")[0], array)


def test_jpegs_in_colours_become_channels_in_natural_order(tmp_path: Path) -> None:
    (tmp_path / "slices").mkdir()
    for number in range(8, 12):
        colours = RNG.integers(0, 255, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(colours).save(tmp_path / "slices" / f"s{number}.jpg")
    report = convert(str(tmp_path / "slices"), str(tmp_path / "a.zarr"))
    assert (report["axes"], report["shape"]) == ("czyx", [4, 20, 24])
    decoded = [np.asarray(Image.open(tmp_path / "slices" / f"s{n}.jpg")) for n in range(8, 12)]
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr"), np.moveaxis(np.stack(decoded), -1, 0))


def test_a_block_that_is_not_its_source_ends_the_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unetflow.storage.volume import Volume

    def write_with_one_wrong_voxel(volume: Volume, box: Any, voxels: np.ndarray) -> None:
        voxels[0, 0, 3, 4] ^= 1
        honest(volume, box, voxels)

    honest = Volume.write
    source = save_hdf5(tmp_path / "a.h5", RNG.integers(0, 255, (2, 20, 20), dtype=np.uint8))
    monkeypatch.setattr(Volume, "write", write_with_one_wrong_voxel)
    for _ in range(2):  # the same command says it again
        with pytest.raises(StageError, match=r"1 voxels of block 0 .*a\.zarr.*--overwrite"):
            convert(source, str(tmp_path / "a.zarr"))
    monkeypatch.setattr(Volume, "write", honest)
    assert convert(source, str(tmp_path / "a.zarr"), overwrite=True)["blocks_compared"] == 1


def test_not_a_number_equals_itself(tmp_path: Path) -> None:
    array = np.full((2, 8, 8), np.nan, np.float32)
    assert convert(save_hdf5(tmp_path / "a.h5", array), str(tmp_path / "a.zarr"))["blocks_compared"] == 1


def test_a_damaged_chunk_ends_with_3_and_the_command_that_tries_again(tmp_path: Path) -> None:
    save_hdf5(tmp_path / "a.h5", RNG.integers(0, 9, (4, 32, 32)), chunks=(4, 32, 32), compression="gzip")
    with h5py.File(tmp_path / "a.h5") as file:
        offset = file["raw"].id.get_chunk_info(0).byte_offset
    content = bytearray((tmp_path / "a.h5").read_bytes())
    content[offset + 20 : offset + 60] = bytes(40)
    (tmp_path / "a.h5").write_bytes(content)
    ended = command(tmp_path, "convert", "a.h5", "a.zarr")
    assert ended.returncode == 3
    assert ended.stderr.rstrip().endswith("unetflow convert a.h5 a.zarr --cluster none")


@pytest.mark.parametrize("name", ["s3://bucket/a.h5:/raw", "https://example.org/a.n5/s0"])
def test_remote_hdf5_and_n5_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="copy it first"):
        convert(name, str(tmp_path / "a.zarr"))


def test_a_target_inside_its_n5_source_is_refused(tmp_path: Path) -> None:
    source = save_n5(tmp_path / "a.n5", np.zeros((4, 8, 8), np.uint8))
    with pytest.raises(InputError, match="outside its source"):
        convert(source, str(tmp_path / "a.n5" / "out.zarr"))
    with pytest.raises(InputError, match="outside its source"):
        convert(source, str(tmp_path / "a.n5"), overwrite=True)


def test_the_command_refuses_a_file_of_several_datasets_with_2_and_writes_nothing(tmp_path: Path) -> None:
    for name in ("raw", "labels"):
        save_hdf5(tmp_path / "a.h5", np.zeros((2, 8, 8), np.uint8), name)
    ended = command(tmp_path, "convert", "a.h5", "a.zarr")
    assert ended.returncode == 2
    assert "/labels (2x8x8 uint8), /raw (2x8x8 uint8)" in " ".join(ended.stderr.split())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5"]
