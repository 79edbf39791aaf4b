"""Open anything Zarr as a volume, or create one.

`Volume` reads and writes boxes. Where the bytes are, and what their axes mean, is found out here
once, on the driver; workers open the array again by the path in the record.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np

from unetflow.errors import InputError
from unetflow.storage import array as arrays
from unetflow.storage import store as stores
from unetflow.storage.array import CorruptChunkError, invalidate
from unetflow.storage.describe import (
    GRID_AXES,
    SPATIAL_AXES,
    AxesWish,
    Source,
    find_source,
    find_sources,
    place_attributes,
)
from unetflow.storage.store import Json
from unetflow.storage.voxels import Volume

__all__ = ["CorruptChunkError", "Volume", "create_array", "invalidate", "open_images", "open_volume"]

CHANNELS_TOGETHER_BYTES = 2**24


def open_volume(
    path: str | os.PathLike[str],
    *,
    axes: str | None = None,
    default_axes: str | None = None,
    voxel_size: Sequence[float] | None = None,
    level: int = 0,
) -> Volume:
    """Open a Zarr array (v2, v3) or an OME-Zarr image, by path or URL.

    Parameters
    ----------
    path : str
        An array, an image, or a group that holds one image.
    axes : str, optional
        Stored axes, letters of ``tczyx``. Absent: the metadata's, else ``yx`` or ``zyx``.
    default_axes : str, optional
        Stored axes for an array without metadata, where it has as many axes.
    voxel_size : sequence of float, optional
        Per spatial axis (z, y, x), instead of the metadata's.
    level : int
        Level of an OME image; 0 is the finest.

    Raises
    ------
    InputError
        If there is no image, or one that cannot be used; the message says what to do.
    """
    return _volume_of(find_source(stores.normalise(path), AxesWish(axes, default_axes), level), voxel_size)


def open_images(
    path: str | os.PathLike[str],
    *,
    axes: str | None = None,
    default_axes: str | None = None,
    voxel_size: Sequence[float] | None = None,
    level: int = 0,
) -> dict[str, Volume]:
    """Open the images of a collection by name, sorted; a single image has the name ""."""
    found = find_sources(stores.normalise(path), AxesWish(axes, default_axes), level)
    return {name: _volume_of(source, voxel_size) for name, source in found.items()}


def create_array(
    path: str | os.PathLike[str],
    *,
    axes: str,
    shape: Sequence[int],
    n_channels: int | None = None,
    dtype: str,
    chunk: Sequence[int],
    shard: Sequence[int] | None = None,
    fill_value: float = 0,
    voxel_size: Sequence[float] | None = None,
    translation: Sequence[float] | None = None,
    unit: str | None = "micrometer",
    attributes: Json | None = None,
    overwrite: bool = False,
) -> Volume:
    """Create a Zarr v3 array with checksums and named axes.

    Parameters
    ----------
    axes : str
        Stored order. A shard or chunk holds all channels up to 16 MiB a chunk, else one.
    shape, chunk, shard : sequence of int
        Per grid axis (t, z, y, x as far as there).
    n_channels : int, optional
        Needed if, and only if, `axes` have a ``c``.
    voxel_size, translation : sequence of float, optional
        Per spatial axis; kept as attributes of the array, where `open_volume` finds them.
    """
    path = stores.normalise(path)
    if "c" not in axes and n_channels not in (None, 1):
        raise ValueError(f"{n_channels} channels need an axis c, got the axes {axes}")
    n_channels = n_channels or 1
    chunk_bytes = math.prod(chunk) * n_channels * np.dtype(dtype).itemsize
    together = n_channels if chunk_bytes <= CHANNELS_TOGETHER_BYTES else 1
    place = {} if voxel_size is None else place_attributes(voxel_size, translation, unit)
    arrays.create(
        path,
        shape=_stored(axes, shape, n_channels),
        chunk=_stored(axes, chunk, together),
        shard=None if shard is None else _stored(axes, shard, together),
        dtype=dtype,
        fill_value=fill_value,
        dimension_names=list(axes),
        attributes={**(attributes or {}), **place},
        overwrite=overwrite,
    )
    return open_volume(path, axes=axes)


def _stored(axes: str, lengths: Sequence[int], channels: int) -> list[int]:
    """Return lengths per stored axis from those of the grid axes."""
    grid = [a for a in GRID_AXES if a in axes]
    per_axis = {**dict(zip(grid, lengths, strict=True)), "c": channels}
    return [int(per_axis[a]) for a in axes]


def _volume_of(source: Source, voxel_size: Sequence[float] | None) -> Volume:
    array, axes = source.array, source.axes
    spatial = [axes.index(a) for a in SPATIAL_AXES if a in axes]
    grid = [axes.index(a) for a in GRID_AXES if a in axes]
    size = tuple(source.scale[i] for i in spatial)
    if voxel_size is not None:
        size = tuple(float(v) for v in voxel_size)
    if len(size) != len(spatial) or not all(0 < v < math.inf for v in size):
        raise InputError(
            f"a voxel size needs one length above 0 for each spatial axis "
            f"{''.join(axes[i] for i in spatial)}, got {size}; give --voxel-size"
        )
    return Volume(
        path=source.path,
        axes=axes,
        shape=tuple(array.shape[i] for i in grid),
        n_channels=array.shape[axes.index("c")] if "c" in axes else 1,
        dtype=np.dtype(array.dtype).name,
        voxel_size=size,
        unit=source.unit,
        translation=tuple(source.translation[i] for i in spatial),
        chunk=tuple(array.chunks[i] for i in grid),
        shard=None if array.shards is None else tuple(array.shards[i] for i in grid),
        fill_value=float(array.fill_value or 0),
        image_path=source.image_path,
        level=source.level,
    )
