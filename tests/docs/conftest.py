"""One tiny project for all tests of the documentation: prepared, trained, segmented, scored."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from newcomer import Made, make_project


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The project, which no test changes, and what its stages returned."""
    return make_project(tmp_path_factory.mktemp("newcomer"))


@pytest.fixture
def place(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project as the current folder."""
    folder = tmp_path / "project"
    shutil.copytree(made.folder, folder)
    monkeypatch.chdir(folder)
    return folder
