"""What all tests share: where the real data lies, and how examples are drawn."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# The same examples on every run and machine; `--hypothesis-profile=explore` looks for new ones.
settings.register_profile("unetflow", max_examples=40, deadline=None, derandomize=True, database=None)
settings.register_profile("explore", max_examples=1000, deadline=None, database=None, print_blob=True)
settings.load_profile("unetflow")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Fail at once where data was promised and is absent: skipping would look like passing."""
    named = os.environ.get("UNETFLOW_DATA")
    if named and not Path(named).is_dir():
        pytest.exit(
            f"UNETFLOW_DATA must name the folder of test data, '{named}' is none; unset it or mount the data",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of the real images and foreign Zarr stores."""
    folder = Path(os.environ.get("UNETFLOW_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no test data: UNETFLOW_DATA is not set and {folder} does not exist")
    return folder.resolve()
