"""Objects of the planes of a stack, joined by overlap: `[segment] link = "overlap"`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import project
import pyarrow.parquet
import zarr

from unetflow.stages.segment import segment
from unetflow.stages.verify import verify


def read(out: Path, name: str) -> np.ndarray:
    return np.asarray(zarr.open_array(out / "labels" / name / "0")[:])


def test_planes_are_linked_alike_for_any_shard_and_verify_passes(trained: Path, two_workers: Any) -> None:
    chosen = {"instances": "watershed", "seed_threshold": 0.6, "seed_size": 5, "min_size": 8, "threshold": 0.55}
    found = []
    for link, shard, client in (
        (False, [1, 100, 132], None), ("overlap", [1, 100, 132], None), ("overlap", [2, 48, 64], two_workers),
    ):  # fmt: skip
        out = trained / f"linked-{len(found)}.zarr"
        section = {**chosen, "link": link, "link_iou": 0.3, "shard": shard, "chunk": [1, *shard[1:]]}
        result = segment(project.settings_in(trained, segment=section), str(trained / "raw.zarr"), client, out=str(out))
        found.append(read(out, "instances"))
        assert result["objects"] == found[-1].max()
        assert not (out / ".unetflow" / "labelling").exists()
    apart, whole, cut = found
    np.testing.assert_array_equal(whole, cut)
    shared = set(np.unique(whole[0])) & set(np.unique(whole[1])) - {0}
    assert shared
    assert not set(np.unique(apart[0])) & set(np.unique(apart[1])) - {0}
    table = pyarrow.parquet.read_table(out / "objects.parquet").to_pydict()
    assert [table["stop_z"][i - 1] - table["start_z"][i - 1] > 1 for i in shared] == [True] * len(shared)
    checked = verify(str(out), n_blocks=100)
    assert checked["damaged"] == checked["mismatches"] == []
