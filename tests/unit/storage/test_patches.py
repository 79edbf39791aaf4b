"""The patch store: what is written by shards is read by numbers."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetflow.errors import InputError
from unetflow.storage.ngff import create_group
from unetflow.storage.patches import PatchStore, create_patches, open_patches

Array = np.ndarray[Any, Any]


def filled(folder: str, count: int, shard_size: int | None, n_classes: int = 0) -> tuple[PatchStore, Array]:
    create_group(f"{folder}/d")
    target_shape = (n_classes, 4, 3) if n_classes else (4, 3)
    patches = create_patches(
        f"{folder}/d", "train", count=count, image_shape=(2, 6, 5), image_dtype="uint16",
        target_shape=target_shape, shard_size=shard_size,
    )  # fmt: skip
    image = np.arange(count * 60).reshape(count, 2, 6, 5).astype("uint16")
    for shard in range(patches.n_shards):
        rows = patches.shard_range(shard)
        target = np.stack([np.full(target_shape, n % 2, "uint8") for n in rows])
        weight = np.stack([np.full(target_shape, n / 4, "float32") for n in rows])
        patches.write_shard(shard, image[rows.start : rows.stop], target, weight)
    return patches, image


@settings(max_examples=12)
@given(count=st.integers(1, 9), shard_size=st.none() | st.integers(1, 12), draw=st.data())
def test_any_numbers_are_read_in_their_order(count: int, shard_size: int | None, draw: st.DataObject) -> None:
    numbers = draw.draw(st.lists(st.integers(0, count - 1), max_size=12))
    with tempfile.TemporaryDirectory() as folder:
        patches, images = filled(folder, count, shard_size)
        image, target, weight = patches.read(numbers)
        np.testing.assert_array_equal(image, images[numbers].reshape(-1, 2, 6, 5))
        assert target.shape == weight.shape == (len(numbers), 4, 3)
        assert (target.dtype, weight.dtype) == (np.uint8, np.float32)
        assert target[:, 0, 0].tolist() == [n % 2 for n in numbers]
        assert weight[:, 0, 0].tolist() == [n / 4 for n in numbers]


@given(count=st.integers(1, 50), shard_size=st.none() | st.integers(1, 60))
def test_shards_hold_every_patch_once(count: int, shard_size: int | None) -> None:
    size = shard_size or 7
    patches = PatchStore("d", "train", count, (1, 8, 8), (8, 8), "uint8", size)
    numbers = [n for shard in range(patches.n_shards) for n in patches.shard_range(shard)]
    assert numbers == list(range(len(patches)))
    with pytest.raises(IndexError):
        patches.shard_range(patches.n_shards)


def test_a_store_opens_as_it_was_made_and_travels(tmp_path: Path) -> None:
    patches, _ = filled(str(tmp_path), 5, 2, n_classes=3)
    found = open_patches(tmp_path / "d", "train")
    assert found == patches == pickle.loads(pickle.dumps(found))
    assert found.read([4])[2].shape == (1, 3, 4, 3)
    with pytest.raises(InputError, match="'validation'.*unetflow prepare"):
        open_patches(tmp_path / "d", "validation")


def test_shards_serve_32_workers_hold_64_mib_at_most_and_large_patches_stand_alone(tmp_path: Path) -> None:
    create_group(tmp_path / "d")
    small = create_patches(tmp_path / "d", "train", count=2, image_shape=(1, 8, 8), image_dtype="uint8",
                           target_shape=(8, 8))  # fmt: skip
    assert small.n_shards == 2
    large = create_patches(tmp_path / "d", "validation", count=9, image_shape=(1, 8192, 8192),
                           image_dtype="uint16", target_shape=(8, 8))  # fmt: skip
    assert large.shard_size == 1
    for count, size in ((1000, 32), (10_000, 2**26 // (572**2 + 3 * 388**2))):
        usual = create_patches(tmp_path / "d", "train", count=count, image_shape=(1, 572, 572),
                               image_dtype="uint8", target_shape=(388, 388), overwrite=True)  # fmt: skip
        assert usual.shard_size == size


def test_wrong_shapes_and_numbers_are_refused(tmp_path: Path) -> None:
    patches, image = filled(str(tmp_path), 3, 2)
    target = np.zeros((2, 4, 3))
    with pytest.raises(ValueError, match="image of shard 1 must have the shape"):
        patches.write_shard(1, image[:2], target, target)
    for numbers in ([3], [-1], [2, 3]):
        with pytest.raises(IndexError):
            patches.read(numbers)
    with pytest.raises(InputError, match="--overwrite"):
        create_patches(tmp_path / "d", "train", count=1, image_shape=(1, 8, 8), image_dtype="uint8",
                       target_shape=(8, 8))  # fmt: skip


def test_weights_beyond_float16_stay_finite(tmp_path: Path) -> None:
    patches, image = filled(str(tmp_path), 1, 1)
    patches.write_shard(0, image, np.zeros((1, 4, 3)), np.full((1, 4, 3), 1e6, "float32"))
    assert np.isfinite(patches.read([0])[2]).all()
