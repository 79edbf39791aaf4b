"""What `prepare --plan` says is what `prepare` then does."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import project
import pytest
import zarr

from unetflow.stages.prepare import prepare
from unetflow.stages.prepare_plan import plan
from unetflow.storage.patches import open_patches


@pytest.mark.parametrize("kind", ["instances", "classes"])
def test_the_planned_blocks_are_those_that_run_and_nothing_is_written(tmp_path: Path, kind: str) -> None:
    project.make_volume(tmp_path)
    table = {"raw": "raw.zarr", "labels": "labels.zarr", "kind": kind}
    if kind == "classes":
        ids = zarr.open_array(tmp_path / "labels.zarr" / "0")[:]
        zarr.save_array(tmp_path / "classes.zarr", (np.asarray(ids) > 0).astype(np.uint8))
        table["labels"] = "classes.zarr"
    settings = project.settings_in(tmp_path, data=[table])
    said = plan(settings).summary()
    assert not (tmp_path / "run").exists()
    done = prepare(settings)
    # How many patches validate is known when the labels have been looked at.
    n_validation = open_patches(str(tmp_path / "run" / "dataset.zarr"), "validation").n_shards
    assert said["blocks"] == done["blocks"] - n_validation
    assert said["patch_shape"] == done["patch_shape"]
    assert said["patches"] == done["patches"]["train"]


def test_no_pass_takes_more_memory_than_planned(tmp_path: Path) -> None:
    from unetflow.numerics.weights import weight_map

    rng = np.random.default_rng(0)
    shape = (96, 96, 96)
    labels = np.kron(rng.integers(0, 30, (12, 12, 12)), np.ones((8, 8, 8))).astype(np.uint16)
    for name, data in (("raw", rng.integers(0, 255, shape).astype(np.uint8)), ("labels", labels)):
        zarr.create_array(tmp_path / f"{name}.zarr", data=data, chunks=(48, 48, 48))
    values = {"patch_shape": [32, 32, 32], "shard": [96, 96, 96], "chunk": [48, 48, 48], "sigma": 2.0, "patches": 40}
    settings = project.settings_in(tmp_path, prepare=values, model={"dims": 3, "depth": 1, "padding": "same"})
    # Compiled and imported before: what a worker holds anyway is not counted.
    weight_map(np.zeros((4, 4, 4), np.uint8), labels[:4, :4, :4], [1, 1], voxel_size=(1, 1, 1), w0=1, sigma=1,
               tolerance=0.1)  # fmt: skip
    prepare(settings, overwrite=True)
    tracemalloc.start()
    prepare(settings, overwrite=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.4 * plan(settings).memory < peak < plan(settings).memory + 20e6
