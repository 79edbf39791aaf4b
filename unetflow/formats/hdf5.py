"""Datasets of HDF5 files, read by slices: a box costs the stored chunks that it cuts."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from unetflow.errors import InputError
from unetflow.formats.hdf5_metadata import BDV_TABLES, describe, is_of_bdv
from unetflow.formats.inner_path import MOST_DATASETS, choose_dataset, refuse_missing
from unetflow.formats.source import Array, Source, numeric_dtype
from unetflow.geometry import Box


@dataclass(frozen=True)
class Hdf5(Source):
    """One dataset of an HDF5 file.

    Notes
    -----
    The file is opened for each box: HDF5 keeps a file locked for writers as long as it is open.
    """

    def read(self, box: Box) -> Array:
        """Return the voxels of a box over all stored axes, native-endian."""
        with _opened(self.path) as file:
            dataset = file[self.dataset]
            if dataset.shape != self.shape:
                raise ValueError(f"{self.path} was {self.shape} when planned, and is {dataset.shape} now")
            return np.ascontiguousarray(dataset[box.slices], dtype=self.dtype)


def open_hdf5(path: str, dataset: str | None) -> Hdf5:
    """Look at a dataset of an HDF5 file, or at the only one.

    Raises
    ------
    InputError
        If the file is damaged, the dataset is missing, holds no numbers, or needs a filter that is not installed.
    """
    try:
        with _opened(path) as file:
            name = dataset or choose_dataset(path, _datasets(file))
            return _look_at(file, path, name)
    except InputError:
        raise
    except Exception as cause:  # h5py raises OSError, RuntimeError, KeyError, ValueError on damage
        raise InputError(
            f"an HDF5 file must be one that h5py reads, got {path}: {cause}; copy or save it again"
        ) from None


def _look_at(file: Any, path: str, name: str) -> Hdf5:
    node = file.get(name)
    if not isinstance(node, h5py.Dataset):
        what = "not there" if node is None else "a group"
        raise refuse_missing(path, name, what, _datasets(node if isinstance(node, h5py.Group) else file))
    where = f"{path}:{name}"
    if node.shape is None or len(node.shape) < 2:
        raise refuse_missing(path, name, f"of the shape {node.shape}", _datasets(file))
    if node.dtype.fields is not None:
        raise InputError(
            f"voxels must be numbers, got a record of {', '.join(node.dtype.fields)} in {where}; save one of these as "
            "a dataset of its own"
        )
    dtype = numeric_dtype(node.dtype, where)
    _refuse_unreadable(node, path, where)
    axes, voxel_size = describe(file, node, path)
    whole = zip((node.chunks or (0, 0))[-2:], node.shape[-2:], strict=True)
    is_planewise = bool(_filters(node)) and all(length >= n for length, n in whole)
    if is_of_bdv(name) and dtype == "int16":
        dtype = "uint16"  # BigDataViewer stores its unsigned numbers under a signed type
    return Hdf5(path, node.shape, dtype, axes, voxel_size, is_planewise, name)


def _datasets(group: Any) -> list[tuple[str, str]]:
    """List the arrays below a group that may be images, in the order of their names."""
    found: list[tuple[str, str]] = []

    def visit(_: str, node: Any) -> bool | None:
        is_image = isinstance(node, h5py.Dataset) and len(node.shape or ()) >= 2 and node.dtype.kind in "biuf"
        if is_image and node.name.rpartition("/")[2] not in BDV_TABLES:
            found.append((node.name, f"{'x'.join(map(str, node.shape))} {node.dtype.name}"))
        return True if len(found) >= MOST_DATASETS else None

    group.visititems(visit)
    return found


def _filters(dataset: Any) -> list[tuple[int, str]]:
    """Return number and name of each filter that chunks went through."""
    made = dataset.id.get_create_plist()
    each = [made.get_filter(number) for number in range(made.get_nfilters())]
    return [(code, name.decode(errors="replace").partition(";")[0] or "one") for code, _, _, name in each]


def _refuse_unreadable(dataset: Any, path: str, where: str) -> None:
    """Refuse what HDF5 could not decode, or would silently fill with zeros."""
    for code, name in _filters(dataset):
        if not h5py.h5z.filter_avail(code):
            raise InputError(
                f"chunks must be compressed by a filter that is installed, got {name} (filter {code}) in {where}; "
                "`pip install hdf5plugin`"
            )
    parts = dataset.virtual_sources() if dataset.is_virtual else []
    for name in {part.file_name for part in parts} - {"."}:
        if "%" not in name and not Path(path).parent.joinpath(name).exists():
            raise InputError(
                f"a virtual dataset needs the files that it is made of, got {where} without {name}; copy it there"
            )


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    with contextlib.suppress(ImportError):  # registers more filters, where it is installed
        importlib.import_module("hdf5plugin")
    with h5py.File(path, "r", locking="best-effort") as file:
        yield file
