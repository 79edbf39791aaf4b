"""Compare an output with what is free on its disk, in bytes and in files."""

from __future__ import annotations

import os
from typing import Any

from unetflow.errors import InputError
from unetflow.memory import format_bytes
from unetflow.storage import store as stores
from unetflow.storage.folders import content_of

# Nobody knows beforehand how far voxels shrink: smooth probabilities to a third or a tenth, labels to
# a hundredth, and blocks of background are not stored. Below this share no output of a volume with
# something in it was seen to get, so with less room a run is sure to fail.
SURE_SHARE = 0.05


def check_room(folder: str | os.PathLike[str], n_bytes: int, n_files: int) -> dict[str, Any]:
    """Compare an output with what is free where it goes, and return the figures for a plan.

    Only what cannot go well is refused: less room than a twentieth of the voxels, or of the files. An
    output that holds something already (a run that goes on, or one that is overwritten) is not
    refused, because what lies there counts and is not worth the walk over all files.

    Parameters
    ----------
    folder : path
        The output; need not exist. For a URL there is nothing to compare with.
    n_bytes : int
        All voxels that are written, uncompressed.
    n_files : int
        Files at most: shards (or chunks without shards) and metadata.

    Returns
    -------
    dict
        ``size`` uncompressed, ``files``; for a folder also ``free`` and, where the file system
        has a limit, ``free_files``.

    Raises
    ------
    InputError
        If a new output cannot fit.

    Examples
    --------
    >>> figures = check_room("/tmp", 3_000_000, 12)
    >>> figures["size"], figures["files"]
    ('3.0 MB', 12)
    """
    place = stores.normalise(folder)
    figures: dict[str, Any] = {"size": format_bytes(n_bytes), "files": n_files}
    if stores.is_url(place):
        return figures
    disk = os.statvfs(_nearest(place))
    free = disk.f_bavail * disk.f_frsize
    figures["free"] = format_bytes(free)
    if disk.f_files:  # some file systems make inodes as they need them, and say 0
        figures["free_files"] = disk.f_favail
    if not content_of(place):
        _refuse(place, "bytes of its voxels", format_bytes(free), format_bytes(n_bytes), free < SURE_SHARE * n_bytes)
        is_short = bool(disk.f_files) and disk.f_favail < SURE_SHARE * n_files
        _refuse(place, "files", str(disk.f_favail), str(n_files), is_short)
    return figures


def _refuse(place: str, what: str, free: str, wanted: str, is_short: bool) -> None:
    if is_short:
        raise InputError(
            f"an output needs room for at least a twentieth of the {what}, got {free} free at '{place}' for "
            f"{wanted}; name another disk, free some, or choose fewer --outputs, larger shards or a --roi"
        )


def _nearest(path: str) -> str:
    """Return the path, or the nearest folder above it that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path
