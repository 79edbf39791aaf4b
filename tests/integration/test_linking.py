"""Objects of the planes of a stack, joined by overlap: `[segment] link = "overlap"`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import project
import pyarrow.parquet
import pytest
import zarr

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.nn.checkpoint import export_model
from unetflow.nn.unet import UNet
from unetflow.settings import make_settings
from unetflow.stages.segment import segment
from unetflow.stages.verify import verify


def read(out: Path, name: str) -> np.ndarray:
    return np.asarray(zarr.open_array(out / "labels" / name / "0")[:])


def test_planes_are_linked_alike_for_any_shard_and_verify_passes(trained: Path, two_workers: Any) -> None:
    chosen = {"instances": "watershed", "seed_threshold": 0.6, "seed_size": 5, "min_size": 8, "threshold": 0.55}
    found = []
    for shard, client in (([1, 100, 132], None), ([2, 48, 64], two_workers)):
        out = trained / f"linked-{len(found)}.zarr"
        section = {**chosen, "link": "overlap", "link_iou": 0.3, "shard": shard, "chunk": [1, *shard[1:]]}
        result = segment(project.settings_in(trained, segment=section), str(trained / "raw.zarr"), client, out=str(out))
        found.append(read(out, "instances"))
        assert result["objects"] == found[-1].max()
        assert not (out / ".unetflow" / "labelling").exists()
    whole, cut = found
    np.testing.assert_array_equal(whole, cut)
    shared = set(np.unique(whole[0])) & set(np.unique(whole[1])) - {0}
    assert shared
    table = pyarrow.parquet.read_table(out / "objects.parquet").to_pydict()
    assert [table["stop_z"][i - 1] - table["start_z"][i - 1] > 1 for i in shared] == [True] * len(shared)
    checked = verify(str(out), n_blocks=2)
    assert checked["damaged"] == checked["mismatches"] == []


def test_a_network_that_sees_over_planes_is_refused(tmp_path: Path) -> None:
    spec = UNetSpec.build(dims=3, depth=2, base_channels=4, out_channels=2)
    facts = {
        "kind": "classes", "n_classes": 2, "class_map": None, "ignore": [], "dims": 3, "in_channels": 1,
        "axes": "zyx", "voxel_size": [1, 1, 1], "normalise": "none", "normalise_per": "training",
        "normalisation": {"offset": [0.0], "scale": [1.0]},
    }  # fmt: skip
    export_model(tmp_path / "model.safetensors", UNet(spec), facts)
    zarr.save_array(tmp_path / "raw.zarr", np.zeros((8, 40, 40), np.uint8))
    settings = make_settings({"segment": {"link": "overlap"}}, folder=str(tmp_path))
    with pytest.raises(InputError, match="overlap.*dims = 2, got 3"):
        segment(settings, str(tmp_path / "raw.zarr"), model=str(tmp_path), out=str(tmp_path / "out.zarr"))
    assert not (tmp_path / "out.zarr").exists()
