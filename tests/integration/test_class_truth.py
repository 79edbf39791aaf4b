"""A truth of classes has objects too: the components of its classes, against the instances found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import adapted_rand_error

from unetflow.settings import make_settings
from unetflow.stages.evaluate import evaluate
from unetflow.storage import ngff

SHAPE = (2, 40, 60)
PROVENANCE = {"kind": "classes", "class_map": {"0": 0, "255": 1}, "ignore": [], "dims": 2}


def membranes() -> np.ndarray:
    """Return cell interiors (255) parted by membranes (0) that lie alike in both planes."""
    truth = np.full(SHAPE, 255, np.uint8)
    truth[:, 20] = truth[:, :, 15::15] = 0
    return truth


def write(folder: Path, truth: np.ndarray, classes: np.ndarray, instances: np.ndarray | None) -> None:
    """Write what `segment` leaves, and a truth of raw label values."""
    names = ["classes"] if instances is None else ["classes", "instances"]
    ngff.create_group(str(folder / "out.zarr"), {"unetflow": PROVENANCE})
    ngff.create_labels_group(str(folder / "out.zarr"), names)
    place: dict[str, Any] = {"axes": "zyx", "voxel_size": (1, 1, 1), "label": True}
    for path, data in (
        ("truth.zarr", truth), ("out.zarr/labels/classes", classes), ("out.zarr/labels/instances", instances)
    ):  # fmt: skip
        if data is not None:
            levels = ngff.create_image(
                str(folder / path), shape=SHAPE, chunk=SHAPE, shard=SHAPE, dtype=data.dtype.name, **place
            )
            levels[0].write(levels[0].box, data)


def in_planes(mask: np.ndarray) -> np.ndarray:
    """Label each plane's components by faces, with ids of their own."""
    near = np.zeros((3, 3, 3), bool)
    near[1] = ndimage.generate_binary_structure(2, 1)
    return np.asarray(ndimage.label(mask, near)[0], np.uint32)


def test_instances_are_scored_against_the_components_of_a_truth_of_classes(tmp_path: Path) -> None:
    truth = membranes()
    gap = truth == 255
    gap[:, 10, 15] = True  # one voxel is missing in a membrane: components merge two cells, a watershed does not
    own = in_planes(truth == 255)
    write(tmp_path, truth, gap.astype(np.uint8), own)
    paths = str(tmp_path / "out.zarr"), str(tmp_path / "truth.zarr")
    flooded = evaluate(make_settings({}), *paths, sections=True)
    merged = evaluate(make_settings({}), *paths, sections=True, foreground=1)
    assert flooded["adapted_rand_error"] == 0
    assert flooded["seg"] == flooded["ap50"] == 1
    planes = zip(own.astype(int), in_planes(gap).astype(int), strict=True)
    errors = [adapted_rand_error(t, s, ignore_labels=(0,))[0] for t, s in planes]
    assert merged["adapted_rand_error"] == pytest.approx(np.mean(errors))
    assert merged["adapted_rand_error"] > 0.05
    assert flooded["pixel_error"] == merged["pixel_error"] == pytest.approx(2 / gap.size)
    # dims = 2: the planes' objects are apart over the stack as well.
    assert evaluate(make_settings({}), *paths)["adapted_rand_error"] == 0


def test_without_instances_a_truth_of_classes_gives_class_scores_alone(tmp_path: Path) -> None:
    truth = membranes()
    write(tmp_path, truth, (truth == 255).astype(np.uint8), None)
    scores = evaluate(make_settings({}), str(tmp_path / "out.zarr"), str(tmp_path / "truth.zarr"))
    assert scores["pixel_error"] == 0
    assert "adapted_rand_error" not in scores


def test_ignored_voxels_of_a_truth_of_classes_belong_to_no_object(tmp_path: Path) -> None:
    truth = membranes()
    truth[:, 10, 15] = 7  # a gap that does not count joins nothing
    own = in_planes(truth == 255)
    write(tmp_path, truth, (truth == 255).astype(np.uint8), own)
    data = {"raw": "none.zarr", "labels": "truth.zarr", "kind": "classes", "class_map": {0: 0, 255: 1}, "ignore": 7}
    settings = make_settings({"data": [data]}, folder=str(tmp_path))
    scores = evaluate(settings, str(tmp_path / "out.zarr"), str(tmp_path / "truth.zarr"), sections=True)
    assert scores["adapted_rand_error"] == 0
