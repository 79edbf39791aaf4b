"""Memory of a labelling follows its blocks, not the volume: that of driver and workers, whatever the objects are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DRIVE = Path(__file__).with_name("drive_label.py")
# Kind, the smaller and the larger side, the side of a shard.
SIZES = [
    pytest.param("small", 128, 256, 64, id="small"),
    *(
        pytest.param(kind, 512, 2048, 256, id=f"{kind}-2048", marks=pytest.mark.soak)
        for kind in ("small", "one", "sparse")
    ),
]
# What a driver may take more: reports of blocks, and the open fragments of a larger slab.
MORE = 80_000_000


def run(folder: Path, kind: str, side: int, shard: int) -> dict[str, Any]:
    command = [sys.executable, str(DRIVE), str(folder), kind, str(side), str(shard)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(kind, side, result)
    return result


@pytest.mark.parametrize(("kind", "smaller", "larger", "shard"), SIZES)
def test_a_larger_volume_takes_no_more_memory(
    tmp_path: Path, kind: str, smaller: int, larger: int, shard: int
) -> None:
    before, after = (run(tmp_path, kind, side, shard) for side in (smaller, larger))
    side = shard if kind == "sparse" else larger  # of what holds boxes
    assert after["objects"] == (1 if kind == "one" else (-(-side // 9)) ** 3)
    for process in ("driver", "worker"):
        assert after[process] < before[process] + MORE, (process, before, after)
