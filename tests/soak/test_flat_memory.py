"""Memory does not grow with the volume: a gibibyte, and a sparse tebibyte whose empty part a mask leaves out.

Both hold the same gibibyte of voxels, so that the work is the same; what differs is the volume around it.
Each runs in a process of its own, whose driver, scheduler and workers tell their highest memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from unetflow.architecture import UNetSpec
from unetflow.geometry import Box
from unetflow.nn.checkpoint import export_model
from unetflow.nn.unet import UNet
from unetflow.numerics.tissue import tissue

pytestmark = pytest.mark.soak

SIDE, CHUNK = 1024, 128
PLACE = 4096  # where the voxels lie in the large volume
DRIVE = Path(__file__).with_name("drive_segment.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network and the two volumes."""
    folder = tmp_path_factory.mktemp("flat")
    torch.manual_seed(0)
    facts = {
        "kind": "classes", "n_classes": 2, "class_map": None, "ignore": [], "dims": 3, "in_channels": 1, "axes": "zyx",
        "normalise": "none", "normalise_per": "volume", "normalisation": {"offset": [128.0], "scale": [64.0]},
    }  # fmt: skip
    export_model(folder / "model.safetensors", UNet(UNetSpec.build(dims=3, depth=1, base_channels=4)), facts)
    piece, _ = tissue(Box.of_shape((256,) * 3), (256,) * 3, seed=0)
    for name, side, place in (("small", SIDE, 0), ("large", 10240, PLACE)):
        raw = zarr.create_array(folder / f"{name}.zarr", shape=(side,) * 3, chunks=(CHUNK,) * 3, dtype="uint8")
        mask = zarr.create_array(folder / f"{name}-mask.zarr", shape=(side // 64,) * 3, chunks=(16,) * 3, dtype="uint8")
        mask[(slice(place // 64, (place + SIDE) // 64),) * 3] = 1
        for corner in np.ndindex(4, 4, 4):
            raw[tuple(slice(place + 256 * i, place + 256 * (i + 1)) for i in corner)] = piece
    return folder


def run(folder: Path, name: str, outputs: str) -> dict[str, Any]:
    command = [sys.executable, str(DRIVE), str(folder), name, outputs]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(name, outputs, result)
    return result


@pytest.mark.parametrize("outputs", ["probabilities,classes", "probabilities,classes,instances"])
def test_a_tebibyte_takes_the_memory_of_a_gibibyte(folder: Path, outputs: str) -> None:
    small, large = (run(folder, name, outputs) for name in ("small", "large"))
    for who in ("driver", "worker"):
        assert large[who] <= 1.10 * small[who], (who, small, large)
    assert large["disk_peak"] <= 1.1 * large["disk_end"] + large["label_bytes"], large
    here = zarr.open_array(folder / f"small-{outputs.count(',')}.zarr" / "0")
    there = zarr.open_array(folder / f"large-{outputs.count(',')}.zarr" / "0")
    for corner in ((300, 300, 300), (700, 100, 500)):
        box = tuple(slice(c, c + 100) for c in corner)
        moved = tuple(slice(c + PLACE, c + PLACE + 100) for c in corner)
        assert np.array_equal(here[(slice(None), *box)], there[(slice(None), *moved)])
    assert there[:, 0, 0, 0].max() == 0
    assert there.shape == (2, 10240, 10240, 10240)
