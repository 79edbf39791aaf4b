"""Every kind of real data through the whole chain, in small: what runs here runs in full in workflows/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from unetflow.settings import make_settings
from unetflow.stages.convert import convert
from unetflow.stages.evaluate import evaluate
from unetflow.stages.prepare import prepare
from unetflow.stages.segment import segment
from unetflow.stages.train import train

SMALL = {
    "prepare": {"patches": 4, "elastic_sigma": 3.0},
    "model": {"depth": 2, "base_channels": 4, "norm": "batch"},
    "train": {"steps": 3, "optimizer": "adam", "batch_size": 2},
}


def run_all(
    folder: Path, data: dict[str, Any], model: dict[str, Any], outputs: list[str], **scores: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Prepare, train, segment the training raw itself, evaluate."""
    values = {
        **SMALL,
        "data": [{"raw": "raw.zarr", "labels": "labels.zarr", **data}],
        "model": {**SMALL["model"], **model},
        "segment": {"outputs": outputs, "memory": "400 MB"},
    }
    settings = make_settings(values, folder=str(folder))
    prepare(settings)
    train(settings)
    out = folder / "out.zarr"
    found = segment(settings, str(folder / "raw.zarr"), out=str(out))
    return found, evaluate(settings, str(out), str(folder / "labels.zarr"), **scores)


def link(folder: Path, files: list[Path]) -> Path:
    """Put links to some files into a folder."""
    folder.mkdir()
    for file in files:
        (folder / file.name).symlink_to(file)
    return folder


def test_isbi_slices_plane_by_plane(data_folder: Path, tmp_path: Path) -> None:
    for kind, target in (("image", "raw"), ("label", "labels")):
        files = sorted((data_folder / "isbi2012" / kind).glob("*.png"))[:2]
        source = link(tmp_path / kind, files)
        convert(str(source), str(tmp_path / f"{target}.zarr"), axes="zyx", as_labels=target == "labels")
    data = {"kind": "classes", "class_map": {0: 0, 255: 1}}
    found, scores = run_all(tmp_path, data, {}, ["probabilities", "classes"], sections=True, foreground=1)
    assert found["quarantined"] == []
    assert scores["sections"] == 2
    assert set(scores["dice"]) == {"0", "1"}
    assert 0 <= scores["adapted_rand_error"] <= 1
    assert scores["warping_error"] is not None


def test_dsb_nuclei_as_a_collection_of_images_of_many_sizes(data_folder: Path, tmp_path: Path) -> None:
    for kind, target in (("images", "raw"), ("labels", "labels")):
        files = sorted((data_folder / "dsb2018" / kind).glob("*.png"))[:4]
        source = link(tmp_path / kind, files)
        convert(
            str(source), str(tmp_path / f"{target}.zarr"), axes="yx", collection=True, as_labels=target == "labels"
        )
    found, scores = run_all(tmp_path, {}, {}, ["probabilities", "classes", "instances"], sections=True)
    names = sorted(p.stem for p in (data_folder / "dsb2018" / "images").glob("*.png"))[:4]
    assert found["images"] == scores["images"] == 4
    for name in names:
        shape = zarr.open_array(tmp_path / "raw.zarr" / name / "0").shape
        assert zarr.open_array(tmp_path / "out.zarr" / name / "labels" / "instances" / "0").shape == shape
    assert 0 <= scores["ap50"] <= 1


def test_ctc_frames_pair_by_the_number_in_their_names(data_folder: Path, tmp_path: Path) -> None:
    hela = data_folder / "ctc" / "DIC-C2DH-HeLa"
    raw = link(tmp_path / "raw", [hela / "01" / f"t{n}.tif" for n in ("002", "005")])
    labels = link(tmp_path / "labels", [hela / "01_GT" / "SEG" / f"man_seg{n}.tif" for n in ("005", "002")])
    convert(str(raw), str(tmp_path / "raw.zarr"), axes="yx", collection=True)
    convert(str(labels), str(tmp_path / "labels.zarr"), axes="yx", collection=True, as_labels=True)
    _, scores = run_all(tmp_path, {}, {}, ["classes", "instances"], sections=True)
    assert "seg" in scores
    assert not (tmp_path / "out.zarr" / "t002" / "0").exists(), "probabilities that nobody asked for"


def test_the_embryo_in_3_d_with_long_voxels(data_folder: Path, tmp_path: Path) -> None:
    embryo = data_folder / "mouse_embryo_3d"
    for kind, target in (("images_raw", "raw"), ("images_nsn", "labels")):
        convert(
            str(embryo / kind / "8_cell_stage.tif"), str(tmp_path / f"{target}.zarr"), axes="zyx",
            voxel_size=(2.18, 1, 1), as_labels=target == "labels",
        )  # fmt: skip
    data = {"kind": "classes", "class_map": {0: 0, 255: 1}}
    model = {"dims": 3, "pool": [[1, 2, 2], [2, 2, 2]], "padding": "same"}
    _, scores = run_all(tmp_path, data, model, ["probabilities", "classes", "instances"], foreground=1)
    assert scores["sections"] is None
    assert scores["voi_split"] >= 0
    counts = zarr.open_group(tmp_path / "run" / "dataset.zarr").attrs["unetflow"]["class_counts"]
    truth = zarr.open_array(tmp_path / "labels.zarr" / "0")[:]
    assert counts == {"0": int((truth == 0).sum()), "1": int((truth == 255).sum())}


def test_epfl_classes_that_overlap(data_folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    epfl = data_folder / "epfl6"
    kinds = sorted(p.name for p in epfl.iterdir() if p.is_dir() and p.name != "slices")
    files = sorted((epfl / "slices").iterdir())[:1]
    raw = np.stack([np.asarray(Image.open(f))[..., 0] for f in files])
    pictures = [Image.open(sorted((epfl / kind).iterdir())[0]) for kind in kinds]
    masks = np.stack([np.asarray(p).reshape(1, 768, 1024, -1)[..., 0] for p in pictures])
    zarr.save_array(tmp_path / "raw.zarr", raw[:, :256, :256])
    zarr.save_array(tmp_path / "labels.zarr", (masks[:, :, :256, :256] > 127).astype(np.uint8))
    data = {"kind": "multilabel", "axes": "czyx"}
    values = {
        **SMALL,
        "data": [{"raw": "raw.zarr", "labels": "labels.zarr", **data}],
        "model": {**SMALL["model"], "head": "sigmoid"},
    }
    # The raw has no channel axis: its axes are the default, the labels' are named.
    values["data"][0]["axes"] = "czyx"
    settings = make_settings(values, folder=str(tmp_path))
    prepare(settings)
    train(settings)
    out = tmp_path / "out.zarr"
    segment(settings, str(tmp_path / "raw.zarr"), out=str(out))
    scores = evaluate(settings, str(out), str(tmp_path / "labels.zarr"))
    assert len(scores["dice"]) == len(kinds) == 6
    assert zarr.open_array(out / "0").shape == (6, 1, 256, 256)


@pytest.mark.parametrize("preset", ["unet2015", "keras"])
def test_presets_train_and_segment(tmp_path: Path, preset: str) -> None:
    import project

    project.make_volume(tmp_path)
    is_keras = preset == "keras"
    settings = project.settings_in(
        tmp_path,
        prepare={"patch_shape": [1, 32, 32] if is_keras else [1, 60, 60]},
        model={"preset": preset, "norm": "none"},
        train={"steps": 2},
    )
    prepare(settings)
    train(settings)
    out = tmp_path / "out.zarr"
    segment(settings, str(tmp_path / "raw.zarr"), out=str(out))
    assert zarr.open_array(out / "0").shape[0] == (1 if is_keras else 2)
