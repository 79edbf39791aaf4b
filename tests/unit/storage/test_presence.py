"""Which blocks find a stored file, whatever the format, the keys and the order of axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from unetflow.geometry import BlockGrid, Box
from unetflow.storage import presence
from unetflow.storage.volume import open_volume

LAYOUTS: dict[str, dict[str, Any]] = {
    "v3": {"zarr_format": 3, "chunks": (8, 8, 8)},
    "v3 sharded": {"zarr_format": 3, "chunks": (4, 4, 4), "shards": (8, 8, 8)},
    "v3 keys with dots": {
        "zarr_format": 3, "chunks": (8, 8, 8), "chunk_key_encoding": {"name": "v2", "separator": "."},
    },
    "v2": {"zarr_format": 2, "chunks": (8, 8, 8)},
    "v2 nested": {
        "zarr_format": 2, "chunks": (8, 8, 8), "chunk_key_encoding": {"name": "v2", "separator": "/"},
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axes", ["zyx", "xyz"])
def test_blocks_with_a_stored_file_are_found(tmp_path: Path, layout: str, axes: str) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(30, 20, 40), dtype="uint8", fill_value=0, **LAYOUTS[layout])
    array[17, 2, 39] = 1
    array[0:3, 18:20, 0:1] = 2
    volume = open_volume(tmp_path / "a.zarr", axes=axes)
    data = np.asarray(array[:]) if axes == "zyx" else np.asarray(array[:]).T
    for halo in ((), (3, 0, 1)):
        grid = BlockGrid(volume.box, (8, 8, 8), halo, halo)
        [found] = volume.stored_blocks(grid)
        for block in grid:
            near = Box(tuple(a - a % 8 for a in block.outer.start), tuple(-(-b // 8) * 8 for b in block.outer.stop))
            assert found[block.number] == data[near.intersect(volume.box).slices].any(), block


def test_a_store_is_listed_some_files_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presence, "_BATCH", 3)
    array = zarr.create_array(tmp_path / "a.zarr", shape=(10, 10), chunks=(1, 5), dtype="uint8")
    array[:] = 1
    batches: list[int] = []
    assert presence.each_stored(str(tmp_path / "a.zarr"), lambda starts, stops: batches.append(len(starts)))
    assert sum(batches) == 20
    assert max(batches) == 3
