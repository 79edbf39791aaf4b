"""Where to run: names, files and addresses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from unetflow.errors import InputError
from unetflow.runtime.clusterfile import KINDS, cluster_folders, copy_cluster, known_clusters, read_cluster


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_has_a_file_that_can_be_read(kind: str) -> None:
    assert read_cluster(kind).kind == kind


def test_every_file_of_the_folder_can_be_read() -> None:
    files = [file for folder in cluster_folders() for file in folder.glob("*.toml")]
    assert {read_cluster(str(file)).kind for file in files} == set(KINDS)
    assert known_clusters()[0] == "none"


def test_an_address_needs_no_file(tmp_path: Path) -> None:
    assert read_cluster("tcp://host:8786").address == "tcp://host:8786"
    file = tmp_path / "scheduler.json"
    file.write_text("{}")
    assert read_cluster(str(file)).scheduler_file == str(file)


def test_arguments_win_over_the_file() -> None:
    spec = read_cluster("slurm", {"workers": "2:8", "options": {"memory": "1GB"}, "queue": "gpu", "kind": None})
    assert spec.worker_range == (2, 8)
    assert spec.options["memory"] == "1GB"
    assert spec.options["queue"] == "gpu"
    assert spec.options["cores"] == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind = 'slrm'", "did you mean 'slurm'"),
        ("knd = 'slurm'", "did you mean 'kind'"),
        ("workers = true", "must be int or str"),
        ("workers = 0", "N:M"),
        ("workers = '4:2'", "N:M"),
        ("workers = 'many'", "N:M"),
        ("threads = 0", "at least 1"),
        ("security = 'no'", "must be bool"),
        ("options = 3", "must be dict"),
        ("kind = 'address'", "needs an address"),
        ("kind = ", "readable TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_the_cure(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_cluster(str(file))


@pytest.mark.parametrize("name", ["slurmm", "nowhere/mine.toml", "missing.json", ""])
def test_an_unknown_cluster_is_refused_with_the_known_names(name: str) -> None:
    with pytest.raises(InputError, match="known names are none, address, cuda"):
        read_cluster(name)


def test_what_has_no_file_of_ours_is_not_copied(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('kind = "local"\n')
    for name in (str(mine), "tcp://10.0.0.1:8786"):
        with pytest.raises(InputError, match=r"named address, cuda.*name one of these"):
            copy_cluster(name, tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_importing_the_runtime_does_not_import_dask_or_rich() -> None:
    code = (
        "import sys, pkgutil, importlib, unetflow.runtime as r\n"
        "[importlib.import_module('unetflow.runtime.' + m.name) for m in pkgutil.iter_modules(r.__path__)]\n"
        "heavy = {'dask', 'distributed', 'rich', 'torch', 'dask_jobqueue'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
