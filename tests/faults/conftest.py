"""A project to break, a server of commands, and a watch over what faults leave behind."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

for folder in (Path(__file__).parent, Path(__file__).parents[1] / "integration"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from forks import Forks  # noqa: E402
from watch import KEPT, watch  # noqa: E402

PROJECT = """
[[data]]
raw = "raw.zarr"
labels = "labels.zarr"
[prepare]
patches = 8
patch_shape = [1, 108, 108]
elastic_sigma = 2.0
validation_fraction = 0.2
shard = [1, 64, 64]
[model]
depth = 2
base_channels = 2
norm = "batch"
[train]
steps = 6
validate_every = 3
checkpoint_minutes = 0.00001
batch_size = 2
optimizer = "adam"
learning_rate = 0.01
[segment]
outputs = ["probabilities", "classes", "instances"]
memory = "50 MB"
tile = [1, 64, 64]
shard = [1, 64, 64]
chunk = [1, 32, 32]
"""
SHAPE = (2, 70, 300)  # long enough for a pyramid


@pytest.fixture(autouse=True, scope="session")
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give this process and its children a temporary folder that nobody else writes to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("temporary")))
        patch.setattr(tempfile, "tempdir", None)
        yield


@pytest.fixture(autouse=True, scope="module")
def nothing_of_a_module_is_left(own_temporary_folder: None) -> Iterator[None]:
    """The same for what the tests of a module share."""
    yield from watch()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fail where a test leaves a child process, a listening port, or a file of ours in the temporary folder."""
    yield from watch()


@pytest.fixture(scope="session")
def forks(own_temporary_folder: None) -> Iterator[Forks]:
    """A process that forks commands."""
    with Forks() as running:
        KEPT.add(running.pid)
        yield running


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """Folder of a project that is prepared, trained (``run``) and segmented (``raw.unetflow.zarr``), undisturbed."""
    import project

    folder = tmp_path_factory.mktemp("faults")
    project.make_volume(folder, SHAPE)
    (folder / "unetflow.toml").write_text(PROJECT)
    for words in (["prepare"], ["train"], ["segment", "raw.zarr"]):
        ended = forks.run(*words, "--cluster", "none", folder=folder)
        assert ended.code == 0, ended
    return folder


@pytest.fixture
def command(forks: Forks, place: Path) -> Callable[..., object]:
    """Run a command in the project's folder, in one process."""

    def run(*words: object, **environ: str) -> object:
        return forks.run(*words, "--cluster", "none", folder=place, **environ)

    return run
