"""What a path may stand for, how axes are found, and what is refused with which words."""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from unetflow.errors import InputError
from unetflow.storage import store
from unetflow.storage.ngff import create_group, create_image, create_labels_group
from unetflow.storage.volume import create_array, open_images, open_volume


def plain(path: Path, shape: tuple[int, ...] = (4, 4), **options: Any) -> Path:
    """Make an array that says nothing of its axes."""
    array = zarr.create_array(path, shape=shape, dtype=options.pop("dtype", "uint8"), **options)
    array[...] = np.arange(np.prod(shape)).reshape(shape).astype(array.dtype)
    return path


def image(path: Path, **options: Any) -> Path:
    """Make an image of 8 x 9 voxels."""
    settings: dict[str, Any] = {"axes": "yx", "shape": (8, 9), "voxel_size": (2, 1), **options}
    create_image(path, dtype="uint8", chunk=(4,) * len(settings["shape"]), **settings)
    return path


def described(path: Path, ome: dict[str, Any]) -> Path:
    """Make a group of one array with the OME metadata given."""
    create_group(path, {"ome": ome})
    plain(path / "0")
    return path


@pytest.mark.parametrize(("shape", "axes"), [((5,), "x"), ((4, 5), "yx"), ((3, 4, 5), "zyx")])
def test_without_metadata_the_last_axes_are_space(tmp_path: Path, shape: tuple[int, ...], axes: str) -> None:
    volume = open_volume(plain(tmp_path / "a", shape))
    assert (volume.axes, volume.shape, volume.voxel_size) == (axes, shape, (1.0,) * len(shape))


def test_four_dimensions_without_metadata_need_axes(tmp_path: Path) -> None:
    path = plain(tmp_path / "a", (2, 3, 4, 5))
    with pytest.raises(InputError, match="4 dimensions without metadata.*--axes czyx"):
        open_volume(path)
    volume = open_volume(path, axes="tyxc")
    assert (volume.shape, volume.n_channels, volume.grid_axes) == ((2, 3, 4), 5, "tyx")


@pytest.mark.parametrize("axes", ["y", "yxz", "yy", "ab", "tc", "YX"])
def test_axes_that_do_not_fit_are_refused(tmp_path: Path, axes: str) -> None:
    with pytest.raises(InputError, match="axes must name each of the 2 axes"):
        open_volume(plain(tmp_path / "a"), axes=axes)


@pytest.mark.parametrize(
    ("names", "axes"), [(("x", "y"), "xy"), (("C", "x"), "cx"), (("row", "col"), "yx"), (("y", "y"), "yx")]
)
def test_dimension_names_give_axes_where_they_are_letters_of_ours(
    tmp_path: Path, names: tuple[str, str], axes: str
) -> None:
    assert open_volume(plain(tmp_path / "a", dimension_names=names)).axes == axes


def test_the_dimension_names_of_xarray_in_zarr_v2_count_too(tmp_path: Path) -> None:
    path = plain(tmp_path / "a", zarr_format=2, attributes={"_ARRAY_DIMENSIONS": ["x", "y"]})
    assert open_volume(path).axes == "xy"


@pytest.mark.parametrize("separator", [".", "/"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [">u2", "<i4", ">f8"])
def test_zarr_v2_reads_right_whatever_its_separator_order_and_endianness(
    tmp_path: Path, separator: str, order: Any, dtype: str
) -> None:
    path = tmp_path / "a"
    array = zarr.create_array(
        path, shape=(5, 7), chunks=(2, 3), dtype=dtype, zarr_format=2, order=order,
        chunk_key_encoding={"name": "v2", "separator": separator},
    )  # fmt: skip
    data = np.arange(35).reshape(5, 7).astype(dtype)
    array[...] = data
    volume = open_volume(path)
    voxels = volume.read(volume.box)
    assert voxels.dtype.isnative
    assert volume.dtype == np.dtype(dtype).newbyteorder("=").name
    np.testing.assert_array_equal(voxels[0], data)


def test_voxel_size_and_position_of_a_plain_array_are_kept(tmp_path: Path) -> None:
    made = create_array(
        tmp_path / "a", axes="cyxz", shape=(3, 4, 5), n_channels=2, dtype="uint8", chunk=(2, 2, 2),
        voxel_size=(5, 2, 1), translation=(10, 0, 0), unit="nanometer",
    )  # fmt: skip
    found = open_volume(tmp_path / "a")
    assert found == made
    assert (found.voxel_size, found.translation, found.unit) == ((5, 2, 1), (10, 0, 0), "nanometer")


def test_a_given_voxel_size_wins_over_the_metadata(tmp_path: Path) -> None:
    path = image(tmp_path / "a")
    assert open_volume(path).voxel_size == (2, 1)
    assert open_volume(path, voxel_size=(7, 8)).voxel_size == (7, 8)
    for wrong in ((1,), (1, 0), (1, -1), (1, float("nan"))):
        with pytest.raises(InputError, match="one length above 0 for each spatial axis yx"):
            open_volume(path, voxel_size=wrong)


def test_a_missing_path_names_what_may_have_been_meant(tmp_path: Path) -> None:
    plain(tmp_path / "volume.zarr")
    with pytest.raises(InputError, match=r"does not exist; did you mean volume.zarr"):
        open_volume(tmp_path / "volumes.zarr")
    with pytest.raises(InputError, match="has no 'qqqq'"):
        open_volume(tmp_path / "qqqq" / "deeper")
    with pytest.raises(InputError, match=r"without Zarr metadata; inside it there is volume.zarr"):
        open_volume(tmp_path)
    (tmp_path / "image.tif").write_bytes(b"II*")
    with pytest.raises(InputError, match="the file .*unetflow convert"):
        open_volume(tmp_path / "image.tif")


def test_a_group_of_several_images_is_a_collection_sorted_by_name(tmp_path: Path) -> None:
    create_group(tmp_path / "g")
    for name in ("b", "a10", "a9", ".hidden"):
        image(tmp_path / "g" / name)
    create_labels_group(tmp_path / "g", ["x"])
    image(tmp_path / "g" / "labels" / "x", label=True)
    found = open_images(tmp_path / "g")
    assert list(found) == ["a10", "a9", "b"]
    assert found["b"] == open_volume(tmp_path / "g" / "b")
    with pytest.raises(InputError, match="with 3: a10, a9, b; name one"):
        open_volume(tmp_path / "g")


def test_a_group_of_one_image_stands_for_it(tmp_path: Path) -> None:
    create_group(tmp_path / "g")
    image(tmp_path / "g" / "only")
    expected = open_volume(tmp_path / "g" / "only")
    assert open_volume(tmp_path / "g") == expected
    assert open_images(tmp_path / "g") == {"": expected}
    assert open_images(tmp_path / "g" / "only" / "0") == {"": expected}


def test_a_group_without_images_tells_what_is_inside(tmp_path: Path) -> None:
    create_group(tmp_path / "out")
    with pytest.raises(InputError, match="neither; it is empty"):
        open_images(tmp_path / "out")
    create_labels_group(tmp_path / "out", ["classes"])
    image(tmp_path / "out" / "labels" / "classes", label=True)
    with pytest.raises(InputError, match="neither; inside it there is labels/classes"):
        open_volume(tmp_path / "out")
    assert open_volume(tmp_path / "out" / "labels" / "classes").axes == "yx"


def test_a_level_needs_an_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="level 1 needs an OME image"):
        open_volume(plain(tmp_path / "a"), level=1)
    with pytest.raises(InputError, match="1 levels 0 to 0, got -1"):
        open_volume(image(tmp_path / "b"), level=-1)


def test_an_empty_axis_and_complex_numbers_are_refused(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", shape=(0, 5), dtype="uint8")
    with pytest.raises(InputError, match="must hold a voxel"):
        open_volume(tmp_path / "a")
    with pytest.raises(InputError, match="got complex64"):
        open_volume(plain(tmp_path / "b", dtype="complex64"))


def test_older_metadata_are_understood(tmp_path: Path) -> None:
    datasets = [{"path": "0"}]
    strings = described(tmp_path / "a", {"multiscales": [{"axes": ["x", "y"], "datasets": datasets}]})
    assert open_volume(strings).axes == "xy"
    without = described(tmp_path / "b", {"multiscales": [{"datasets": datasets}]})
    assert open_volume(without).axes == "yx"


def test_scales_and_translations_are_composed_in_their_order(tmp_path: Path) -> None:
    axes = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
    own = [{"type": "scale", "scale": [2, 3]}, {"type": "translation", "translation": [1, 1]}]
    common = [{"type": "scale", "scale": [10, 10]}, {"type": "translation", "translation": [5, 0]}]
    datasets = [{"path": "0", "coordinateTransformations": own}]
    multiscale = {"axes": axes, "datasets": datasets, "coordinateTransformations": common}
    volume = open_volume(described(tmp_path / "a", {"multiscales": [multiscale]}))
    assert (volume.voxel_size, volume.translation) == ((20, 30), (15, 10))


def test_axes_of_differing_units_are_brought_to_micrometres(tmp_path: Path) -> None:
    axes = [
        {"name": "y", "type": "space", "unit": "micrometer"},
        {"name": "x", "type": "space", "unit": "nanometer"},
    ]
    datasets = [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [2, 500]}]}]
    volume = open_volume(described(tmp_path / "a", {"multiscales": [{"axes": axes, "datasets": datasets}]}))
    assert (volume.voxel_size, volume.unit) == ((2, 0.5), "micrometer")


@pytest.mark.parametrize(
    "multiscale",
    [
        {},
        {"axes": [{"name": "y"}, {"name": "x"}]},
        {"axes": 3, "datasets": [{"path": "0"}]},
        {"axes": ["y", "x"], "datasets": []},
        {"axes": ["y", "x"], "datasets": [{}]},
        {"axes": ["y", "x"], "datasets": [{"path": "../../etc"}]},
        {"axes": ["y", "x"], "datasets": [{"path": "absent"}]},
        {"axes": ["z", "y", "x"], "datasets": [{"path": "0"}]},
        {
            "axes": ["y", "x"],
            "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1]}]}],
        },
        {
            "axes": ["y", "x"],
            "datasets": [{"path": "0", "coordinateTransformations": [{"type": "affine", "affine": []}]}],
        },
        {
            "axes": ["y", "x"],
            "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [0, 1]}]}],
        },
    ],
)
def test_damaged_image_metadata_are_refused_without_a_traceback(
    tmp_path: Path, multiscale: dict[str, Any]
) -> None:
    path = described(tmp_path / "a", {"multiscales": [multiscale]})
    with pytest.raises(InputError):
        open_volume(path)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [-4, 4]},
        {"shape": "wide"},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**5, 10**6]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 4]}}},
        {"chunk_grid": {"name": "spiral"}},
        {"codecs": [{"name": "bytes"}, {"name": "made-up"}]},
        {"codecs": 7},
        {"codecs": None},
        {"data_type": "float2000"},
        {"zarr_format": 4},
        {"node_type": "picture"},
        {"dimension_names": 3},
    ],
)
def test_damaged_array_metadata_are_refused_without_a_traceback(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    document = plain(tmp_path / "a") / "zarr.json"
    document.write_text(json.dumps({**json.loads(document.read_text()), **change}))
    with pytest.raises(InputError):
        open_volume(tmp_path / "a")


@given(content=st.one_of(st.binary(max_size=40), st.recursive(st.none() | st.integers() | st.text(max_size=5),
       lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
       max_leaves=5).map(lambda value: json.dumps(value).encode())))  # fmt: skip
def test_any_bytes_as_metadata_give_a_clean_refusal(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("any")
    (path / "zarr.json").write_bytes(content)
    with pytest.raises(InputError, match=r"zarr\.json"):
        open_volume(path)


def test_deeply_nested_metadata_and_links_in_a_ring_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "zarr.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="damaged"):
        open_volume(tmp_path / "a")
    os.symlink(tmp_path / "c", tmp_path / "b")
    os.symlink(tmp_path / "b", tmp_path / "c")
    with pytest.raises(InputError, match="readable"):
        open_volume(tmp_path / "b")


def test_a_pickle_filter_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path = plain(tmp_path / "a", zarr_format=2)
    document = json.loads((path / ".zarray").read_text())
    document.update(dtype="|O", filters=[{"id": "pickle", "protocol": 5}], fill_value=None)
    (path / ".zarray").write_text(json.dumps(document))
    with pytest.raises(InputError):
        open_volume(path)


def test_a_file_url_and_a_path_from_home_become_plain_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plain(tmp_path / "a b")
    assert open_volume(f"file://{tmp_path}/a%20b").path == str(path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_volume("~/a b").path == str(path)
    monkeypatch.chdir(tmp_path)
    assert open_volume("a b").path == str(path)


def test_an_array_over_http_reads_as_on_disk(tmp_path: Path) -> None:
    image(tmp_path / "im", shape=(20, 30))
    volume = open_volume(tmp_path / "im")
    volume.write(volume.box, np.arange(600, dtype="uint16").reshape(20, 30).astype("uint8"))
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(quiet, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/im"
        remote = open_volume(url + "/")
        assert remote.path == f"{url}/0"
        assert remote.voxel_size == volume.voxel_size
        np.testing.assert_array_equal(remote.read(remote.box), volume.read(volume.box))
        assert len(remote.digest()) == 64
        with pytest.raises(InputError, match="no metadata are found"):
            open_volume(f"{url}/absent")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(InputError, match="must be readable"):
        open_volume(url)


def test_a_store_in_memory_takes_whole_images(tmp_path: Path) -> None:
    url = "memory://bucket/im"
    levels = create_image(
        url, axes="cyx", shape=(300, 40), n_channels=2, dtype="uint8", chunk=(64, 64), voxel_size=(1, 1)
    )
    data = np.ones((2, 300, 40), "uint8")
    levels[0].write(levels[0].box, data)
    again = open_volume(url)
    assert again == levels[0]
    np.testing.assert_array_equal(again.read(again.box), data)
    with pytest.raises(InputError, match="must not exist yet"):
        create_group(url)
    create_group(url, {"a": 1}, overwrite=True)
    assert store.read_node(url).attributes == {"a": 1}


def test_a_protocol_that_nobody_knows_is_refused() -> None:
    with pytest.raises(InputError, match=r"protocol that fsspec knows.*use s3://"):
        open_volume("gopher-zarr://host/a")
