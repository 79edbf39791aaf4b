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
from unetflow.formats.hdf5 import open_hdf5
from unetflow.formats.inner_path import HDF5_ENDINGS, is_hdf5, is_n5, split_source
from unetflow.formats.n5 import open_n5
from unetflow.formats.numpy_file import open_numpy
from unetflow.formats.picture import PICTURES, open_picture
from unetflow.formats.source import Source, natural_key
from unetflow.formats.tiff import open_tiff

TIFFS = (".tif", ".tiff", ".btf", ".tf8", ".ome.tif", ".ome.tiff")
SUPPORTED = "TIFF, OME-TIFF and BigTIFF, PNG, JPEG, BMP, HDF5, N5, .npy, and Zarr v2 and v3"

_ENDINGS = (*TIFFS, *PICTURES, *HDF5_ENDINGS, ".npy")
_MOST_DIGESTED = 1000


def list_files(source: str) -> list[str]:
    """Return the files that a file, a folder or a glob names, in natural order.

    Hidden files and files of other kinds in a folder are left out. An N5 folder is one file; a dataset
    that the source names (``file.h5:/raw``) is none of a file's name.

    Raises
    ------
    InputError
        If there are none, or only of a kind that is not read.
    """
    source, _ = split_source(source)
    path = Path(source)
    if path.is_file() or (path.is_dir() and is_n5(source)):
        return [str(path)]
    if path.is_dir():
        found = [e.path for e in os.scandir(path) if e.is_file() and not e.name.startswith(".")]
        named = [name for name in found if name.lower().endswith(_ENDINGS)]
    elif glob.has_magic(source):
        found = [name for name in glob.glob(source, recursive=True) if Path(name).is_file()]
        named = [name for name in found if name.lower().endswith(_ENDINGS)]
    else:
        inside = next((str(p) for p in path.parents if p.is_file() and is_hdf5(str(p))), None)
        cure = f"write {inside}:/{path.relative_to(inside)}" if inside else "give a file, a folder or a glob in quotes"
        raise InputError(f"a source must exist, got {source}; {cure}")
    if not named:
        here = f"{len(found)} files of other kinds" if found else "no files"
        raise InputError(f"a source must hold {SUPPORTED}, got {here} in {source}; use a glob")
    return sorted(named, key=natural_key)


def open_file(path: str, *, as_labels: bool = False) -> Source:
    """Look at one file, or at a dataset of it: ``file.h5:/raw``.

    Parameters
    ----------
    as_labels : bool
        Take the indices of a palette picture instead of its colours.

    Raises
    ------
    InputError
        If its kind is not read, or it is damaged.
    """
    path, dataset = split_source(path)
    ending = path.lower()
    if is_hdf5(path):
        return open_hdf5(path, dataset)
    if is_n5(path):
        return open_n5(path, dataset)
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
    _, dataset = split_source(source)
    suffix = "" if dataset is None else f":{dataset}"
    return [open_file(path + suffix, as_labels=as_labels) for path in list_files(source)]


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
