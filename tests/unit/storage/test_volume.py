"""Reading and writing boxes: mirrored borders, axis orders, whole shards, damage."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from unetflow.geometry import Box
from unetflow.storage.volume import CorruptChunkError, Volume, create_array, open_volume

Array = np.ndarray[Any, Any]


def numbered(shape: tuple[int, ...], dtype: str = "uint16") -> Array:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def written(folder: str | Path, **options: Any) -> tuple[Volume, Array]:
    """Return a volume of 10 x 11 x 12 numbered voxels."""
    settings: dict[str, Any] = {"dtype": "uint16", "chunk": (4, 4, 4), "shard": (4, 8, 4), **options}
    volume = create_array(f"{folder}/a", axes="zyx", shape=(10, 11, 12), voxel_size=(1, 1, 1), **settings)
    data = numbered(volume.shape, settings["dtype"])
    volume.write(volume.box, data)
    return volume, data


lengths = st.integers(1, 7)


@given(
    shape=st.tuples(lengths, lengths, lengths),
    before=st.tuples(*[st.integers(0, 25)] * 3),
    after=st.tuples(*[st.integers(0, 25)] * 3),
)
def test_a_mirrored_read_equals_padding_the_whole_volume(
    shape: tuple[int, ...], before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        volume = create_array(
            f"{folder}/a", axes="zyx", shape=shape, dtype="uint16", chunk=(2, 3, 4), shard=(4, 3, 4)
        )
        data = numbered(shape)
        volume.write(volume.box, data)
        expected = np.pad(data, list(zip(before, after, strict=True)), mode="reflect")
        box = volume.box.grow(before, after)
        np.testing.assert_array_equal(volume.read_mirrored(box), expected[np.newaxis])


@given(st.data())
def test_any_mirrored_box_equals_that_part_of_a_far_padded_volume(draw: st.DataObject) -> None:
    shape = draw.draw(st.tuples(lengths, lengths))
    start = draw.draw(st.tuples(*[st.integers(-30, 30)] * 2))
    size = draw.draw(st.tuples(*[st.integers(0, 9)] * 2))
    box = Box(start, tuple(a + n for a, n in zip(start, size, strict=True)))
    with tempfile.TemporaryDirectory() as folder:
        volume = create_array(f"{folder}/a", axes="yx", shape=shape, dtype="uint8", chunk=(3, 3))
        data = numbered(shape, "uint8")
        volume.write(volume.box, data)
        far = np.pad(data, 40, mode="reflect")
        np.testing.assert_array_equal(volume.read_mirrored(box)[0], far[box.shift((40, 40)).slices])


def test_a_mirrored_read_opens_only_the_chunks_that_it_needs(tmp_path: Path) -> None:
    volume, data = written(tmp_path, shard=None)
    (tmp_path / "a" / "c" / "2" / "2" / "2").write_bytes(b"damage")
    near_origin = Box((-3, -3, -3), (2, 2, 2))
    np.testing.assert_array_equal(
        volume.read_mirrored(near_origin)[0], np.pad(data, 3, mode="reflect")[:5, :5, :5]
    )


@settings(max_examples=20)
@given(st.permutations("tczyx"), st.booleans())
def test_the_stored_axis_order_does_not_show_in_what_is_read(order: list[str], is_sharded: bool) -> None:
    axes = "".join(order)
    shape, chunk = (2, 3, 4, 5), (1, 2, 2, 3)
    data = numbered((3, *shape))
    with tempfile.TemporaryDirectory() as folder:
        volume = create_array(
            f"{folder}/a", axes=axes, shape=shape, n_channels=3, dtype="uint16", chunk=chunk,
            shard=(2, 2, 4, 3) if is_sharded else None,
        )  # fmt: skip
        volume.write(volume.box, data)
        assert (volume.grid_axes, volume.spatial_axes, volume.shape) == ("tzyx", "zyx", shape)
        np.testing.assert_array_equal(volume.read(volume.box), data)
        part = Box((1, 0, 1, 2), (2, 2, 4, 5))
        np.testing.assert_array_equal(volume.read(part), data[(slice(None), *part.slices)])
        stored = zarr.open_array(f"{folder}/a", mode="r")
        assert stored.metadata.dimension_names == tuple(axes)
        expected = data.transpose(["ctzyx".index(a) for a in axes])
        np.testing.assert_array_equal(stored[...], expected)


@given(st.data())
def test_only_boxes_of_whole_shards_are_written(draw: st.DataObject) -> None:
    shape, shard = (10, 9), (4, 6)
    start = draw.draw(st.tuples(st.integers(0, 9), st.integers(0, 8)))
    stop = tuple(draw.draw(st.integers(a, n)) for a, n in zip(start, shape, strict=True))
    box = Box(start, stop)
    is_whole = all(
        a % s == 0 and (b % s == 0 or b == n) for a, b, s, n in zip(start, stop, shard, shape, strict=True)
    )
    with tempfile.TemporaryDirectory() as folder:
        volume = create_array(
            f"{folder}/a", axes="yx", shape=shape, dtype="int32", chunk=(2, 3), shard=shard, fill_value=7
        )
        expected = np.full(shape, 7, "int32")
        if is_whole:
            volume.write(box, np.ones(box.shape, "int32"))
            expected[box.slices] = 1
        else:
            with pytest.raises(ValueError, match=r"whole shards \(4, 6\).*use"):
                volume.write(box, np.ones(box.shape, "int32"))
        np.testing.assert_array_equal(volume.read(volume.box)[0], expected)


def test_the_box_that_a_refused_write_proposes_is_accepted(tmp_path: Path) -> None:
    volume, _ = written(tmp_path)
    with pytest.raises(ValueError, match="use 0:4,8:11,4:12$"):
        volume.write(Box((1, 8, 4), (4, 10, 9)), np.zeros((3, 2, 5), "uint16"))
    volume.write(Box((0, 8, 4), (4, 11, 12)), np.zeros((4, 3, 8), "uint16"))


def test_without_shards_a_write_takes_whole_chunks(tmp_path: Path) -> None:
    volume, _ = written(tmp_path, shard=None)
    volume.write(Box((4, 4, 4), (8, 8, 8)), np.zeros((4, 4, 4), "uint16"))
    with pytest.raises(ValueError, match="whole chunks"):
        volume.write(Box((4, 4, 4), (8, 8, 7)), np.zeros((4, 4, 3), "uint16"))


def test_writing_the_same_block_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    volume, data = written(tmp_path)
    files = {p: p.read_bytes() for p in sorted(Path(volume.path).rglob("*")) if p.is_file()}
    volume.write(volume.box, data)
    assert files == {p: p.read_bytes() for p in sorted(Path(volume.path).rglob("*")) if p.is_file()}


def test_the_remains_of_an_interrupted_write_do_not_hinder_the_next(tmp_path: Path) -> None:
    volume, data = written(tmp_path)
    shard = Path(volume.path) / "c" / "2" / "1" / "0"
    for remains in (shard.read_bytes()[:-7], b""):
        shard.write_bytes(remains)
        box = Box((8, 8, 0), (10, 11, 4))
        volume.write(box, data[box.slices])
        np.testing.assert_array_equal(volume.read(volume.box)[0], data)


def test_a_block_of_fill_value_is_not_stored_and_removes_what_was_there(tmp_path: Path) -> None:
    volume, data = written(tmp_path)
    box = Box((0, 0, 0), (4, 8, 4))
    volume.write(box, np.zeros(box.shape, "uint16"))
    assert not (Path(volume.path) / "c" / "0" / "0" / "0").exists()
    data[box.slices] = 0
    np.testing.assert_array_equal(volume.read(volume.box)[0], data)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64"])
def test_every_plain_type_comes_back(tmp_path: Path, dtype: str) -> None:
    volume, data = written(tmp_path, dtype=dtype)
    assert volume.dtype == dtype
    np.testing.assert_array_equal(volume.read(volume.box)[0], data)


def test_data_that_would_wrap_around_are_refused(tmp_path: Path) -> None:
    volume, data = written(tmp_path)
    with pytest.raises(ValueError, match="cast to it safely, got float32"):
        volume.write(volume.box, data.astype("float32"))
    with pytest.raises(ValueError, match="must have the shape"):
        volume.write(volume.box, data[:5])


def test_a_box_outside_the_volume_is_not_read_unless_mirrored(tmp_path: Path) -> None:
    volume, _ = written(tmp_path)
    with pytest.raises(ValueError, match="inside the volume 0:10,0:11,0:12"):
        volume.read(Box((0, 0, 0), (11, 11, 12)))
    assert volume.read(Box((3, 3, 3), (3, 5, 5))).shape == (1, 0, 2, 2)
    assert volume.read_mirrored(Box((-3, 3, 3), (-3, 5, 5))).shape == (1, 0, 2, 2)


def test_a_volume_travels_and_is_a_key(tmp_path: Path) -> None:
    volume, data = written(tmp_path)
    twin = pickle.loads(pickle.dumps(volume))
    assert twin == volume
    assert hash(twin) == hash(volume)
    np.testing.assert_array_equal(twin.read(twin.box)[0], data)
    assert volume.nbytes == data.nbytes


def test_an_array_that_was_written_anew_is_opened_anew(tmp_path: Path) -> None:
    volume, _ = written(tmp_path)
    volume.read(volume.box)
    again = create_array(volume.path, axes="yx", shape=(5, 5), dtype="uint8", chunk=(2, 2), overwrite=True)
    assert again.read(again.box).shape == (1, 5, 5)


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 3] ^= 4
    path.write_bytes({"truncated": content[:-9], "empty": b"", "flipped": content}[how])


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped"])
@pytest.mark.parametrize("shard", [(4, 8, 4), None])
def test_damage_to_what_we_write_is_noticed_and_the_file_is_named(
    tmp_path: Path, how: str, shard: tuple[int, ...] | None
) -> None:
    volume = create_array(
        tmp_path / "a", axes="zyx", shape=(10, 11, 12), dtype="uint8", chunk=(4, 4, 4), shard=shard
    )
    volume.write(volume.box, np.random.default_rng(0).integers(0, 255, volume.shape, dtype="uint8"))
    damage(tmp_path / "a" / "c" / "1" / "1" / "2", how)
    with pytest.raises(CorruptChunkError, match="array .*/a, voxels .*file c/1/1/2") as caught:
        volume.read(volume.box)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    inside_another = Box((0, 0, 0), (4, 4, 4))
    assert volume.read(inside_another).any()


def test_a_missing_chunk_is_the_fill_value(tmp_path: Path) -> None:
    volume, data = written(tmp_path, fill_value=9)
    (tmp_path / "a" / "c" / "0" / "0" / "0").unlink()
    data[:4, :8, :4] = 9
    np.testing.assert_array_equal(volume.read(volume.box)[0], data)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("name", ["blosc", "zstd"])
def test_a_truncated_chunk_and_a_bomb_are_stopped_before_they_are_decoded(
    tmp_path: Path, name: str, zarr_format: int
) -> None:
    import numcodecs

    bomb = getattr(numcodecs, name.capitalize())()
    codecs: dict[tuple[str, int], Any] = {
        ("blosc", 2): numcodecs.Blosc(),
        ("zstd", 2): numcodecs.Zstd(),
        ("blosc", 3): zarr.codecs.BloscCodec(),
        ("zstd", 3): zarr.codecs.ZstdCodec(),
    }
    path = tmp_path / "a"
    array = zarr.create_array(
        path, shape=(64, 64), chunks=(32, 32), dtype="u1", zarr_format=zarr_format,  # type: ignore[arg-type]
        compressors=codecs[name, zarr_format],
    )  # fmt: skip
    array[...] = np.random.default_rng(0).integers(0, 4, (64, 64), dtype="uint8")
    volume = open_volume(path)
    np.testing.assert_array_equal(volume.read(volume.box)[0], array[...])
    chunk = path / ("1.1" if zarr_format == 2 else "c/1/1")
    whole = chunk.read_bytes()
    for content in (whole[:-40], bomb.encode(np.zeros(2**22, "u1"))):
        chunk.write_bytes(content)
        with pytest.raises(CorruptChunkError, match="1.1") as caught:
            volume.read(volume.box)
    assert "header says 4194304 bytes" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_no_damage(tmp_path: Path) -> None:
    volume, _ = written(tmp_path)
    (tmp_path / "a" / "c" / "0" / "0" / "0").chmod(0)
    with pytest.raises(PermissionError):
        volume.read(volume.box)


def test_other_software_reads_what_we_write(tmp_path: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    volume, data = written(tmp_path)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{volume.path}/"}}
    np.testing.assert_array_equal(tensorstore.open(spec).result().read().result(), data)
    sharding = json.loads((tmp_path / "a" / "zarr.json").read_text())["codecs"][0]["configuration"]
    assert sharding["index_location"] == "end"
    assert [c["name"] for c in sharding["index_codecs"]] == ["bytes", "crc32c"]
    assert sharding["codecs"][-1]["configuration"]["checksum"] is True


def test_channels_share_a_chunk_until_it_grows_large(tmp_path: Path) -> None:
    small = create_array(
        tmp_path / "a", axes="cyx", shape=(64, 64), n_channels=3, dtype="uint8", chunk=(32, 32)
    )
    large = create_array(
        tmp_path / "b", axes="cyx", shape=(4096, 4096), n_channels=3, dtype="float32", chunk=(2048, 2048)
    )
    assert zarr.open_array(small.path, mode="r").chunks == (3, 32, 32)
    assert zarr.open_array(large.path, mode="r").chunks == (1, 2048, 2048)
