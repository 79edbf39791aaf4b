"""Commands as processes: a scheduler's address, a stop and the same command again, a plain picture folder."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import project
from safetensors.numpy import load_file
from typer.testing import CliRunner

from unetflow.cli import app

PROJECT = """
[[data]]
raw = "raw.zarr"
labels = "labels.zarr"
[prepare]
patches = 8
patch_shape = [1, 60, 60]
[model]
depth = 2
base_channels = 4
norm = "batch"
[train]
steps = 60
batch_size = 2
optimizer = "adam"
"""


def test_stages_run_on_a_scheduler_that_somebody_else_started(trained: Path, tmp_path: Path) -> None:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None,
        scheduler_kwargs={"dashboard": False},
    ) as cluster:  # fmt: skip
        words = ["segment", str(trained / "raw.zarr"), "-m", str(trained / "run"), "--json"]
        out = [str(tmp_path / name) for name in ("there.zarr", "here.zarr")]
        there = CliRunner().invoke(app, [*words, "-o", out[0], "--cluster", cluster.scheduler_address])
        assert there.exit_code == 0, there.stderr
    here = CliRunner().invoke(app, [*words, "-o", out[1], "--cluster", "none"])
    assert here.exit_code == 0, here.stderr
    assert json.loads(there.stdout)["blocks"] == json.loads(here.stdout)["blocks"]
    assert project.tree(Path(out[0])) == project.tree(Path(out[1]))


def test_training_that_is_stopped_goes_on_with_the_same_command_to_the_same_weights(
    trained: Path, tmp_path: Path
) -> None:
    for name in ("stopped", "whole"):
        shutil.copytree(trained / "run" / "dataset.zarr", tmp_path / name / "run" / "dataset.zarr")
        (tmp_path / name / "unetflow.toml").write_text(PROJECT)
    command = [sys.executable, "-m", "unetflow", "train", "--cluster", "none"]
    stopped = tmp_path / "stopped"
    process = subprocess.Popen(command, cwd=stopped, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "step " not in process.stderr.readline():
        assert process.poll() is None, "training ended before its first step was told"
    process.send_signal(signal.SIGTERM)
    said = process.stderr.read()
    assert process.wait(60) == 75, said
    assert "to go on, give the same command again" in said
    assert not (stopped / "run" / "model.safetensors").exists()
    assert list((stopped / "run" / "checkpoints").glob("step-*.safetensors"))
    for folder in (stopped, tmp_path / "whole"):
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    one, other = (load_file(tmp_path / name / "run" / "model.safetensors") for name in ("stopped", "whole"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)


def test_a_second_run_on_the_same_output_is_refused_while_the_first_lives(trained: Path, tmp_path: Path) -> None:
    from unetflow.storage.lock import acquire_lock

    out = tmp_path / "out.zarr"
    with acquire_lock(out / ".unetflow"):
        words = ["segment", str(trained / "raw.zarr"), "-m", str(trained / "run"), "-o", str(out), "--cluster", "none"]
        before = sorted(path.name for path in (out / ".unetflow").iterdir())
        result = CliRunner().invoke(app, [*words, "--overwrite"])
        assert sorted(path.name for path in (out / ".unetflow").iterdir()) == before, "the first run's lock was touched"
    assert result.exit_code == 2
    assert "process" in result.stderr


def test_the_demo_s_objects_are_right_in_small(tmp_path: Path) -> None:
    """The demo itself takes minutes; its stages and its summary are the same at a tenth of the size."""
    from unetflow.stages import demo

    small = {"SHAPE": (2, 128, 256), "TRAINED": "0:2,0:128,0:128", "HELD_OUT": "0:2,0:128,144:256"}
    text = demo.PROJECT.replace("steps = 240", "steps = 25").replace("patches = 96", "patches = 12")
    text = text.replace("[1, 252, 252]", "[1, 124, 124]").replace("base_channels = 12", "base_channels = 8")
    assert text != demo.PROJECT
    from unittest import mock

    with mock.patch.multiple(demo, PROJECT=text, **small):
        result = demo.demo(tmp_path / "demo")
    assert Path(result["picture"]).stat().st_size > 1000
    assert 0 <= result["ap50"] <= 1
    assert f'<data value="{result["ap50"]!r}">' in Path(result["report"]).read_text()
    assert (tmp_path / "demo" / "unetflow.toml").exists()
