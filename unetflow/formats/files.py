"""From a file, a folder or a glob to sources."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import random
from collections.abc import Sequence
from pathlib import Path

from unetflow.errors import InputError
from unetflow.formats.numpy_file import open_numpy
from unetflow.formats.picture import PICTURES, open_picture
from unetflow.formats.source import Source, natural_key
from unetflow.formats.tiff import open_tiff

TIFFS = (".tif", ".tiff", ".btf", ".tf8", ".ome.tif", ".ome.tiff")
SUPPORTED = "TIFF, OME-TIFF and BigTIFF, PNG, JPEG, BMP, .npy, and Zarr v2 and v3"

_ENDINGS = (*TIFFS, *PICTURES, ".npy")
_LATER = {".h5": "HDF5", ".hdf5": "HDF5", ".hdf": "HDF5", ".he5": "HDF5", ".n5": "N5"}
_MOST_DIGESTED = 1000


def list_files(source: str) -> list[str]:
    """Return the files that a file, a folder or a glob names, in natural order.

    Hidden files and files of other kinds in a folder are left out.

    Raises
    ------
    InputError
        If there are none, or only of a kind that is not read.
    """
    path = Path(source)
    _refuse_later(source)
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        found = [e.path for e in os.scandir(path) if e.is_file() and not e.name.startswith(".")]
        named = [name for name in found if name.lower().endswith(_ENDINGS)]
    elif glob.has_magic(source):
        found = [name for name in glob.glob(source, recursive=True) if Path(name).is_file()]
        named = [name for name in found if name.lower().endswith(_ENDINGS)]
    else:
        raise InputError(f"a source must exist, got {source}; give a file, a folder or a glob in quotes")
    if not named:
        here = f"{len(found)} files of other kinds" if found else "no files"
        raise InputError(f"a source must hold {SUPPORTED}, got {here} in {source}; use a glob")
    return sorted(named, key=natural_key)


def open_file(path: str, *, as_labels: bool = False) -> Source:
    """Look at one file.

    Parameters
    ----------
    as_labels : bool
        Take the indices of a palette picture instead of its colours.

    Raises
    ------
    InputError
        If its kind is not read, or it is damaged.
    """
    ending = path.lower()
    _refuse_later(path)
    if ending.endswith(TIFFS):
        return open_tiff(path)
    if ending.endswith(PICTURES):
        return open_picture(path, as_labels)
    if ending.endswith(".npy"):
        return open_numpy(path)
    raise InputError(f"a source must be one of {SUPPORTED}, got {path}; convert it to one of these first")


def open_files(source: str, *, as_labels: bool = False) -> list[Source]:
    """Look at every file that ``source`` names, in natural order.

    Raises
    ------
    InputError
        If there is none, or one is damaged.
    """
    return [open_file(path, as_labels=as_labels) for path in list_files(source)]


def by_name(sources: Sequence[Source]) -> dict[str, Source]:
    """Return sources under their files' names without endings.

    Raises
    ------
    InputError
        If two have the same name.
    """
    named: dict[str, Source] = {}
    for source in sources:
        if source.name in named:
            raise InputError(
                f"the files of a collection need names of their own, got {named[source.name].path} and "
                f"{source.path}; name fewer of them with a glob"
            )
        named[source.name] = source
    return named


def digest_files(paths: Sequence[str], seed: int = 0) -> str:
    """Return a sha256 of number, names (with the folder's), sizes and times of files.

    Size and time are those of up to 1,000 files chosen by ``seed``.
    """
    chosen = random.Random(seed).sample(range(len(paths)), min(len(paths), _MOST_DIGESTED))
    facts = [
        (number, status.st_size, status.st_mtime_ns)
        for number in sorted(chosen)
        for status in [os.stat(paths[number])]
    ]
    names = hashlib.sha256("\n".join("/".join(Path(p).parts[-2:]) for p in paths).encode()).hexdigest()
    return hashlib.sha256(json.dumps([len(paths), names, facts]).encode()).hexdigest()


def _refuse_later(source: str) -> None:
    """Refuse HDF5 (also ``file.h5:/path``) and N5, which are not read yet."""
    name = source.partition(":/")[0] if "://" not in source else source
    kind = _LATER.get(Path(name).suffix.lower())
    if kind is None and Path(name, "attributes.json").is_file():
        kind = "N5"
    if kind is not None:
        raise InputError(f"a source must be one of {SUPPORTED}, got {kind} in {source}; save it as one")
