"""Put a file in place whole, or not at all, and find what a killed process left beside it.

::

    0.5d41...partial   write, fsync  --rename-->  0   fsync of the folder

When `write_whole` returns, the file outlives a crash of the machine too: what the ledger then
records as done is on the disk.
"""

from __future__ import annotations

import os
import re
import uuid
from contextlib import suppress
from pathlib import Path

from unetflow.failpoints import fail_point

# Ours, and those of tensor files (`nn.tensorfile`), tables and metrics.
_TEMPORARY = re.compile(r".+\.[0-9a-f]{32}\.partial|\..+\.[0-9a-f]+\.tmp")


def write_whole(path: Path, content: memoryview) -> None:
    """Write a file under a temporary name and rename it; its folder is made if need be.

    Raises
    ------
    OSError
        With the path; the temporary file is gone then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    fail_point("before-data")
    try:
        with open(temporary, "wb", buffering=0) as file:
            for part in _halves(content):
                _write_all(file.fileno(), part)
                fail_point("half-data")
            os.fsync(file.fileno())
        fail_point("before-rename")
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # so that the message can tell where, and how much room is left
        raise
    fail_point("after-rename")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sweep(folder: str | os.PathLike[str]) -> int:
    """Remove the temporary files below a folder that killed processes left; return how many they were.

    Folders that hold another run, with a record of its own, are left alone.
    """
    n_removed = 0
    for place, folders, files in os.walk(folder):
        if ".unetflow" in folders and place != os.fspath(folder):
            folders.clear()
            continue
        for name in files:
            if _TEMPORARY.fullmatch(name):
                Path(place, name).unlink(missing_ok=True)
                n_removed += 1
    return n_removed


def _halves(content: memoryview) -> tuple[memoryview, memoryview]:
    return content[: len(content) // 2], content[len(content) // 2 :]


def _write_all(file: int, content: memoryview) -> None:
    while content:
        content = content[os.write(file, content) :]
