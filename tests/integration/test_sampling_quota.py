"""Which patches are made: quotas, every volume and class, nothing of what is held out, nothing that is not there."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np
import project
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from unetflow.stages.census import Census
from unetflow.stages.prepare import prepare
from unetflow.stages.prepare_plan import plan

SEPARATE = {"model": {"dims": 3, "depth": 1, "base_channels": 2, "padding": "same"}}


def centres_of(folder: Path, split: str = "train") -> np.ndarray:
    """Volume and linear index of the centre of each patch."""
    return np.asarray(np.load(folder / "run" / ".unetflow" / f"places-{split}.npy"))


def save(path: Path, array: np.ndarray, chunk: int = 32) -> None:
    chunks = tuple(min(chunk, n) for n in array.shape)
    zarr.create_array(path, data=array, chunks=chunks, overwrite=True)


@pytest.mark.parametrize(("fraction", "count"), [(0.8, 50), (0.25, 37), (1.0, 20)])
def test_the_foreground_fraction_is_kept_within_one_patch(tmp_path: Path, fraction: float, count: int) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((1, 150, 150)) < 0.02).astype(np.uint8)
    save(tmp_path / "labels.zarr", labels)
    save(tmp_path / "raw.zarr", rng.integers(0, 255, labels.shape).astype(np.uint8))
    values = {"patches": count, "foreground_fraction": fraction, "validation_fraction": 0.0}
    prepare(project.settings_in(tmp_path, prepare=values))
    front = labels.ravel()[centres_of(tmp_path)[:, 1]].sum()
    assert abs(front - fraction * count) <= 1


def test_every_volume_and_every_class_gets_a_patch(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tables = []
    for number, shape in enumerate([(80, 400), (80, 70), (70, 80), (64, 64)]):
        labels = np.zeros(shape, np.uint8)
        labels[:, shape[1] // 2 :] = 1
        if number == 3:
            labels[:2, :2] = 2
        save(tmp_path / f"labels{number}.zarr", labels)
        save(tmp_path / f"raw{number}.zarr", rng.integers(0, 255, shape).astype(np.uint8))
        tables.append({"raw": f"raw{number}.zarr", "labels": f"labels{number}.zarr", "kind": "classes"})
    values = {"patch_shape": [60, 60], "validation_fraction": 0.0, "shard": None}
    for fraction in (None, 0.5):
        given_fraction = {} if fraction is None else {"foreground_fraction": fraction}
        prepare(project.settings_in(tmp_path, data=tables, prepare={**values, **given_fraction}), overwrite=True)
        centres = centres_of(tmp_path)
        assert set(centres[:, 0]) == {0, 1, 2, 3}
        in_corner = [p for v, p in centres if v == 3 and p // 64 < 2 and p % 64 < 2]
        assert in_corner, "class 2, 4 voxels in all, has no patch"


def test_roi_and_mask_bound_the_centres_and_no_patch_is_all_ignored(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 5, (2, 120, 130)).astype(np.uint8)
    mask = np.zeros(labels.shape, np.uint8)
    mask[1, 40:60, 50:52] = 1
    save(tmp_path / "labels.zarr", labels)
    save(tmp_path / "mask.zarr", mask)
    save(tmp_path / "raw.zarr", rng.integers(0, 255, labels.shape).astype(np.uint8))
    table = {**project.VALUES["data"][0], "mask": "mask.zarr", "roi": "0:2,45:120,0:130"}
    prepare(project.settings_in(tmp_path, data=[table], prepare={"patches": 30, "validation_fraction": 0.0}))
    z, y, x = np.unravel_index(centres_of(tmp_path)[:, 1], labels.shape)
    assert set(z) == {1}
    assert y.min() >= 45
    assert y.max() < 60
    assert set(x) <= {50, 51}
    weights = zarr.open_array(tmp_path / "run" / "dataset.zarr" / "patches" / "train" / "weight")[:]
    assert (weights.reshape(30, -1).max(axis=1) > 0).all()


def test_no_training_patch_holds_a_voxel_that_is_held_out(tmp_path: Path) -> None:
    # The held-out half is bright, the rest dark: one bright voxel in a training patch would show.
    raw = np.full((40, 48, 160), 10, np.uint8)
    labels = np.zeros(raw.shape, np.uint8)
    labels[10:30, 10:30, ::9] = 1
    values = {
        "patches": 40, "patch_shape": [16, 16, 32], "elastic_sigma": 6.0, "validation_fraction": 0.5, "shard": None,
        "interpolation_order": 1,
    }  # fmt: skip
    save(tmp_path / "labels.zarr", labels)
    save(tmp_path / "raw.zarr", raw)
    made = plan(project.settings_in(tmp_path, prepare=values, **SEPARATE))
    cut = made.splits[0].cut()
    assert cut is not None
    assert cut[0] == 2
    raw[:, :, cut[1] :] = 250
    save(tmp_path / "raw.zarr", raw)
    prepare(project.settings_in(tmp_path, prepare=values, **SEPARATE))
    patches = tmp_path / "run" / "dataset.zarr" / "patches"
    assert zarr.open_array(patches / "train" / "image")[:].max() == 10
    assert zarr.open_array(patches / "validation" / "image")[:].max() == 250
    assert centres_of(tmp_path)[:, 1].size == 40


@pytest.mark.parametrize("kind", ["instances", "classes", "multilabel"])
def test_missing_label_chunks_give_what_zeros_give_and_are_not_read(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(3)
    labels = np.zeros((96, 96, 128), np.uint8)
    labels[40:52, 40:52, 40:60] = 1
    labels[40:52, 54:60, 44:60] = 1 if kind == "multilabel" else 2
    raw = rng.integers(0, 255, labels.shape).astype(np.uint8)
    is_multilabel = kind == "multilabel"
    weights, counts = [], []
    for name, is_sparse in (("dense", False), ("sparse", True)):
        folder = tmp_path / name
        folder.mkdir()
        save(folder / "raw.zarr", raw[None] if is_multilabel else raw)
        stored = np.stack([labels, labels[:, ::-1]]) if is_multilabel else labels
        array = zarr.create_array(
            folder / "labels.zarr", shape=stored.shape, chunks=(1, 32, 32, 32)[-stored.ndim :], dtype="uint8",
            fill_value=0, config={"write_empty_chunks": not is_sparse},
        )  # fmt: skip
        array[:] = stored
        values = {
            "patch_shape": [16, 16, 16], "shard": [32, 32, 32], "chunk": [32, 32, 32], "validation_fraction": 0.0,
            "sigma": 2.0,
        }  # fmt: skip
        axes = {"axes": "czyx"} if is_multilabel else {}
        table = {"raw": "raw.zarr", "labels": "labels.zarr", "kind": kind, **axes}
        model = {**SEPARATE["model"], **({"head": "sigmoid"} if is_multilabel else {})}
        here = project.settings_in(folder, data=[table], prepare=values, model=model)
        # One block of 36 holds all labels, for both masks.
        assert plan(here).summary()["blocks_without_labels"] == (35 if is_sparse else 0)
        prepare(here)
        dataset = zarr.open_group(folder / "run" / "dataset.zarr")
        weights.append(np.asarray(dataset["weights/0"][:]))  # type: ignore[index]
        counts.append(dataset.attrs["unetflow"]["class_counts"])
    assert counts[0] == counts[1]
    assert (weights[0] > weights[0].min()).any()
    assert np.array_equal(weights[0], weights[1])
    places = centres_of(tmp_path / "sparse")[:, 1]
    assert 0 < len(np.unique(places)) == len(places), "the stream repeats itself"


def test_a_sparse_volume_of_terabytes_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    peaks, seconds = [], []
    for side in (1024, 4096):
        folder = tmp_path / str(side)
        folder.mkdir()
        for name in ("raw", "labels"):
            array = zarr.create_array(
                folder / f"{name}.zarr", shape=(side,) * 3, chunks=(128,) * 3, dtype="uint8", fill_value=0
            )
            texture = np.random.default_rng(0).integers(1, 255, (20, 60, 80), np.uint8)
            array[130:150, 140:200, 100:180] = texture if name == "raw" else texture > 100
        values = {"patch_shape": [16, 16, 16], "shard": [128, 128, 128], "sigma": 2.0, "foreground_fraction": 0.5}
        tracemalloc.start()
        start = time.monotonic()
        prepare(project.settings_in(folder, prepare=values, **SEPARATE))
        seconds.append(time.monotonic() - start)
        assert len(centres_of(folder, "validation")), "nothing validates, though labels are there"
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 5e6, f"memory grows with the volume: {peaks}"
    # 64 times the voxels: whoever touched them all would take minutes longer.
    assert seconds[1] < 30 + 4 * seconds[0]


@settings(max_examples=40)
@given(st.integers(1, 40), st.none() | st.floats(0, 1), st.integers(1, 6), st.integers(0, 1000))
def test_quotas_hold_for_any_census(count: int, fraction: float | None, n_volumes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    census = Census(count)
    for volume in range(n_volumes):
        for value in range(3):
            n = int(rng.integers(1, 30))
            ranks = rng.integers(0, 2**63, n).astype(np.uint64)
            census.add_centres(value, volume, ranks, (np.arange(n) * 3 + value).astype(np.uint64))
    drawn = census.draw(count, fraction, False)
    classes = drawn[:, 1] % 3
    if fraction is not None:
        assert abs((classes > 0).sum() - fraction * count) <= 1
    if count >= n_volumes + 3 and fraction is None:
        assert len(set(drawn[:, 0])) == n_volumes
        assert len(set(classes)) == 3
    assert np.array_equal(drawn, census.draw(count, fraction, False))
