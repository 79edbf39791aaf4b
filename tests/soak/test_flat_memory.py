"""Memory does not grow with the volume: a full one, and a sparse one whose empty part a mask leaves out.

Both hold the same voxels, so that the work is the same; what differs is the volume around it.
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

# Side of what is there, of the volume around it, and of a larger one: in small, and a gibibyte in a tebibyte.
SIZES = [
    pytest.param((256, 1024, 4096), id="small"),
    pytest.param((1024, 1024, 10240), id="tebibyte", marks=pytest.mark.soak),
]
CELL = 64  # of the mask, in voxels
DRIVE = Path(__file__).with_name("drive_segment.py")


@pytest.fixture(scope="module", params=SIZES)
def sides(request: Any) -> tuple[int, int, int]:
    """Side of what is there, and of the two volumes around it."""
    numbers: tuple[int, int, int] = request.param
    return numbers


@pytest.fixture(scope="module")
def folder(sides: tuple[int, int, int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network and the two volumes."""
    folder = tmp_path_factory.mktemp("flat")
    torch.manual_seed(0)
    facts = {
        "kind": "classes", "n_classes": 2, "class_map": None, "ignore": [], "dims": 3, "in_channels": 1, "axes": "zyx",
        "normalise": "none", "normalise_per": "volume", "normalisation": {"offset": [128.0], "scale": [64.0]},
    }  # fmt: skip
    export_model(folder / "model.safetensors", UNet(UNetSpec.build(dims=3, depth=1, base_channels=4)), facts)
    piece, _ = tissue(Box.of_shape((256,) * 3), (256,) * 3, seed=0)
    held = sides[0]
    for side in sorted(set(sides[1:])):
        place = place_of(held, side)
        raw = zarr.create_array(folder / f"{side}.zarr", shape=(side,) * 3, chunks=(128,) * 3, dtype="uint8")
        cells = (side // CELL,) * 3
        mask = zarr.create_array(folder / f"{side}-mask.zarr", shape=cells, chunks=(16,) * 3, dtype="uint8")
        mask[(slice(place // CELL, (place + held) // CELL),) * 3] = 1
        for corner in np.ndindex((held // 256,) * 3):
            raw[tuple(slice(place + 256 * i, place + 256 * (i + 1)) for i in corner)] = piece
    return folder


def place_of(held: int, side: int) -> int:
    """Return where the voxels lie in a volume: some way in, on the blocks' grid."""
    return (side - held) // 2 // 512 * 512


def run(folder: Path, name: str, outputs: str, tile: int) -> dict[str, Any]:
    command = [sys.executable, str(DRIVE), str(folder), name, outputs, str(tile)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(name, outputs, result)
    return result


@pytest.mark.parametrize("outputs", ["probabilities,classes", "probabilities,classes,instances"])
def test_memory_and_disk_follow_what_a_volume_holds_and_not_its_size(
    folder: Path, sides: tuple[int, int, int], outputs: str
) -> None:
    held, *around = sides
    # The same tiles in both: a plan of its own would take larger ones where there is more room.
    near, far = (run(folder, str(side), outputs, min(128, held // 4)) for side in around)
    for who in ("driver", "worker"):
        assert far[who] <= 1.10 * near[who], (who, near, far)
    assert far["disk_peak"] <= 1.1 * far["disk_end"] + far["label_bytes"], far
    suffix = outputs.count(",")
    here, there = (zarr.open_array(folder / f"{side}-{suffix}.zarr" / "0") for side in around)
    assert there.shape == (2, *(around[1],) * 3)
    assert there[:, 0, 0, 0].max() == 0
    for corner in ((60, 70, 80), (held - 150, 30, 100)):
        boxes = [
            tuple(slice(c + place_of(held, side), c + place_of(held, side) + 50) for c in corner) for side in around
        ]
        assert np.array_equal(here[(slice(None), *boxes[0])], there[(slice(None), *boxes[1])])
