"""`label_volume` and `score` are of use alone, for arrays and for paths; evaluate shows where it is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image
from scipy import ndimage
from skimage.metrics import adapted_rand_error, variation_of_information
from typer.testing import CliRunner

import unetflow
from unetflow.errors import InputError


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def blobs(shape: tuple[int, ...], seed: int = 0, share: float = 0.35) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.5)
    return np.asarray(smooth > np.quantile(smooth, 1 - share))


def same_objects(a: np.ndarray, b: np.ndarray) -> bool:
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return len(pairs[0]) == len(np.unique(a)) == len(np.unique(b))


@pytest.mark.parametrize("connectivity", ["face", "full"])
def test_an_array_gives_scipys_labels_by_first_voxel(tmp_path: Path, connectivity: str) -> None:
    mask = blobs((20, 40, 50))
    found = unetflow.label_volume(mask, connectivity=connectivity)
    structure = ndimage.generate_binary_structure(3, 3 if connectivity == "full" else 1)
    assert same_objects(found, ndimage.label(mask, structure)[0])
    ids, first = np.unique(found, return_index=True)
    assert ids.tolist() == list(range(len(ids)))
    assert (np.diff(first[1:]) > 0).all()
    assert not list(tmp_path.iterdir())


def test_a_path_gives_the_same_bytes_from_a_loop_and_from_two_workers(tmp_path: Path, two_workers: Any) -> None:
    mask = blobs((40, 60, 50))
    raw = zarr.create_array(tmp_path / "mask.zarr", shape=mask.shape, chunks=(16, 16, 16), dtype="uint8")
    raw[:] = mask
    trees = []
    for name, client in (("one", None), ("two", two_workers)):
        done = unetflow.label_volume(tmp_path / "mask.zarr", tmp_path / name, client=client, min_size=20)
        files = sorted(p for p in (tmp_path / name).rglob("*") if p.is_file() and ".unetflow" not in p.parts)
        trees.append({str(p.relative_to(tmp_path / name)): p.read_bytes() for p in files})
        found = zarr.open_array(tmp_path / name)[:]
        assert done["objects"] == found.max()
    assert trees[0] == trees[1]
    assert np.array_equal(found, unetflow.label_volume(mask, min_size=20))
    again = unetflow.label_volume(tmp_path / "mask.zarr", tmp_path / "one", min_size=20)
    assert again["blocks"] == again["blocks_skipped"] > 0


def test_threshold_planes_and_holes_are_asked_for(tmp_path: Path) -> None:
    p = ndimage.gaussian_filter(np.random.default_rng(3).random((3, 60, 70)), (0, 2, 2)).astype(np.float32)
    cut = float(np.quantile(p, 0.4))
    found = unetflow.label_volume(p, threshold=cut, dims=2, fill_holes=True)
    filled = np.stack([ndimage.binary_fill_holes(plane > cut) for plane in p])
    assert (filled != (p > cut)).any()
    planes = np.ones((3, 3, 3), bool) & np.array([False, True, False])[:, None, None]
    assert same_objects(found, ndimage.label(filled, planes & ndimage.generate_binary_structure(3, 1))[0])


def test_scores_of_arrays_are_scikit_images(tmp_path: Path) -> None:
    truth = ndimage.label(blobs((12, 40, 50)))[0]
    seg = np.roll(truth, 2, axis=2)
    found = unetflow.score(seg, truth)
    expected = [*adapted_rand_error(truth, seg), *variation_of_information(truth, seg, ignore_labels=(0,))]
    keys = ["adapted_rand_error", "rand_precision", "rand_recall", "voi_split", "voi_merge"]
    np.testing.assert_allclose([found[k] for k in keys], expected, rtol=0, atol=1e-9)
    assert found["pixel_error"] == ((seg > 0) != (truth > 0)).mean()
    assert not list(tmp_path.iterdir())


def test_outside_a_mask_nothing_counts(tmp_path: Path) -> None:
    truth = ndimage.label(blobs((40, 52)))[0]
    seg = truth.copy()
    seg[:, :26] = 0
    mask = np.zeros((20, 26), np.uint8)  # half as fine
    mask[:, 13:] = 1
    zarr.save_array(tmp_path / "mask.zarr", mask)
    assert unetflow.score(seg, truth)["pixel_error"] > 0
    found = unetflow.score(seg, truth, mask=str(tmp_path / "mask.zarr"))
    assert (found["pixel_error"], found["seg"], found["adapted_rand_error"]) == (0, 1, 0)


def test_pictures_show_the_worst_sections_first(tmp_path: Path) -> None:
    from unetflow.cli import app

    truth = np.stack([ndimage.label(blobs((60, 80), seed))[0] for seed in range(3)])
    seg = truth.copy()
    seg[1, 20:40] = 0
    seg[2, 5:9] = 0
    for name, data in (("seg", seg), ("truth", truth)):
        zarr.save_array(tmp_path / f"{name}.zarr", data.astype(np.uint32))
    words = ["evaluate", "seg.zarr", "truth.zarr", "--sections", "--overlays", "pictures", "--cluster", "none"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    files = json.loads(done.stdout)["overlays"]
    assert [Path(f).name for f in files] == ["worst-1-at-1-0-0.png", "worst-2-at-2-0-0.png"]
    picture = np.asarray(Image.open(files[0]))
    assert picture.shape == (60 * 6, 80 * 6, 3)
    blue = (picture == (40, 120, 255)).all(axis=2)
    assert blue.any()
    assert not blue[: 20 * 6].any() and not blue[40 * 6 :].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unetflow.label_volume("mask.zarr"), "name it with out"),
        (lambda: unetflow.label_volume(np.ones(3)), "2 to 4 axes"),
        (lambda: unetflow.label_volume(np.ones((3, 3)), connectivity="edge"), "face or full"),
        (lambda: unetflow.score(np.ones((3, 3), int), np.ones((3, 3), int), kind="masks"), "instances or classes"),
        (lambda: unetflow.score(np.ones((3, 3), int), np.ones((3, 4), int)), "same place"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_cure(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
