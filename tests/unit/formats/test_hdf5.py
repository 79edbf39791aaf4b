from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from unetflow.errors import InputError
from unetflow.formats import list_files, open_file, open_files
from unetflow.geometry import Box

RNG = np.random.default_rng(0)
TAGS = {"axes": [{"key": a, "resolution": r} for a, r in zip("tzyxc", (0, 2.0, 500.0, 0.25, 0), strict=True)]}
XML = """<SpimData><SequenceDescription><ViewSetups>
  <ViewSetup><id>0</id><voxelSize><unit>um</unit><size>9 9 9</size></voxelSize></ViewSetup>
  <ViewSetup><id>1</id><voxelSize><unit>nm</unit><size>100 200 500</size></voxelSize></ViewSetup>
</ViewSetups></SequenceDescription></SpimData>"""


def make(path: Path, **arrays: Any) -> str:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name.replace("__", "/")] = array
    return str(path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (2, 16, 16)},
        {"chunks": (1, 37, 50), "compression": "gzip"},
        {"chunks": (3, 9, 9), "compression": "lzf", "fletcher32": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [">u2", "<f4", "?"])
def test_any_box_of_a_dataset_equals_the_array(tmp_path: Path, options: dict[str, Any], dtype: str) -> None:
    array = RNG.integers(0, 2 if dtype == "?" else 60000, (5, 37, 50)).astype(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("volumes/raw", data=array, **options)
    source = open_file(f"{tmp_path}/a.h5:/volumes/raw")
    assert source.is_planewise == (options.get("chunks") == (1, 37, 50))
    for _ in range(4):
        start = [int(RNG.integers(0, n)) for n in array.shape]
        stop = [int(RNG.integers(a + 1, n + 1)) for a, n in zip(start, array.shape, strict=True)]
        box = Box(tuple(start), tuple(stop))
        got = source.read(box)
        assert (got.dtype, got.dtype.isnative) == (source.dtype, True)
        np.testing.assert_array_equal(got, array[box.slices])


def test_the_only_dataset_needs_no_name_and_several_are_told(tmp_path: Path) -> None:
    raw = np.zeros((3, 4, 5), np.uint8)
    path = make(tmp_path / "a.h5", raw=raw, steps=np.arange(3), note="text")
    assert open_file(path).dataset == "/raw"
    path = make(tmp_path / "b.h5", raw=raw, deep__labels=raw.astype("u8"))
    with pytest.raises(InputError, match=r"several.*/deep/labels \(3x4x5 uint64\).*/raw \(3x4x5 uint8\).*b\.h5:/deep"):
        open_file(path)


def test_ilastik_gives_axes_and_sizes_in_any_unit(tmp_path: Path) -> None:
    path = make(tmp_path / "a.h5", exported_data=np.zeros((1, 2, 3, 4, 5), np.float32))
    with h5py.File(path, "a") as file:
        file["exported_data"].attrs["axistags"] = json.dumps(TAGS)
    assert (open_file(path).axes, open_file(path).voxel_size) == ("tzyxc", None)  # numbers without units mean nothing
    with h5py.File(path, "a") as file:
        file["exported_data"].attrs["axis_units"] = json.dumps({"z": "um", "y": "nm", "x": "µm"})
    assert open_file(path).voxel_size == pytest.approx((2.0, 0.5, 0.25))


def test_element_size_and_dimension_labels_are_heard(tmp_path: Path) -> None:
    path = make(tmp_path / "a.h5", raw=np.zeros((3, 4, 5), np.uint8))
    with h5py.File(path, "a") as file:
        file["raw"].attrs["element_size_um"] = [0.3, 0.1, 0.2]
    assert (open_file(path).axes, open_file(path).voxel_size) == ("zyx", (0.3, 0.1, 0.2))
    with h5py.File(path, "a") as file:
        for dimension, label in zip(file["raw"].dims, "xyz", strict=True):
            dimension.label = label
    assert (open_file(path).axes, open_file(path).voxel_size) == ("xyz", (0.2, 0.1, 0.3))


def test_bigdataviewer_gives_unsigned_voxels_and_the_size_of_each_level(tmp_path: Path) -> None:
    voxels = np.array([0, 32768, 65535, 7], np.uint16).reshape(1, 2, 2)
    levels = {f"t00000__s01__{n}__cells": voxels.view(np.int16) for n in (0, 1)}
    table = np.array([[1, 1, 1], [2, 2, 1]], np.float64)
    path = make(tmp_path / "a.h5", s01__resolutions=table, s01__subdivisions=table.astype("i4"), **levels)
    (tmp_path / "a.xml").write_text(XML)
    source = open_file(f"{path}:/t00000/s01/1/cells")
    assert (source.axes, source.dtype) == ("zyx", "uint16")
    assert source.voxel_size == pytest.approx((0.5, 0.4, 0.2))
    np.testing.assert_array_equal(source.read(Box.of_shape(source.shape)), voxels)
    (tmp_path / "a.xml").write_text("<SpimData>")
    assert open_file(f"{path}:/t00000/s01/1/cells").voxel_size is None
    with pytest.raises(InputError) as refused:
        open_file(path)
    assert "resolutions" not in str(refused.value)


def test_files_of_one_dataset_each_come_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9):
        make(tmp_path / f"t{number}.h5", raw=np.full((2, 2), number, np.uint8), other=np.zeros((2, 2)))
    assert [Path(f).name for f in list_files(f"{tmp_path}/*.h5:/raw")] == ["t9.h5", "t10.h5"]
    corner = Box((0, 0), (1, 1))
    assert [int(file.read(corner)[0, 0]) for file in open_files(f"{tmp_path}/t*.h5:/raw")] == [9, 10]


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    pieces = {
        "no HDF5": b"plain text",
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "zeros": content[:600] + bytes(1500) + content[2100:],
    }
    path.write_bytes(pieces[kind])


@pytest.mark.parametrize("kind", ["no HDF5", "empty", "truncated", "zeros"])
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "a.h5", raw=np.zeros((3, 40, 50), np.uint8))
    damage(tmp_path / "a.h5", kind)
    for dataset in ("", ":/raw"):
        with pytest.raises(InputError, match=r"h5py reads, got .*a\.h5"):
            open_file(f"{tmp_path}/a.h5{dataset}")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("/nothing", r"not there.*/group/raw"),
        ("/group", r"a group.*/group/raw \(3x4 uint8\)"),
        ("/record", "record of a, b"),
        ("/text", "numbers.*/text"),
        ("/wave", "complex"),
        ("/point", r"shape \(\)"),
        ("/none", "shape None"),
        ("/line", r"shape \(3,\)"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path: Path, dataset: str, message: str) -> None:
    record = np.zeros((2, 2), [("a", "i4"), ("b", "f4")])
    path = make(
        tmp_path / "a.h5", group__raw=np.zeros((3, 4), np.uint8), record=record, line=np.zeros(3), point=1.0,
        text=np.array([["a", "b"]], dtype=object), wave=np.zeros((2, 2), np.complex64), none=h5py.Empty("f4"),
    )  # fmt: skip
    with pytest.raises(InputError, match=message):
        open_file(f"{path}:{dataset}")


def test_an_unknown_filter_is_named_with_its_cure(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_chunk((8, 8))
        made.set_filter(499, h5py.h5z.FLAG_OPTIONAL, ())
        h5py.h5d.create(file.id, b"raw", h5py.h5t.NATIVE_UINT8, h5py.h5s.create_simple((16, 16)), made)
    with pytest.raises(InputError, match=r"filter 499.*pip install hdf5plugin"):
        open_file(f"{tmp_path}/a.h5:/raw")


def test_a_virtual_dataset_without_its_files_is_refused_instead_of_read_as_zeros(tmp_path: Path) -> None:
    array = RNG.integers(1, 255, (4, 5), dtype=np.uint8)
    make(tmp_path / "part.h5", raw=array)
    layout = h5py.VirtualLayout((1, 4, 5), np.uint8)
    layout[0] = h5py.VirtualSource("part.h5", "raw", (4, 5))
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("raw", layout)
    source = open_file(f"{tmp_path}/all.h5")
    np.testing.assert_array_equal(source.read(Box.of_shape(source.shape))[0], array)
    (tmp_path / "part.h5").unlink()
    with pytest.raises(InputError, match=r"without part\.h5"):
        open_file(f"{tmp_path}/all.h5")
