"""Wheel and sdist: built from the tree, installed into an empty environment, run there (make release-check)."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import unetflow

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.release


def run(command: list[str | Path], cwd: Path) -> str:
    """Run a command that sees neither this tree nor this environment."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of the tree, unpacked, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("built")
    code = f"import hatchling.build, os; os.chdir({str(ROOT)!r}); hatchling.build.build_sdist({str(folder)!r})"
    run([sys.executable, "-c", code], folder)
    (archive,) = folder.glob("unetflow-*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    source = folder / archive.name.removesuffix(".tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    run([*pip, "--wheel-dir", folder, source], folder)
    (wheel,) = folder.glob("unetflow-*.whl")
    return source, wheel


def test_the_wheel_holds_the_package_with_its_clusters_and_no_tests(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[1]).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"unetflow", f"unetflow-{unetflow.__version__}.dist-info"}
    assert {"unetflow/py.typed", "unetflow/_cluster/slurm.toml"} <= set(names)
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "unetflow").rglob("*.py")}
    assert modules <= set(names)


def test_the_sdist_holds_what_a_packager_needs(built: tuple[Path, Path]) -> None:
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "constraints.txt", "Makefile", "tests/conftest.py"):
        assert (built[0] / name).is_file(), name


def test_the_wheel_runs_the_smallest_workflow_in_an_empty_environment(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    source, wheel = built
    run([sys.executable, "-m", "venv", tmp_path / "empty"], tmp_path)
    assert "include-system-site-packages = false" in (tmp_path / "empty" / "pyvenv.cfg").read_text()
    python = tmp_path / "empty" / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "-c", source / "constraints.txt", wheel], tmp_path)
    where = run([python, "-c", "import unetflow; print(unetflow.__file__)"], tmp_path)
    assert where.startswith(str(tmp_path)), where
    assert run([python.with_name("unetflow"), "--version"], tmp_path) == f"unetflow {unetflow.__version__}\n"
    script = source / "workflows" / "end_to_end.py"
    run([python, script, "tiny", "--work", tmp_path / "work", "--cluster", "none"], tmp_path)
    assert (tmp_path / "work" / "segmented.zarr" / "labels" / "instances" / "zarr.json").is_file()
    run([python.with_name("unetflow"), "report", tmp_path / "work" / "segmented.zarr"], tmp_path)
