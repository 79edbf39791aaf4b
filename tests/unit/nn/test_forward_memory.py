"""The memory that a forward pass is planned with, held against the growth of a real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from unetflow.architecture import UNetSpec
from unetflow.forward_memory import forward_bytes, weight_bytes
from unetflow.nn.unet import UNet
from unetflow.runtime.environment import ALLOCATOR

NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "2-D": ({"depth": 3, "base_channels": 16}, (704, 704)),
    "2-D padded, resized": (
        {"depth": 2, "base_channels": 16, "padding": "same", "upsample": "resize"}, (720, 720),
    ),
    # Its first convolution is torch's own and unfolds the image: that is most of what it needs.
    "3-D": ({"dims": 3, "depth": 2, "base_channels": 12, "skip": "sum", "norm": "layer"}, (64, 64, 64)),
}  # fmt: skip

# In a process of its own: this one's memory has been used by other tests. After one pass over the
# smallest tile, libraries and threads have what they keep.
PROBE = """
import json, sys
import numpy as np, torch
from unetflow.architecture import UNetSpec
from unetflow.nn.predict import Predictor
from unetflow.nn.unet import UNet

def status(name):
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

torch.set_num_threads(1)
spec = UNetSpec.from_dict(json.loads(sys.argv[1]))
predictor = Predictor(UNet(spec), "cpu", "float32")
predictor.probabilities(np.zeros((spec.in_channels, *spec.tile_input(spec.total_stride)), np.float32))
shape = json.loads(sys.argv[2])
# Not contiguous, as a tile within a block is not.
image = np.ones((spec.in_channels, *shape[:-1], shape[-1] + 1), np.float32)[..., :-1]
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
before = status("VmRSS")
predictor.probabilities(image)
print(status("VmHWM") - before)
"""


def measured_bytes(spec: UNetSpec, shape: tuple[int, ...]) -> int:
    environ = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", PROBE, json.dumps(spec.to_dict()), json.dumps(shape)]
    result = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's own count of memory")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_forward_pass_needs_what_is_planned_within_a_quarter(name: str) -> None:
    numbers, kept = NETWORKS[name]
    spec = UNetSpec.build(**numbers)
    shape = spec.tile_input(kept)
    assert forward_bytes(spec, shape) == pytest.approx(measured_bytes(spec, shape), rel=0.25)


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"dims": 3, "depth": 2, "norm": "layer", "in_channels": 3, "pool": [[1, 2, 2], [2, 2, 2]]},
        {"depth": 2, "skip": "sum", "norm": "batch", "upsample": "resize", "out_channels": 5},
        {"depth": 1, "padding": "same", "head": "sigmoid", "out_channels": 1, "extra_conv": 2, "kernel": 5},
    ],
)
def test_weights_are_counted_as_the_network_has_them(numbers: dict[str, Any]) -> None:
    spec = UNetSpec.build(**{"base_channels": 8, **numbers})
    assert weight_bytes(spec) == sum(p.numel() * p.element_size() for p in UNet(spec).parameters())


def test_more_voxels_and_channels_need_more_and_half_precision_about_half() -> None:
    spec, wide = UNetSpec.build(base_channels=16), UNetSpec.build(base_channels=32)
    shape, larger = spec.tile_input((512, 512)), spec.tile_input((512, 1024))
    assert forward_bytes(spec, shape) < forward_bytes(spec, larger)
    assert forward_bytes(spec, shape) < forward_bytes(wide, shape)
    assert 0.4 < forward_bytes(wide, larger, itemsize=2) / forward_bytes(wide, larger) < 0.65
