"""Arrays inside HDF5 files and N5 folders: ``file.h5:/volumes/raw``, ``scan.n5:/setup0/s0``."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from unetflow.errors import InputError

HDF5_ENDINGS = (".h5", ".hdf5", ".hdf", ".he5")
N5_ENDING = ".n5"
N5_ATTRIBUTES = "attributes.json"
MOST_DATASETS = 1000  # a file may hold a dataset for each of very many time points

_NAMED = re.compile(r"(?P<file>.+\.(?:h5|hdf5|hdf|he5|n5))/?:(?P<dataset>.*)", re.IGNORECASE | re.DOTALL)
_MOST_TOLD = 12


def split_source(source: str) -> tuple[str, str | None]:
    """Split a source into what lies on the disk, and the dataset inside of it.

    A folder inside of an N5 folder names a dataset too.

    Examples
    --------
    >>> split_source("a/*.h5:/volumes/raw"), split_source("scan.n5/s0"), split_source("slices")
    (('a/*.h5', '/volumes/raw'), ('scan.n5', '/s0'), ('slices', None))
    """
    match = _NAMED.fullmatch(source)
    if match is not None:
        return match["file"], "/" + match["dataset"].strip("/")
    path = Path(source)
    for folder in (path, *path.parents):
        if folder.suffix.lower() == N5_ENDING:
            inside = path.relative_to(folder).as_posix()
            return str(folder), None if inside == "." else f"/{inside}"
    return source, None


def is_hdf5(path: str) -> bool:
    """Say whether a file's name is that of an HDF5 file."""
    return path.lower().endswith(HDF5_ENDINGS)


def is_n5(path: str) -> bool:
    """Say whether a path is that of an N5 folder: by its name, or attributes in it or one level below."""
    if Path(path).suffix.lower() == N5_ENDING:
        return True
    if not os.path.isdir(path):
        return False
    with os.scandir(path) as entries:
        below = [entry.path for entry in entries if entry.is_dir()]
    return any(os.path.isfile(os.path.join(folder, N5_ATTRIBUTES)) for folder in (path, *below))


def named(path: str, dataset: str) -> str:
    """Write a source that names a dataset, as `split_source` reads it."""
    is_split = path.lower().endswith((*HDF5_ENDINGS, N5_ENDING))
    return f"{path}:{dataset}" if is_split else f"{path}{dataset}"


def choose_dataset(path: str, found: Sequence[tuple[str, str]]) -> str:
    """Return the only dataset of a file, where none was named.

    Parameters
    ----------
    found : sequence of (str, str)
        Name and description of each.

    Raises
    ------
    InputError
        If there is none, or more than one.
    """
    if len(found) == 1:
        return found[0][0]
    if not found:
        raise InputError(f"a source must hold an array of two axes or more, got {path} without one; name another file")
    raise InputError(
        f"a dataset must be named where a file holds several, got {path} with {listed(found)}; for instance "
        f"{named(path, found[0][0])}"
    )


def refuse_missing(path: str, dataset: str, what: str, found: Sequence[tuple[str, str]]) -> InputError:
    """Return the refusal of a name that is no dataset: ``what`` is there instead."""
    if not found:
        cure = "the file holds no array of two axes or more; name another file"
    else:
        cure = f"name one of {listed(found)}, for instance {named(path, found[0][0])}"
    return InputError(f"a dataset must be an array in the file, got {dataset} in {path}, which is {what}; {cure}")


def listed(found: Sequence[tuple[str, str]]) -> str:
    """Return names and descriptions in one line."""
    told = ", ".join(f"{name} ({description})" for name, description in found[:_MOST_TOLD])
    n_more = len(found) - _MOST_TOLD
    if n_more <= 0:
        return told
    return f"{told} and {n_more}{' or' if len(found) >= MOST_DATASETS else ''} more"
