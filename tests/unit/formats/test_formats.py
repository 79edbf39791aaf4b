from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from unetflow.errors import InputError
from unetflow.formats import Grey, Oriented, Stacked, by_name, digest_files, list_files, open_file, open_files
from unetflow.geometry import Box

RNG = np.random.default_rng(0)


def whole(path: Path | str, **options: bool) -> np.ndarray:
    source = open_file(str(path), **options)
    array = source.read(Box.of_shape(source.shape))
    assert array.shape == source.shape
    assert array.dtype == source.dtype
    return array


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"compression": "zlib", "rowsperstrip": 7},
        {"compression": "zlib", "predictor": True, "tile": (16, 32)},
        {"compression": "lzw", "rowsperstrip": 1},
        {"imagej": True},
    ],
    ids=str,
)
def test_any_box_of_a_tiff_stack_equals_the_array(tmp_path: Path, options: dict[str, object]) -> None:
    array = RNG.integers(0, 60000, (5, 37, 50), dtype=np.uint16)
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, array, photometric="minisblack", metadata={"axes": "ZYX"}, **options)
    source = open_file(str(path))
    assert (source.shape, source.axes, source.dtype) == ((5, 37, 50), "zyx", "uint16")
    for _ in range(8):
        start = [int(RNG.integers(0, n)) for n in array.shape]
        stop = [int(RNG.integers(a + 1, n + 1)) for a, n in zip(start, array.shape, strict=True)]
        box = Box(tuple(start), tuple(stop))
        np.testing.assert_array_equal(source.read(box), array[box.slices])


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_channels_of_a_compressed_tiff_come_out_in_their_place(
    tmp_path: Path, planar: str, tile: tuple[int, int] | None
) -> None:
    array = RNG.integers(0, 255, (40, 30, 3), dtype=np.uint8)
    stored = array if planar == "contig" else np.moveaxis(array, -1, 0)
    path = tmp_path / "rgb.tif"
    tifffile.imwrite(path, stored, photometric="rgb", planarconfig=planar, compression="zlib", tile=tile)
    source = open_file(str(path))
    assert source.axes == ("yxc" if planar == "contig" else "cyx")
    box = Box((3, 5, 1), (33, 20, 3)) if planar == "contig" else Box((1, 3, 5), (3, 33, 20))
    np.testing.assert_array_equal(source.read(box), stored[box.slices])


def test_ome_metadata_give_axes_and_voxel_size_in_micrometres(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (2, 3, 4, 20, 24), dtype=np.uint8)
    path = tmp_path / "cell.ome.tif"
    metadata = {
        "axes": "TCZYX",
        "PhysicalSizeX": 100.0,
        "PhysicalSizeXUnit": "nm",
        "PhysicalSizeY": 0.1,
        "PhysicalSizeYUnit": "µm",
        "PhysicalSizeZ": 0.5,
    }
    tifffile.imwrite(path, array, metadata=metadata)
    source = open_file(str(path))
    assert (source.name, source.axes) == ("cell", "tczyx")
    assert source.voxel_size == pytest.approx((0.5, 0.1, 0.1))
    oriented = Oriented(source, "tczyx", (0.5, 0.1, 0.1))
    assert (oriented.grid_axes, oriented.shape, oriented.n_channels) == ("tzyx", (2, 4, 20, 24), 3)
    got = oriented.read(Box((1, 1, 2, 3), (2, 3, 9, 8)))
    np.testing.assert_array_equal(got, array[1:2, :, 1:3, 2:9, 3:8].swapaxes(0, 1))


def test_imagej_metadata_give_the_voxel_size(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    array = np.zeros((4, 8, 9), np.uint16)
    metadata = {"axes": "ZYX", "spacing": 2.0, "unit": "um"}
    tifffile.imwrite(path, array, imagej=True, resolution=(4.0, 5.0), metadata=metadata)
    assert open_file(str(path)).voxel_size == pytest.approx((2.0, 0.2, 0.25))


def test_resolution_tags_for_printers_are_no_voxel_size(tmp_path: Path) -> None:
    path = tmp_path / "print.tif"
    tifffile.imwrite(path, np.zeros((8, 9), np.uint8), resolution=(72, 72), resolutionunit="INCH", metadata=None)
    assert open_file(str(path)).voxel_size is None


def test_pages_without_metadata_have_no_axes(tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    with tifffile.TiffWriter(path) as file:
        for plane in range(3):
            file.write(np.full((8, 9), plane, np.uint8), metadata=None, contiguous=False)
    source = open_file(str(path))
    assert (source.shape, source.axes) == ((3, 8, 9), None)
    np.testing.assert_array_equal(whole(path)[:, 0, 0], [0, 1, 2])


def test_an_imagej_hyperstack_has_time_and_channels(tmp_path: Path) -> None:
    array = RNG.integers(0, 60000, (2, 3, 4, 8, 9), dtype=np.uint16)
    metadata = {"axes": "TZCYX", "spacing": 0.5, "unit": "micron"}
    tifffile.imwrite(tmp_path / "h.tif", array, imagej=True, resolution=(10, 10), metadata=metadata)
    source = open_file(str(tmp_path / "h.tif"))
    assert source.axes == "tzcyx"
    assert source.voxel_size == pytest.approx((0.5, 0.1, 0.1))
    np.testing.assert_array_equal(source.read(Box((1, 0, 1, 2, 0), (2, 3, 4, 8, 5))), array[1:2, :, 1:4, 2:8, :5])


def test_one_bit_tiff_becomes_uint8(tmp_path: Path) -> None:
    mask = RNG.random((9, 17)) > 0.5
    tifffile.imwrite(tmp_path / "mask.tif", mask)
    np.testing.assert_array_equal(whole(tmp_path / "mask.tif"), mask.astype(np.uint8))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "bool"])
def test_grey_pictures_keep_their_values(tmp_path: Path, dtype: str) -> None:
    array = RNG.integers(0, 2 if dtype == "bool" else np.iinfo(dtype).max, (11, 13)).astype(dtype)
    Image.fromarray(array).save(tmp_path / "a.png")
    np.testing.assert_array_equal(whole(tmp_path / "a.png"), array)


def test_alpha_is_no_data(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (6, 7, 4), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "rgba.png")
    Image.fromarray(array[..., :2]).save(tmp_path / "la.png")
    np.testing.assert_array_equal(whole(tmp_path / "rgba.png"), array[..., :3])
    np.testing.assert_array_equal(whole(tmp_path / "la.png"), array[..., 0])


def test_a_palette_gives_indices_for_labels_and_colours_for_images(tmp_path: Path) -> None:
    indices = RNG.integers(0, 3, (6, 7), dtype=np.uint8)
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    picture.save(tmp_path / "p.png")
    np.testing.assert_array_equal(whole(tmp_path / "p.png", as_labels=True), indices)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]])[indices]
    np.testing.assert_array_equal(whole(tmp_path / "p.png"), colours)


def test_sixteen_bit_colour_png_is_refused_because_bits_would_be_lost(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    content[24] = 16
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"8 bits|Pillow"):
        open_file(str(path))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [">u2", "<f4", "?"])
def test_a_box_of_npy_is_native_whatever_its_order(tmp_path: Path, order: str, dtype: str) -> None:
    array = np.asarray(RNG.integers(0, 2, (4, 5, 6)), dtype=dtype, order=order)  # type: ignore[call-overload]
    np.save(tmp_path / "a.npy", array)
    source = open_file(str(tmp_path / "a.npy"))
    box = Box((1, 0, 2), (4, 5, 5))
    got = source.read(box)
    assert got.dtype.isnative
    np.testing.assert_array_equal(got, array[box.slices])


def test_objects_and_complex_numbers_are_refused_without_being_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "c.npy", np.zeros((2, 2), np.complex64))
    for name in ("o.npy", "c.npy"):
        with pytest.raises(InputError):
            open_file(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.npy"])
@pytest.mark.parametrize("content", [b"", b"II*\0garbage", b"\x89PNG\r\n\x1a\n", b"\x93NUMPY\x01"])
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=name):
        open_file(str(tmp_path / name))


def test_files_come_in_natural_order_without_hidden_and_foreign_ones(tmp_path: Path) -> None:
    for name in ("t10.png", "t2.png", ".t1.png", "readme.txt"):
        Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / name, format="png")
    assert [Path(f).name for f in list_files(str(tmp_path))] == ["t2.png", "t10.png"]
    assert [Path(f).name for f in list_files(str(tmp_path / "t*.png"))] == ["t2.png", "t10.png"]


@pytest.mark.parametrize("source", ["nothing", "empty", "empty/*.png"])
def test_a_missing_or_empty_source_is_refused(tmp_path: Path, source: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError):
        list_files(str(tmp_path / source))


def test_two_files_of_one_name_make_no_collection(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 2)))
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="names of their own"):
        by_name(open_files(str(tmp_path)))


def test_stacked_files_read_as_one_array(tmp_path: Path) -> None:
    array = RNG.integers(0, 255, (12, 8, 9), dtype=np.uint8)
    for number, plane in enumerate(array):
        Image.fromarray(plane).save(tmp_path / f"s{number}.png")
    files = open_files(str(tmp_path))
    stacked = Stacked.of(str(tmp_path), files[0], len(files), "zyx")
    box = Box((1, 2, 3), (11, 8, 6))
    np.testing.assert_array_equal(stacked.read(box), array[box.slices])
    (tmp_path / "s5.png").unlink()
    with pytest.raises(ValueError, match="12 files"):
        stacked.read(box)


def test_a_grey_picture_in_colours_loses_its_channels_and_a_coloured_one_is_refused(tmp_path: Path) -> None:
    grey = RNG.integers(0, 255, (8, 9), dtype=np.uint8)
    colours = np.stack([grey] * 3, axis=-1)
    Image.fromarray(colours).save(tmp_path / "grey.png")
    source = Grey.of(open_file(str(tmp_path / "grey.png")))
    np.testing.assert_array_equal(source.read(Box((1, 2), (5, 9))), grey[1:5, 2:])
    colours[3, 3, 1] ^= 1
    Image.fromarray(colours).save(tmp_path / "coloured.png")
    with pytest.raises(InputError, match="colours"):
        Grey.of(open_file(str(tmp_path / "coloured.png"))).check()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(axes=st.permutations("tczyx"), drop=st.integers(0, 3), seed=st.integers(0, 99))
def test_any_stored_order_reads_as_channels_then_grid(
    tmp_path: Path, axes: list[str], drop: int, seed: int
) -> None:
    letters = "".join(a for a in axes if a not in "tcz"[:drop])
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 255, [2 + "tczyx".index(a) for a in letters], dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    volume = Oriented(open_file(str(tmp_path / "a.npy")), letters, ())
    canonical = [a for a in "ctzyx" if a in letters]
    expected = array.transpose([letters.index(a) for a in canonical])
    expected = expected if "c" in letters else expected[None]
    start = tuple(int(rng.integers(0, n)) for n in volume.shape)
    box = Box(start, volume.shape)
    np.testing.assert_array_equal(volume.read(box), expected[(slice(None), *box.slices)])


def test_the_digest_follows_content_changes_and_not_the_place(tmp_path: Path) -> None:
    for place in ("a/x", "b/x"):
        (tmp_path / place).mkdir(parents=True)
        np.save(tmp_path / place / "v.npy", np.zeros(3))
    import os

    for place in ("a/x", "b/x"):
        os.utime(tmp_path / place / "v.npy", ns=(0, 0))
    one, other = (digest_files(list_files(str(tmp_path / place))) for place in ("a/x", "b/x"))
    assert one == other
    np.save(tmp_path / "b/x/v.npy", np.zeros(4))
    assert digest_files(list_files(str(tmp_path / "b/x"))) != one
