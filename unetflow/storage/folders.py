"""Make room for an output: what lies in a folder, local or behind a URL, and its removal."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from unetflow.errors import InputError
from unetflow.failpoints import fail_point
from unetflow.storage import store as stores
from unetflow.storage.objects import Objects

PRIVATE_FOLDER = ".unetflow"  # ledger and lock of a run: no part of the data, survives overwriting


def clear(path: str, *, overwrite: bool) -> None:
    """Make room for a new node: refuse what exists, or remove it if it is Zarr and may go.

    The run's own folder ``.unetflow`` (ledger and lock) is kept.

    Raises
    ------
    InputError
        If something exists and `overwrite` is off, or if it is no Zarr node.
    """
    found = stores.is_node(path)
    if found and not overwrite:
        raise InputError(f"an output must not exist yet, got '{path}'; give another name or --overwrite")
    content = content_of(path)
    if content and not found:
        raise InputError(
            f"an output must be a new folder or a Zarr node, got the folder '{path}' with other "
            "files; give another name"
        )
    # Metadata go last: what an interruption leaves is still Zarr, and may be removed.
    for name in sorted(content, key=lambda name: name in stores.DOCUMENTS):
        remove(stores.join(path, name))
        fail_point("half-clear")


def content_of(path: str) -> list[str]:
    """Return the names right inside a folder, but the run's own; nothing where there is no folder."""
    if stores.is_url(path):
        names = Objects(path).names()
    elif os.path.isfile(path):
        raise InputError(f"an output must be a new folder, got the file '{path}'; give another name")
    else:
        names = os.listdir(path) if os.path.isdir(path) else []
    return [name for name in names if name != PRIVATE_FOLDER]


def put_file(path: str, file: str | os.PathLike[str]) -> None:
    """Put a finished local file in place, whole, at a path or URL."""
    if stores.is_url(path):
        Objects(stores.parent(path)).upload(path.rpartition("/")[2], os.fspath(file))
    else:
        part = shutil.copyfile(file, f"{path}.part")  # the file may come from another disk
        os.replace(part, path)


def remove(path: str) -> None:
    """Remove a file or a folder with all that it holds, if it is there."""
    if stores.is_url(path):
        Objects(stores.parent(path)).delete_all(path.rpartition("/")[2])
    elif os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)
