"""The commands on a real queue: the bytes of a local run, whatever was cancelled on the way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import project
import pytest
from queue_commands import jobs, run, wait_until

pytestmark = pytest.mark.slurm

UNETFLOW = [sys.executable, "-m", "unetflow"]
SLOW = 'worker_extra_args = ["--preload", "slow_blocks"]'
PROJECT = """
[run]
dir = "run"
[[data]]
raw = "raw.zarr"
labels = "labels.zarr"
kind = "instances"
[prepare]
patches = 8
patch_shape = [1, 60, 60]
elastic_sigma = 2.0
shard = [1, 64, 64]
[model]
dims = 2
depth = 2
base_channels = 4
norm = "layer"
[train]
steps = 12
batch_size = 2
optimizer = "adam"
learning_rate = 0.01
[segment]
outputs = ["probabilities", "classes", "instances"]
memory = "50 MB"
tile = [1, 32, 32]
chunk = [1, 32, 32]
shard = [1, 64, 64]
"""


def unetflow(folder: Path, *words: str, code: int = 0) -> str:
    """Run a command in a folder and return what it prints."""
    done = subprocess.run([*UNETFLOW, *words], cwd=folder, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a project whose every stage ran on this machine."""
    return make_local(tmp_path_factory.mktemp("project") / "local")


def make_local(folder: Path) -> Path:
    """Run every stage on this machine, two ranks training."""
    folder.mkdir()
    project.make_volume(folder, (24, 100, 132))
    (folder / "unetflow.toml").write_text(PROJECT)
    unetflow(folder, "prepare", "--cluster", "none")
    unetflow(folder, "train", "--workers", "2")
    unetflow(folder, "segment", "raw.zarr", "--cluster", "none", "--out", "out.zarr")
    return folder


@pytest.fixture
def copied(local: Path, tmp_path: Path) -> Path:
    """The same project, without its results but the model."""
    shutil.copytree(local, tmp_path / "project", ignore=shutil.ignore_patterns("out.zarr", "dataset.zarr"))
    return tmp_path / "project"


def n_done(out: Path) -> int:
    """Count the blocks of the predict pass that a segmentation has recorded."""
    ledger = out / ".unetflow" / "segment"
    return sum(f.read_bytes().count(b'"pass":"predict","done"') for f in ledger.glob("*") if f.is_file())


def test_prepare_and_train_through_slurm_give_what_they_give_here(
    local: Path, tmp_path: Path, cluster_file: Callable[..., Path]
) -> None:
    shutil.copytree(local, tmp_path / "project", ignore=shutil.ignore_patterns("out.zarr", "run"))
    folder, file = tmp_path / "project", str(cluster_file(2))
    unetflow(folder, "prepare", "--cluster", file)
    assert project.tree(folder / "run" / "dataset.zarr") == project.tree(local / "run" / "dataset.zarr")
    unetflow(folder, "train", "--cluster", file, "--workers", "2")
    assert (folder / "run" / "model.safetensors").read_bytes() == (local / "run" / "model.safetensors").read_bytes()
    logs = [file.name for file in (folder / "run" / "logs").glob("worker-*.log")]
    assert len([name for name in logs if os.uname().nodename in name]) >= 3


def test_segment_through_slurm_with_a_job_cancelled_in_the_middle_gives_the_same_bytes(
    local: Path, copied: Path, cluster_file: Callable[..., Path]
) -> None:
    out = copied / "out.zarr"
    words = ["segment", "raw.zarr", "--cluster", str(cluster_file(2, options=SLOW)), "--out", str(out)]
    with subprocess.Popen([*UNETFLOW, *words], cwd=copied) as driver:
        wait_until(lambda: n_done(out) >= 2)
        run("scancel", jobs()[0])
        n_before = n_done(out)
        assert driver.wait(400) == 0
    assert n_before < 24, "the job was cancelled too late to matter"
    assert project.tree(out) == project.tree(local / "out.zarr")


def test_a_terminated_driver_takes_its_jobs_along_pending_ones_too_and_goes_on_later(
    local: Path, copied: Path, cluster_file: Callable[..., Path]
) -> None:
    out = copied / "out.zarr"
    file = cluster_file(9, options=SLOW)  # more than the nodes hold: some wait
    words = ["segment", "raw.zarr", "--cluster", str(file), "--out", str(out)]
    with subprocess.Popen([*UNETFLOW, *words], cwd=copied, stderr=subprocess.PIPE, text=True) as driver:
        wait_until(lambda: n_done(out) >= 1)
        assert jobs(state="PENDING")
        driver.terminate()
        told = driver.communicate(timeout=120)[1]
    assert driver.returncode == 75
    assert "give the same command again" in told
    wait_until(lambda: not jobs(state="PENDING,RUNNING"), 30)
    unetflow(copied, "segment", "raw.zarr", "--cluster", "none", "--out", str(out))
    assert project.tree(out) == project.tree(local / "out.zarr")


def test_a_job_array_of_parts_joined_by_the_same_command_gives_the_same_bytes(local: Path, copied: Path) -> None:
    command = f"{sys.executable} -m unetflow segment raw.zarr --out out.zarr --cluster none"
    array = run(
        "sbatch", "--parsable", "--array=1-3", "--wrap", f"{command} --part $SLURM_ARRAY_TASK_ID/3", cwd=copied
    ).strip()  # fmt: skip
    joined = run("sbatch", "--parsable", f"--dependency=afterok:{array}", "--wrap", command, cwd=copied).strip()
    wait_until(lambda: not run("squeue", "-h", "-j", f"{array},{joined}"), 200)
    assert project.tree(copied / "out.zarr") == project.tree(local / "out.zarr"), _outputs(copied)


def _outputs(folder: Path) -> str:
    return "\n".join(file.read_text() for file in folder.glob("slurm-*.out"))
