"""Which parts of an array are stored at all: what is missing needs no reading."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from unetflow.storage import store as stores
from unetflow.storage.array import grid_of, open_array

Integers = npt.NDArray[np.int64]

# Names are listed and told some at a time: a list of all would grow with the volume.
_BATCH = 100_000


def each_stored(path: str, visit: Callable[[Integers, Integers], None]) -> bool:
    """Tell ``visit`` the boxes of an array's files (shards, or chunks without shards).

    Parameters
    ----------
    path : str
        The array, a normalised path or URL.
    visit : callable
        Called with first voxels and first voxels beyond, each ``(n, ndim)`` in the array's
        stored axis order, for up to 100,000 files at a time.

    Returns
    -------
    bool
        Whether the store could be listed; if not, ``visit`` was not called.
    """
    array = open_array(path)
    # Web servers list nothing, though their file system claims it.
    if path.startswith(("http://", "https://")) or not array.store.supports_listing:
        return False
    stores.run(_walk(array, visit))
    return True


async def _walk(array: zarr.Array[Any], visit: Callable[[Integers, Integers], None]) -> None:
    n_axes = len(array.shape)
    pattern = re.compile(r"(?:c[/.])?" + r"[/.]".join([r"(\d+)"] * n_axes))
    unit, shape = np.array(grid_of(array)), np.array(array.shape)
    found: list[list[int]] = []

    def tell() -> None:
        starts = np.array(found, np.int64).reshape(-1, n_axes) * unit
        inside = (starts < shape).all(axis=1)
        if inside.any():
            visit(starts[inside], np.minimum(starts[inside] + unit, shape))
        found.clear()

    async for key in array.store.list_prefix(""):
        match = pattern.fullmatch(key)
        if match is not None:
            found.append([int(number) for number in match.groups()])
            if len(found) == _BATCH:
                tell()
    tell()
