"""`unetflow cluster check`: what it finds, and what it says of each thing that can be wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from unetflow.cli import app
from unetflow.errors import InputError
from unetflow.runtime.check import check_cluster, problems_of, versions

ROOT = Path(__file__).parents[2]


def check(*words: str) -> tuple[int, dict[str, Any], str]:
    done = CliRunner().invoke(app, ["cluster", "check", *words, "--json"])
    return done.exit_code, json.loads(done.stdout.splitlines()[-1]), done.stderr


@contextmanager
def scheduler(folder: Path, *around_worker: str, **environ: str) -> Iterator[str]:
    """Run a scheduler and a worker as somebody else would have started them; yields the scheduler file."""
    file, dask = folder / "scheduler.json", [sys.executable, "-m", "distributed.cli"]
    options = {"cwd": folder, "stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    own = [f"{dask[2]}.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    words = ["--scheduler-file", str(file), "--dashboard-address", "127.0.0.1:0"]
    worker = [*around_worker, *dask[:2], f"{dask[2]}.dask_worker", *words, "--nthreads", "1", "--no-nanny"]
    with subprocess.Popen([*dask[:2], *own, *words], **options) as one:  # type: ignore[call-overload]
        until = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < until
            time.sleep(0.1)
        env = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
        with subprocess.Popen([*worker, "--host", "127.0.0.1"], env=env, **options) as two:  # type: ignore[call-overload]
            try:
                yield str(file)
            finally:
                two.kill()
                one.kill()


def test_a_local_cluster_is_described_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, found, told = check("local")
    assert (code, told, found["problems"]) == (0, "", [])
    assert found["memory"] != "without limit"
    assert found["host"] == os.uname().nodename
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert found["versions"] == versions()
    assert found["versions"]["torch"] != "missing"
    assert found["dashboard"].startswith("http://127.0.0.1:")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="only root can hide a folder")
def test_a_folder_that_only_looks_shared_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker has a file system of its own where the run's folder is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unetflow.runtime.check.SHARED_SECONDS", 1.0)
    (tmp_path / "run").mkdir()
    hide = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs none {tmp_path / "run"} && exec "$@"', "sh")
    (tmp_path / "unetflow.toml").write_text("[[data]]\nraw = 'raw.zarr'\nlabels = 's3://bucket/labels.zarr'\n")
    with scheduler(tmp_path, *hide) as file:
        code, found, told = check(file)
    assert code == 2
    assert "does not see the same files" in told
    assert "must lie on a file system that all nodes share" in found["problems"][0]
    assert found["problems"][1:] == [
        f"the worker on {os.uname().nodename} does not see {tmp_path / 'raw.zarr'}, which this run reads"
    ]


def test_a_worker_with_another_version_is_refused_by_name(tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "zarr-2.18.0.dist-info").mkdir(parents=True)
    (other / "zarr-2.18.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: zarr\nVersion: 2.18.0\n")
    path = f"{other}{os.pathsep}{ROOT}"
    with (
        scheduler(tmp_path, PYTHONPATH=path) as file,
        pytest.raises(InputError, match=r"workers must have zarr 3\S+ as this process does, and \S+ has 2.18.0"),
    ):
        check_cluster(file, tmp_path / "run")


def test_a_worker_without_the_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "unetflow.py").write_text("raise ImportError('there is no unetflow here')\n")
    with (
        scheduler(tmp_path, PYTHONPATH=str(tmp_path)) as file,
        pytest.raises(InputError, match=r"cannot import it .*install the same environment"),
    ):
        check_cluster(file, tmp_path / "run")


@pytest.mark.parametrize(
    ("facts", "more", "message"),
    [
        ({}, {}, None),
        ({}, {"skew": -42.0}, "is -42 s from this host's"),
        ({}, {"skew": -42.0, "doubt": 40.0}, None),
        ({"write_error": "read-only"}, {}, r"cannot write to /run \(read-only\)"),
        ({}, {"is_back": False}, "does not see the same files"),
        ({"read": None}, {}, "does not see the same files"),
        ({}, {"wants_gpu": True}, "torch on n1 sees none"),
        ({"gpus": ["H100"]}, {"wants_gpu": True}, None),
        ({"has_driver": True}, {}, "torch sees no GPU"),
    ],
)
def test_each_thing_that_can_be_wrong_has_a_sentence(
    facts: dict[str, Any], more: dict[str, Any], message: str | None
) -> None:
    found = {"host": "n1", "write_error": None, "read": "t", "hidden": [], "gpus": [], "has_driver": False, **facts}
    asked = {"is_back": True, "skew": 0.0, "doubt": 0.1, "run": Path("/run"), "wants_gpu": False, **more}
    problems = problems_of(found, "t", **asked)
    assert len(problems) == (message is not None)
    assert message is None or re.search(message, problems[0])


def test_a_folder_that_cannot_be_written_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="must be writable"):
        check_cluster("local", tmp_path / "file" / "run")


def test_no_cluster_cannot_be_checked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="starts no worker"):
        check_cluster("none", tmp_path / "run")


def test_a_copy_of_a_cluster_file_comes_with_its_submit_script_and_is_not_written_over(tmp_path: Path) -> None:
    run = CliRunner()
    done = run.invoke(app, ["cluster", "copy", "slurm-gpu", str(tmp_path), "--json"])
    assert sorted(json.loads(done.stdout)["files"]) == [str(tmp_path / n) for n in ("slurm-gpu.toml", "submit.sbatch")]
    (tmp_path / "slurm-gpu.toml").write_text("mine")
    assert run.invoke(app, ["cluster", "copy", "slurm-gpu", str(tmp_path)]).exit_code == 2
    assert (tmp_path / "slurm-gpu.toml").read_text() == "mine"
