"""The numbers that init proposes follow from the data and the machine, and each says why."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from unetflow.architecture import UNetSpec
from unetflow.geometry import Shape
from unetflow.stages.init import propose
from unetflow.stages.look import Kind, Labels, Looks, look_at
from unetflow.stages.machine import Machine, find_machine
from unetflow.stages.proposal import SHARE, Facts, propose_model, propose_prepare, propose_train, seen, training_bytes
from unetflow.stages.template import Choice

LAPTOP = Machine(16 * 2**30, 4)
GPU = Machine(80 * 2**30, 16, "a GPU")
PLANE = Facts((1024, 1024), (1.0, 1.0), 0, "instances", 1, 2, Looks(40.0, 0.3))
CUBE = Facts((128, 256, 256), (2.2, 1.0, 1.0), 0, "instances", 1, 2, Looks(20.0, 0.1))


def model_of(facts: Facts, machine: Machine) -> dict[str, Choice]:
    return {"dims": Choice(facts.dims, ""), **propose_model(facts, machine)}


def spec_of(facts: Facts, machine: Machine) -> tuple[UNetSpec, Shape, int]:
    model = model_of(facts, machine)
    prepare, batch = propose_prepare(facts, model, machine)
    return (
        UNetSpec.build(**{key: choice.value for key, choice in model.items()}),
        tuple(prepare["patch_shape"].value),
        batch,
    )


def test_a_network_sees_the_objects_across_and_says_so() -> None:
    depths = []
    for width in (20.0, 60.0, 120.0, 900.0, None):
        choice = propose_model(replace(PLANE, looks=Looks(width)), LAPTOP)["depth"]
        depths.append(choice.value)
        assert str(seen(choice.value)) in choice.reason
        assert width is None or f"{width:.0f} wide" in choice.reason
    assert depths == [3, 3, 4, 4, 3]
    assert propose_model(replace(PLANE, lengths=(40, 40)), LAPTOP)["depth"].value == 2


@pytest.mark.parametrize("facts", [PLANE, CUBE])
def test_large_objects_make_large_patches_up_to_the_image(facts: Facts) -> None:
    _, small, _ = spec_of(facts, LAPTOP)
    spec, large, _ = spec_of(replace(facts, looks=Looks(100.0)), LAPTOP)
    assert all(a < b for a, b in zip(small[-2:], large[-2:], strict=True))
    assert all(n <= m for n, m in zip(spec.output_shape(large), facts.lengths, strict=True))


@pytest.mark.parametrize("facts", [PLANE, CUBE])
@pytest.mark.parametrize("memory", [2 * 10**9, 8 * 10**9, 80 * 10**9])
def test_a_step_fits_half_of_the_memory(facts: Facts, memory: int) -> None:
    for machine in (Machine(memory, 2), Machine(memory, 2, "a GPU")):
        spec, shape, batch = spec_of(facts, machine)
        assert training_bytes(spec, shape, batch) <= SHARE * memory
        assert batch >= 2


def test_a_gpu_gets_a_wider_network_and_larger_batches() -> None:
    for facts, width, batch in ((PLANE, 64, 8), (CUBE, 32, 2)):
        spec, _, found = spec_of(facts, GPU)
        assert (spec.base_channels, found) == (width, batch)
        assert "GPU" in propose_model(facts, GPU)["base_channels"].reason
        assert spec_of(facts, LAPTOP)[0].base_channels < width


def test_a_rare_class_gets_dice_and_its_patches_and_even_classes_no_weights() -> None:
    rare, even = (replace(PLANE, looks=Looks(40.0, share)) for share in (0.01, 0.3))
    found = [propose_prepare(f, model_of(f, LAPTOP), LAPTOP)[0] for f in (rare, even)]
    assert found[0]["foreground_fraction"].value == 0.5 and "class_balance" not in found[0]
    assert found[1]["class_balance"].value is False and "30%" in found[1]["class_balance"].reason
    assert propose_train(rare, LAPTOP, 2)["loss"].value == "cross_entropy+dice"
    assert "loss" not in propose_train(even, LAPTOP, 2)


def test_labels_tell_how_wide_objects_are_and_how_rare_a_class_is(tmp_path: Path) -> None:
    ids = np.zeros((3, 200, 200), np.uint16)
    yy, xx = np.mgrid[:50, :50]
    disc = (yy - 25) ** 2 + (xx - 25) ** 2 < 15**2
    for number in range(16):
        y, x = divmod(number, 4)
        ids[:, 50 * y : 50 * y + 50, 50 * x : 50 * x + 50][:, disc] = number + 1
    zarr.save_array(str(tmp_path / "ids.zarr"), ids, zarr_format=2)
    zarr.save_array(str(tmp_path / "mask.zarr"), (ids > 0).astype(np.uint8) * 255, zarr_format=2)
    for looks in (
        look_at(Labels(str(tmp_path / "ids.zarr")), Kind("instances", "")),
        look_at(Labels(str(tmp_path / "mask.zarr")), Kind("classes", "", {0: 0, 255: 1})),
    ):
        assert looks.object_width == pytest.approx(30, abs=1)
        assert looks.rarest == pytest.approx((ids > 0).mean())


def test_the_file_names_the_machine_that_it_was_made_for(tmp_path: Path) -> None:
    zarr.save_array(str(tmp_path / "raw.zarr"), np.zeros((96, 96), np.uint8), zarr_format=2)
    choices, _ = propose(str(tmp_path / "raw.zarr"), None, folder=tmp_path, machine=GPU)
    assert choices["model"]["base_channels"].value == 64
    assert find_machine().memory > 2**28 and find_machine().cores >= 1


_STEP = """
import sys, torch
from unetflow.architecture import UNetSpec
from unetflow.nn.loss import weighted_loss
from unetflow.nn.unet import UNet
torch.set_num_threads(1)
dims, depth, base, length, norm = (eval(word) for word in sys.argv[1:])
def step(spec, length):
    model, shape = UNet(spec), (length,) * dims
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(2):
        optimizer.zero_grad()
        logits = model(torch.rand(2, 1, *shape))
        weighted_loss(logits, torch.zeros(2, *shape).byte(), torch.ones(2, *shape), head="softmax").backward()
        optimizer.step()
build = dict(dims=dims, depth=depth, padding="same", norm=norm, dropout=0.0)
step(UNetSpec.build(base_channels=1, **build), 16)
before = int(open("/proc/self/statm").read().split()[1]) * 4096
step(UNetSpec.build(base_channels=base, **build), length)
# Not ru_maxrss: it begins with what the process that started this one had.
lines = open('/proc/self/status').read().splitlines()
print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM')) - before)
"""


@pytest.mark.parametrize(("dims", "depth", "base", "length", "norm"), [(2, 3, 16, 192, "batch"), (3, 2, 8, 40, "none")])
def test_the_estimate_is_what_a_step_takes(dims: int, depth: int, base: int, length: int, norm: str) -> None:
    words = [str(dims), str(depth), str(base), str(length), repr(norm)]
    done = subprocess.run(
        [sys.executable, "-c", _STEP, *words], capture_output=True, text=True, check=True,
        env={"MALLOC_MMAP_THRESHOLD_": "65536"},  # so that freed memory goes back
    )  # fmt: skip
    spec = UNetSpec.build(dims=dims, depth=depth, base_channels=base, padding="same", norm=norm)  # type: ignore[arg-type]
    assert training_bytes(spec, (length,) * dims, 2) == pytest.approx(int(done.stdout), rel=0.35)
