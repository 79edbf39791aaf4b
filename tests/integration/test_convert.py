from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image

from unetflow.errors import InputError
from unetflow.stages.convert import convert
from unetflow.stages.synthetic import make_tissue
from unetflow.storage.volume import open_images, open_volume

RNG = np.random.default_rng(0)


def content(path: Path) -> dict[str, bytes]:
    """All files of a result without the record of how it was made."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and ".unetflow" not in file.parts
    }


def save_slices(folder: Path, array: np.ndarray) -> str:
    folder.mkdir()
    for number, plane in enumerate(array):
        Image.fromarray(plane).save(folder / f"s{number}.png")
    return str(folder)


def whole(path: Path | str, **options: Any) -> np.ndarray:
    volume = open_volume(str(path), **options)
    return volume.read(volume.box)


def test_slices_of_isbi_become_one_stack(data_folder: Path, tmp_path: Path) -> None:
    source = data_folder / "isbi2012" / "image"
    report = convert(str(source), str(tmp_path / "raw.zarr"), voxel_size=(0.05, 0.004, 0.004))
    files = sorted(source.glob("*.png"))
    assert (report["shape"], report["axes"]) == ([len(files), 512, 512], "zyx")
    volume = open_volume(str(tmp_path / "raw.zarr"))
    assert volume.voxel_size == (0.05, 0.004, 0.004)
    expected = np.stack([np.asarray(Image.open(f)) for f in files])
    np.testing.assert_array_equal(volume.read(volume.box)[0], expected)
    coarse = whole(tmp_path / "raw.zarr", level=1)[0]
    means = expected.reshape(len(files), 256, 2, 256, 2).mean((2, 4))
    np.testing.assert_array_equal(coarse, np.floor(means + 0.5))


def test_nuclei_of_differing_sizes_need_a_collection(data_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "labels.zarr"
    with pytest.raises(InputError, match=r"256, 256.*360, 360.*--collection"):
        convert(str(data_folder / "dsb2018" / "labels"), str(target), as_labels=True)
    assert not target.exists()
    glob = str(data_folder / "dsb2018" / "labels" / "1*.png")
    report = convert(glob, str(target), as_labels=True, collection=True)
    images = open_images(str(target))
    assert sorted(report["images"]) == list(images) == sorted(p.stem for p in Path(glob).parent.glob("1*.png"))
    for name, volume in images.items():
        expected = np.asarray(Image.open(Path(glob).parent / f"{name}.png"))
        assert volume.dtype == "uint16"
        np.testing.assert_array_equal(volume.read(volume.box)[0], expected)


def test_masks_of_many_classes_stack_along_c(data_folder: Path, tmp_path: Path) -> None:
    source = str(data_folder / "epfl6" / "*" / "training0000.png")
    report = convert(source, str(tmp_path / "masks.zarr"), axes="cyx", as_labels=True)
    assert (report["axes"], report["shape"]) == ("cyx", [768, 1024])
    assert open_volume(str(tmp_path / "masks.zarr")).n_channels == 7


def test_the_embryo_comes_with_its_axes(data_folder: Path, tmp_path: Path) -> None:
    source = data_folder / "mouse_embryo_3d" / "images_raw" / "8_cell_stage.tif"
    convert(str(source), str(tmp_path / "raw.zarr"), voxel_size=(1.74, 0.8, 0.8))
    np.testing.assert_array_equal(whole(tmp_path / "raw.zarr")[0], tifffile.imread(source))


def test_ome_tiff_with_time_and_channels_keeps_axes_and_voxel_size(tmp_path: Path) -> None:
    array = RNG.integers(0, 4000, (2, 3, 5, 40, 50), dtype=np.uint16)
    metadata = {"axes": "TZCYX", "PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1, "PhysicalSizeZ": 0.3}
    tifffile.imwrite(tmp_path / "a.ome.tif", array, metadata=metadata, compression="zlib", tile=(16, 16))
    report = convert(str(tmp_path / "a.ome.tif"), str(tmp_path / "a.zarr"), chunk=(2, 16, 16), shard=(2, 32, 32))
    assert report["axes"] == "tczyx"
    assert report["voxel_size"] == pytest.approx([0.3, 0.1, 0.1])
    volume = open_volume(str(tmp_path / "a.zarr"))
    assert volume.voxel_size == pytest.approx((0.3, 0.1, 0.1))
    np.testing.assert_array_equal(volume.read(volume.box), array.transpose(2, 0, 1, 3, 4))


def test_volumes_of_one_shape_stack_along_time(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (3, 4, 20, 20), dtype=np.uint8)
    for number, volume in enumerate(array):
        tifffile.imwrite(tmp_path / f"v{number}.tif", volume, photometric="minisblack", metadata={"axes": "ZYX"})
    report = convert(str(tmp_path / "*.tif"), str(tmp_path / "a.zarr"))
    assert report["axes"] == "tzyx"
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr")[0], array)


@pytest.mark.parametrize(("axes", "expected"), [(None, "czyx"), ("zyx", "zyx"), ("tyxc", "tcyx")])
def test_colour_slices_keep_or_lose_their_channels_as_the_axes_say(
    tmp_path: Path, axes: str | None, expected: str
) -> None:
    grey = RNG.integers(0, 255, (3, 20, 24), dtype=np.uint8)
    source = save_slices(tmp_path / "slices", np.stack([grey] * 3, axis=-1))
    report = convert(source, str(tmp_path / "a.zarr"), axes=axes)
    assert report["axes"] == expected
    for channel in whole(tmp_path / "a.zarr"):
        np.testing.assert_array_equal(channel, grey)


def test_real_colours_are_not_dropped(tmp_path: Path) -> None:
    colours = RNG.integers(0, 255, (3, 20, 24, 3), dtype=np.uint8)
    with pytest.raises(InputError, match="colours"):
        convert(save_slices(tmp_path / "slices", colours), str(tmp_path / "a.zarr"), axes="zyx")
    assert not (tmp_path / "a.zarr").exists()


def test_zarr_v2_of_another_axis_order_comes_out_canonical(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (20, 18, 6), dtype=np.uint8)
    zarr.save_array(str(tmp_path / "v2.zarr"), array, zarr_format=2)
    convert(str(tmp_path / "v2.zarr"), str(tmp_path / "a.zarr"), axes="xyz", voxel_size=(3, 1, 1))
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr")[0], array.T)


def test_labels_keep_their_type_and_coarser_levels_their_values(tmp_path: Path) -> None:
    ids = np.kron(RNG.integers(0, 2**40, (10, 10), dtype=np.int64), np.ones((40, 40), np.int64))
    np.save(tmp_path / "ids.npy", ids)
    convert(str(tmp_path / "ids.npy"), str(tmp_path / "a.zarr"), as_labels=True)
    assert open_volume(str(tmp_path / "a.zarr")).dtype == "int64"
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr", level=1)[0], ids[::2, ::2])


def test_the_blocks_and_the_shards_change_no_voxel(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (9, 70, 50), dtype=np.uint8)
    source = save_slices(tmp_path / "slices", array)
    for number, shard in enumerate([(4, 32, 32), (8, 16, 64), None]):
        target = tmp_path / f"{number}.zarr"
        chunk = (4, 16, 16) if shard else None
        report = convert(source, str(target), chunk=chunk, shard=shard)
        assert report["blocks"] >= 1
        np.testing.assert_array_equal(whole(target)[0], array)


def test_the_same_command_has_nothing_to_do_and_another_is_refused(tmp_path: Path) -> None:
    source = save_slices(tmp_path / "slices", RNG.integers(0, 255, (4, 20, 20), dtype=np.uint8))
    target = tmp_path / "a.zarr"
    first = convert(source, str(target))
    before = content(target)
    again = convert(source, str(target))
    assert again["blocks_skipped"] == again["blocks"] == first["blocks"]
    with pytest.raises(InputError, match="voxel_size"):
        convert(source, str(target), voxel_size=(2, 1, 1))
    assert content(target) == before
    convert(source, str(target), voxel_size=(2, 1, 1), overwrite=True)
    assert open_volume(str(target)).voxel_size == (2, 1, 1)


def test_a_stopped_conversion_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    from unetflow.errors import Interrupted
    from unetflow.stages.work import Conditions

    source = save_slices(tmp_path / "slices", RNG.integers(0, 255, (4, 300, 300), dtype=np.uint8))
    cut = {"chunk": (2, 64, 64), "shard": (2, 64, 64), "axes": "zyx"}
    np.save(tmp_path / "v.npy", np.stack([np.asarray(Image.open(f)) for f in sorted(Path(source).iterdir())]))
    file = str(tmp_path / "v.npy")
    convert(file, str(tmp_path / "whole.zarr"), **cut)
    questions = iter(range(10**6))
    stops = Conditions(should_stop=lambda: next(questions) > 12)
    with pytest.raises(Interrupted):
        convert(file, str(tmp_path / "cut.zarr"), conditions=stops, **cut)
    report = convert(file, str(tmp_path / "cut.zarr"), **cut)
    assert 0 < report["blocks_skipped"] < report["blocks"]
    assert content(tmp_path / "cut.zarr") == content(tmp_path / "whole.zarr")


def test_a_slice_that_cannot_be_read_is_quarantined_and_tried_again_by_the_same_command(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (4, 40, 40), dtype=np.uint8)
    source = Path(save_slices(tmp_path / "slices", array))
    file = source / "s2.png"
    good = file.read_bytes()
    middle = len(good) // 2
    for content, failed in ((good[:middle] + bytes(len(good) - middle), ["write:2"]), (good, [])):
        file.write_bytes(content)
        os.utime(file, ns=(0, 0))  # as if a disk had failed for a while: the fingerprint is the same
        report = convert(str(source), str(tmp_path / "a.zarr"), chunk=(1, 40, 40), shard=(1, 40, 40))
        assert report["quarantined"] == failed
    assert report["blocks_skipped"] == 3
    np.testing.assert_array_equal(whole(tmp_path / "a.zarr")[0], array)


def test_large_planes_are_stored_flat_so_that_each_is_decoded_once(tmp_path: Path) -> None:
    source = save_slices(tmp_path / "slices", np.zeros((2, 2100, 2100), np.uint8))
    report = convert(source, str(tmp_path / "a.zarr"), plan_only=True)
    assert report["shard"] == [16, 1024, 1024]
    assert report["block"] == [16, 3072, 3072]
    assert report["blocks"] == 1


def test_a_zarr_collection_keeps_its_names(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (3, 20, 24), dtype=np.uint8)
    source = save_slices(tmp_path / "slices", array)
    convert(source, str(tmp_path / "a.zarr"), collection=True)
    report = convert(str(tmp_path / "a.zarr"), str(tmp_path / "b.zarr"))
    assert report["images"] == ["s0", "s1", "s2"]
    json.dumps(report)
    for number, volume in enumerate(open_images(str(tmp_path / "b.zarr")).values()):
        np.testing.assert_array_equal(volume.read(volume.box)[0], array[number])


def test_two_workers_write_what_one_process_writes(tmp_path: Path) -> None:
    from unetflow.runtime.cluster import open_client

    array = RNG.integers(0, 255, (4, 130, 130), dtype=np.uint8)
    source = save_slices(tmp_path / "slices", array)
    cut = {"chunk": (2, 64, 64), "shard": (2, 64, 64)}
    convert(source, str(tmp_path / "one.zarr"), **cut)
    with open_client("local", workers="2") as client:
        convert(source, str(tmp_path / "two.zarr"), client=client, **cut)
    assert content(tmp_path / "one.zarr") == content(tmp_path / "two.zarr")


def test_the_plan_writes_nothing(tmp_path: Path) -> None:
    source = save_slices(tmp_path / "slices", np.zeros((4, 20, 20), np.uint8))
    report = convert(source, str(tmp_path / "a.zarr"), plan_only=True)
    assert (report["blocks"], report["shape"]) == (1, [4, 20, 20])
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axes": "zyxx"}, "each once"),
        ({"axes": "yx"}, "3 letters"),
        ({"axes": "tzyx"}, "3 letters"),
        ({"voxel_size": (1, 1)}, "voxel size"),
        ({"voxel_size": (0, 1, 1)}, "above 0"),
        ({"chunk": (64, 64)}, "chunk"),
        ({"chunk": (2, 16, 16), "shard": (4, 20, 32)}, r"multiple of the chunk"),
        ({"level": 1}, "levels"),
    ],
)
def test_a_wrong_option_is_refused_and_nothing_written(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = save_slices(tmp_path / "slices", np.zeros((4, 20, 20), np.uint8))
    with pytest.raises(InputError, match=message):
        convert(source, str(tmp_path / "a.zarr"), **options)
    assert not (tmp_path / "a.zarr").exists()


def test_float_labels_and_coloured_labels_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.zeros((8, 8), np.float32))
    with pytest.raises(InputError, match="integers"):
        convert(str(tmp_path / "f.npy"), str(tmp_path / "a.zarr"), as_labels=True)
    source = save_slices(tmp_path / "slices", RNG.integers(0, 255, (2, 8, 8, 3), dtype=np.uint8))
    with pytest.raises(InputError, match="numbers"):
        convert(source, str(tmp_path / "a.zarr"), as_labels=True)


def test_what_is_not_ours_is_never_overwritten_by_accident(tmp_path: Path) -> None:
    source = save_slices(tmp_path / "slices", np.zeros((4, 20, 20), np.uint8))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError):
            convert(source, str(mine), overwrite=overwrite)
    with pytest.raises(InputError, match="outside its source"):
        convert(source, str(tmp_path), overwrite=True)
    assert (mine / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(("shape", "size"), [((200, 180), None), ((20, 90, 100), (2.0, 1.0, 1.0))])
def test_tissue_does_not_depend_on_its_shards(
    tmp_path: Path, shape: tuple[int, ...], size: tuple[float, ...] | None
) -> None:
    for name, length in (("a", 32), ("b", 64)):
        cut = (length,) * len(shape)
        make_tissue(
            str(tmp_path / name / "raw.zarr"), str(tmp_path / name / "ids.zarr"), shape,
            seed=4, voxel_size=size, chunk=(32,) * len(shape), shard=cut,
        )  # fmt: skip
    for image in ("raw.zarr", "ids.zarr"):
        np.testing.assert_array_equal(whole(tmp_path / "a" / image), whole(tmp_path / "b" / image))
