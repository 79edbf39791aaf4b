"""The promise that missing data fails where somebody counts on it, and is skipped elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBE = "def test_that_needs_data(data_folder):\n    assert data_folder.is_dir()\n"


def run_probe(folder: Path, data: Path | None) -> subprocess.CompletedProcess[str]:
    """Run one test that asks for the data, in a project laid out like this one."""
    tests = folder / "project" / "tests"
    tests.mkdir(parents=True)
    (tests / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tests / "test_probe.py").write_text(PROBE)
    environment = {key: value for key, value in os.environ.items() if key != "UNETFLOW_DATA"}
    if data is not None:
        environment["UNETFLOW_DATA"] = str(data)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    return subprocess.run(
        [*command, str(tests)], cwd=tests.parent, env=environment, capture_output=True, text=True, timeout=60
    )


def test_a_named_folder_that_is_absent_fails_the_run(tmp_path: Path) -> None:
    result = run_probe(tmp_path, tmp_path / "gone")
    assert result.returncode == 4
    assert "UNETFLOW_DATA must name the folder of test data" in result.stdout + result.stderr


def test_without_a_name_absent_data_is_skipped_with_the_reason(tmp_path: Path) -> None:
    result = run_probe(tmp_path, None)
    assert result.returncode == 0
    assert "1 skipped" in result.stdout
    assert "UNETFLOW_DATA is not set" in result.stdout


def test_a_named_folder_that_exists_is_used(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    result = run_probe(tmp_path, tmp_path / "elsewhere")
    assert "1 passed" in result.stdout
