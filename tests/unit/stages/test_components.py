"""Components found block by block, with tables in the store, are SciPy's of the whole volume."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from whole_labels import whole_labels

from unetflow.errors import StageError
from unetflow.geometry import BlockGrid, Box
from unetflow.stages.component_blocks import Keep
from unetflow.stages.components import Labelling, is_foreground, label_volumes
from unetflow.stages.work import Conditions, open_work


@st.composite
def masks(draw: st.DrawFn) -> np.ndarray:
    ndim = draw(st.integers(2, 4))
    shape = draw(hnp.array_shapes(min_dims=ndim, max_dims=ndim, min_side=2, max_side=(12, 7, 4)[ndim - 2]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.random(shape) < draw(st.sampled_from([0.2, 0.4, 0.6]))


def write(path: Path, data: np.ndarray, block: tuple[int, ...], dtype: str, axes: str) -> Any:
    from unetflow.storage.volume import create_array

    volume = create_array(path, axes=axes, shape=data.shape, chunk=block, dtype=dtype)
    for piece in BlockGrid(volume.box, block):
        if dtype == "uint8":
            volume.write(piece.inner, data[piece.inner.slices].astype(np.uint8))
    return volume


def label(
    folder: Path, masks: list[np.ndarray], block: tuple[int, ...], linked: tuple[bool, ...], client: Any = None,
    **options: Any,
) -> list[np.ndarray]:  # fmt: skip
    """Label masks as one collection, in blocks of one shape."""
    jobs = []
    axes = "tzyx"[-masks[0].ndim :]
    for i, mask in enumerate(masks):
        arrays = [
            write(folder / f"{name}-{i}", mask, block, dtype, axes)
            for name, dtype in (("mask", "uint8"), ("fragments", "uint32"), ("ids", "uint32"))
        ]
        jobs.append(Labelling(*arrays, BlockGrid(Box.of_shape(mask.shape), block), linked))
    options = {"connectivity": "face", **options}
    with open_work("segment", folder / "work", {}, Conditions(client)) as work:
        counts = label_volumes(work, tuple(jobs), is_foreground, scratch=folder / "scratch", **options)
    found = [np.asarray(zarr.open_array(folder / f"ids-{i}")[:]) for i in range(len(masks))]
    assert counts == [ids.max() for ids in found]
    return found


@pytest.mark.parametrize("connectivity", ["face", "full"])
def test_any_cut_gives_scipys_components_voxel_for_voxel(connectivity: str) -> None:
    @settings(max_examples=6)
    @given(masks(), st.data())
    def check(mask: np.ndarray, data: st.DataObject) -> None:
        block = tuple(data.draw(st.integers(max(1, n // 2), n)) for n in mask.shape)
        linked = data.draw(st.tuples(*[st.sampled_from([True, True, False])] * mask.ndim))
        min_size = data.draw(st.sampled_from([0, 0, 3]))
        with tempfile.TemporaryDirectory() as folder:
            options = {"connectivity": connectivity, "min_size": min_size}
            [found] = label(Path(folder), [mask], block, linked, **options)
        np.testing.assert_array_equal(found, whole_labels(mask, linked, connectivity, min_size))

    check()


def test_a_snake_through_all_slabs_and_back_is_one_object(tmp_path: Path) -> None:
    mask = np.zeros((23, 17, 9), np.uint8)
    mask[:, ::4] = 1
    mask[-1, :9], mask[0, 8:] = 1, 1  # joined in the last slab, and in the first
    mask[5, 6] = 1
    [found] = label(tmp_path, [mask], (3, 5, 4), (True,) * 3)
    np.testing.assert_array_equal(found, whole_labels(mask > 0, (True,) * 3, "face", 0))


def test_a_collection_is_numbered_image_by_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    found = label(tmp_path, [m := rng.random((20, 30)) < 0.5, ~m, m[:7, :9]], (6, 8), (True, True))
    for ids, mask in zip(found, (m, ~m, m[:7, :9]), strict=True):
        np.testing.assert_array_equal(ids, whole_labels(mask, (True, True), "face", 0))


def test_what_touches_the_border_or_is_too_large_can_be_dropped(tmp_path: Path) -> None:
    mask = np.zeros((12, 20), np.uint8)
    mask[0, 3:9], mask[5, 2:18], mask[8:10, 8:10] = 1, 1, 1
    [found] = label(tmp_path, [mask], (5, 4), (True, True), keep=Keep(0, 10, inside_only=True))
    expected = np.zeros((12, 20), int)
    expected[8:10, 8:10] = 1
    np.testing.assert_array_equal(found, expected)


def test_more_objects_than_a_target_counts_ask_for_a_wider_one(tmp_path: Path) -> None:
    from unetflow.storage.volume import create_array

    mask = np.zeros((40, 40), np.uint8)
    mask[::2, ::2] = 1
    folder = tmp_path / "narrow"
    arrays = [write(folder / name, mask, (16, 16), dtype, "yx") for name, dtype in (("m", "uint8"), ("f", "uint32"))]
    narrow = create_array(folder / "ids", axes="yx", shape=mask.shape, chunk=(16, 16), dtype="uint8")
    wide = create_array(folder / "wide", axes="yx", shape=mask.shape, chunk=(16, 16), dtype="uint16")
    job = Labelling(*arrays, narrow, BlockGrid(narrow.box, (16, 16)), (True, True))
    for widen in (None, lambda index: (narrow, wide)[index + 1]):
        with open_work("segment", folder / f"work-{widen is None}", {}, Conditions()) as work:
            options: dict[str, Any] = {"connectivity": "face", "scratch": folder / f"s-{widen is None}"}
            if widen is None:
                with pytest.raises(StageError, match="400 objects need more than uint8"):
                    label_volumes(work, (job,), is_foreground, **options)
            else:
                assert label_volumes(work, (job,), is_foreground, widen=widen, **options) == [400]
    np.testing.assert_array_equal(zarr.open_array(folder / "wide")[:], whole_labels(mask > 0, (True, True), "face", 0))
