from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore

from unetflow.errors import InputError
from unetflow.formats import list_files, open_file
from unetflow.geometry import Box

RNG = np.random.default_rng(0)
SHAPE = (9, 20, 30)


def make(
    folder: Path, dataset: str = "s0", compression: str = "gzip", dtype: str = "uint16", **more: Any
) -> np.ndarray:
    """Write a dataset of N5's dimensions x, y, z, and more attributes; return it as (Z, Y, X)."""
    array = RNG.integers(0, 200, SHAPE).astype(dtype)
    metadata = {
        "dimensions": SHAPE[::-1], "blockSize": [16, 8, 4], "dataType": dtype, "compression": {"type": compression},
    }  # fmt: skip
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{folder / dataset}/"}, "metadata": metadata}
    tensorstore.open(spec, create=True).result().write(array.T).result()
    attributes = folder / dataset / "attributes.json"
    attributes.write_text(json.dumps(json.loads(attributes.read_text()) | more))
    return array


@pytest.mark.parametrize("compression", ["raw", "gzip", "bzip2", "xz", "zstd"])
@pytest.mark.parametrize("dtype", ["uint8", "uint64", "float32"])
def test_any_box_of_a_dataset_equals_the_array(tmp_path: Path, compression: str, dtype: str) -> None:
    array = make(tmp_path / "a.n5", "volumes/raw", compression, dtype)
    for place in ("a.n5", "a.n5:/volumes/raw", "a.n5/volumes/raw"):
        source = open_file(f"{tmp_path}/{place}")
        assert (source.shape, source.dtype, source.name, source.dataset) == (SHAPE, dtype, "a", "/volumes/raw")
        box = Box((3, 7, 1), (9, 12, 30))
        np.testing.assert_array_equal(source.read(box), array[box.slices])
    assert list_files(f"{tmp_path}/a.n5:/volumes/raw") == [f"{tmp_path}/a.n5"]


@pytest.mark.parametrize(
    ("own", "around", "axes", "size"),
    [
        ({"axes": ["x", "y", "z"], "resolution": [4, 8, 40], "units": ["nm"] * 3}, {}, "zyx", (0.04, 0.008, 0.004)),
        ({"axes": ["z", "y", "x"], "resolution": [4, 8, 40], "units": ["um"] * 3}, {}, "xyz", (40, 8, 4)),
        ({"pixelResolution": {"dimensions": [1, 2, 3], "unit": "um"}}, {}, "zyx", (3, 2, 1)),
        (
            {"downsamplingFactors": [2, 2, 1]}, {"pixelResolution": {"dimensions": [1, 2, 3], "unit": "um"}},
            "zyx", (3, 4, 2),
        ),
        ({"pixelResolution": [1, 2, 3]}, {}, None, None),
        ({"axes": ["y", "x", "c"], "resolution": [1, 2, 1], "units": ["um", "um", ""]}, {}, "cxy", (2, 1)),
        ({"downsamplingFactors": [2, 2, 2]}, {"resolution": [1, 1, 5], "units": ["um"] * 3}, "zyx", (10, 2, 2)),
        ({"axistags": {"axes": [{"key": "x"}, {"key": "y"}, {"key": "c"}]}}, {}, "xyc", None),
        ({"pixelResolution": "a", "downsamplingFactors": {}, "axistags": "{"}, {"resolution": ["a"]}, None, None),
    ],
)  # fmt: skip
def test_attributes_give_axes_and_voxel_size(
    tmp_path: Path, own: dict[str, Any], around: dict[str, Any], axes: str | None, size: tuple[float, ...] | None
) -> None:
    make(tmp_path / "a.n5", "group/s1", **own)
    (tmp_path / "a.n5" / "group" / "attributes.json").write_text(json.dumps(around))
    source = open_file(f"{tmp_path}/a.n5:/group/s1")
    assert (source.axes, source.voxel_size) == (axes, size if size is None else pytest.approx(size))


def test_several_datasets_are_told_and_a_group_is_none(tmp_path: Path) -> None:
    for dataset in ("setup0/s0", "setup0/s1"):
        make(tmp_path / "a.n5", dataset)
    with pytest.raises(InputError, match=r"several.*/setup0/s0 \(9x20x30 uint16\), /setup0/s1"):
        open_file(f"{tmp_path}/a.n5")
    with pytest.raises(InputError, match=r"a group.*/setup0/s0"):
        open_file(f"{tmp_path}/a.n5:/setup0")
    with pytest.raises(InputError, match=r"not there.*/setup0/s0"):
        open_file(f"{tmp_path}/a.n5:/setup1")
    with pytest.raises(InputError, match="must exist"):
        open_file(f"{tmp_path}/b.n5:/s0")


def test_a_folder_without_the_ending_is_known_by_its_attributes(tmp_path: Path) -> None:
    array = make(tmp_path / "color", "1")
    for place in ("color", "color/1"):
        source = open_file(f"{tmp_path}/{place}")
        np.testing.assert_array_equal(source.read(Box.of_shape(SHAPE)), array)
    make(tmp_path / "color", "2")
    with pytest.raises(InputError, match=r"several.*for instance .*/color/1$"):
        open_file(f"{tmp_path}/color")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "must be JSON"), ("[1]", "JSON object"), ('{"dimensions": [3, 4, 5]}', "tensorstore reads")],
)
def test_damaged_attributes_are_refused(tmp_path: Path, content: str, message: str) -> None:
    make(tmp_path / "a.n5")
    (tmp_path / "a.n5" / "s0" / "attributes.json").write_text(content)
    with pytest.raises(InputError, match=message):
        open_file(f"{tmp_path}/a.n5:/s0")


def test_without_tensorstore_the_cure_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a.n5")
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(InputError, match=r"pip install 'unetflow\[n5\]'"):
        open_file(f"{tmp_path}/a.n5")


def test_the_digest_sees_attributes_and_blocks(tmp_path: Path) -> None:
    make(tmp_path / "a.n5")
    files = open_file(f"{tmp_path}/a.n5").files
    names = [Path(name).relative_to(tmp_path / "a.n5" / "s0").as_posix() for name in files]
    assert names[0] == "attributes.json"
    assert sorted(names[1:]) == sorted(f"{x}/{y}/{z}" for x in range(2) for y in range(3) for z in range(3))
