"""N5 datasets, read through tensorstore (the extra ``n5``): a box costs the blocks that it cuts.

N5 numbers its axes from the fastest; here as everywhere the last axis is the fastest, so a dataset of
N5's dimensions x, y, z has the shape (Z, Y, X).
"""

from __future__ import annotations

import functools
import json
import math
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unetflow.errors import InputError
from unetflow.formats.inner_path import MOST_DATASETS, N5_ATTRIBUTES, choose_dataset, refuse_missing
from unetflow.formats.n5_metadata import describe
from unetflow.formats.source import Array, Source, numeric_dtype
from unetflow.geometry import Box

_MOST_DIGESTED = 1000


@dataclass(frozen=True)
class N5(Source):
    """One dataset of an N5 folder."""

    @property
    def folder(self) -> str:
        """The dataset's own folder."""
        return os.path.join(self.path, (self.dataset or "").strip("/"))

    @property
    def files(self) -> list[str]:
        """The attributes, and up to 1,000 blocks of those that the grid allows for."""
        attributes = os.path.join(self.folder, N5_ATTRIBUTES)
        blocks = _read_attributes(self.folder).get("blockSize") or self.shape[::-1]
        counts = [-(-n // b) for n, b in zip(self.shape[::-1], blocks, strict=True)]
        total, rng = math.prod(counts), random.Random(0)
        numbers = range(total) if total <= _MOST_DIGESTED else {rng.randrange(total) for _ in range(_MOST_DIGESTED)}
        names = []
        for number in sorted(numbers):
            place = []
            for count in counts:
                number, index = divmod(number, count)
                place.append(str(index))
            names.append(os.path.join(self.folder, *place))
        return [attributes, *(name for name in names if os.path.isfile(name))]

    def read(self, box: Box) -> Array:
        """Return the voxels of a box over all stored axes, native-endian."""
        store = _opened(self.folder, os.stat(os.path.join(self.folder, N5_ATTRIBUTES)).st_mtime_ns)
        if tuple(store.shape[::-1]) != self.shape:
            raise ValueError(f"{self.folder} was {self.shape} when planned, and is {store.shape[::-1]} now")
        voxels = store[box.slices[::-1]].read().result()
        return np.ascontiguousarray(np.asarray(voxels).T, dtype=self.dtype)


def open_n5(path: str, dataset: str | None) -> N5:
    """Look at a dataset of an N5 folder, or at the only one.

    Raises
    ------
    InputError
        If tensorstore is not installed, or the dataset is missing, damaged, or holds no numbers.
    """
    if not os.path.isdir(path):
        raise InputError(f"a source must exist, got {path}; give an N5 folder, or one of its datasets as a.n5:/s0")
    name = dataset or choose_dataset(path, _datasets(path, ""))
    folder = os.path.join(path, name.strip("/"))
    attributes = _read_attributes(folder)
    if "dimensions" not in attributes:
        what = "a group" if os.path.isdir(folder) else "not there"
        below = _datasets(path, name.strip("/")) if os.path.isdir(folder) else []
        raise refuse_missing(path, name, what, below or _datasets(path, ""))
    store = _open_store(folder, f"{path}:{name}")
    shape = tuple(int(n) for n in store.shape[::-1])
    if len(shape) < 2:
        raise refuse_missing(path, name, f"of the shape {shape}", _datasets(path, ""))
    dtype = numeric_dtype(store.dtype.numpy_dtype, f"{path}:{name}")
    axes, voxel_size = describe([attributes, *_above(path, name)], len(shape))
    blocks = attributes["blockSize"][1::-1]
    is_planewise = all(b >= n for b, n in zip(blocks, shape[-2:], strict=True))
    return N5(path, shape, dtype, axes, voxel_size, is_planewise, name)


def _open_store(folder: str, where: str) -> Any:
    try:
        import tensorstore
    except ImportError:
        raise InputError(
            f"N5 is read through tensorstore, which is not installed, got {where}; `pip install 'unetflow[n5]'`"
        ) from None
    spec = {"driver": "n5", "kvstore": {"driver": "file", "path": folder.rstrip("/") + "/"}}
    try:
        return tensorstore.open(spec, open=True, read=True).result()
    except Exception as cause:  # one kind for damage, types and compressions
        told = str(cause).partition(" [")[0]
        raise InputError(
            f"an N5 dataset must be one that tensorstore reads, got {where}: {told}; save it again"
        ) from None


@functools.lru_cache(maxsize=8)
def _opened(folder: str, changed: int) -> Any:
    return _open_store(folder, folder)


def _read_attributes(folder: str) -> dict[str, Any]:
    """Return the attributes of a group or dataset; none are an empty mapping."""
    path = Path(folder, N5_ATTRIBUTES)
    try:
        attributes = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as cause:
        raise InputError(f"the attributes of an N5 dataset must be JSON, got {path}: {cause}; restore them") from None
    if not isinstance(attributes, dict):
        raise InputError(f"the attributes of an N5 dataset must be a JSON object, got {path}; restore them")
    return attributes


def _above(path: str, name: str) -> list[dict[str, Any]]:
    """Return the attributes of the groups around a dataset, the nearest first."""
    parts = [part for part in name.split("/") if part]
    return [_read_attributes(os.path.join(path, *parts[:n])) for n in reversed(range(len(parts)))]


def _datasets(path: str, group: str) -> list[tuple[str, str]]:
    """List the datasets at or below a group; datasets are not looked into: they may hold millions of blocks."""
    found: list[tuple[str, str]] = []
    waiting = [group]
    while waiting and len(found) < MOST_DATASETS:
        name = waiting.pop()
        attributes = _read_attributes(os.path.join(path, name))
        if "dimensions" in attributes:
            shape = "x".join(str(n) for n in attributes["dimensions"][::-1])
            found.append((f"/{name}", f"{shape} {attributes.get('dataType')}"))
            continue
        with os.scandir(os.path.join(path, name)) as entries:
            below = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
        waiting += [f"{name}/{entry}".lstrip("/") for entry in sorted(below, reverse=True)]
    return found
