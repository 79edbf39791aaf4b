"""Let functions that work on stores take arrays too: they pass through a temporary one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError
from unetflow.geometry import BlockGrid, Box
from unetflow.stages.layout import choose_layout

Source = str | os.PathLike[str] | npt.NDArray[Any]


def as_path(source: Source, folder: Path, name: str, axes: str | None = None) -> str:
    """Return the path of a source; an array is stored below ``folder`` first.

    Raises
    ------
    InputError
        If an array has not 2 to 4 axes, or holds what Zarr cannot.
    """
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    from unetflow.storage.volume import create_array

    data = np.asarray(source)
    letters = axes or {2: "yx", 3: "zyx", 4: "tzyx"}.get(data.ndim, "")
    if len(letters) != data.ndim or data.dtype.kind not in "biuf":
        raise InputError(
            f"an array must have 2 to 4 axes and hold numbers, got shape {data.shape} of {data.dtype}; "
            "name its axes with axes"
        )
    if data.dtype.kind == "b":
        data = data.astype(np.uint8)
    spatial = min(3, len(letters.replace("t", "")))
    _, shard = choose_layout(data.shape, spatial)
    path = folder / name
    volume = create_array(path, axes=letters, shape=data.shape, chunk=shard, dtype=data.dtype.name)
    for block in BlockGrid(Box.of_shape(data.shape), shard):
        volume.write(block.inner, data[block.inner.slices])
    return str(path)
