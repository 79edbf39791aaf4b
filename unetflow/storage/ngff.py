"""Write OME-Zarr 0.5 images: groups, axes, levels, channels, labels.

References
----------
.. [1] https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from unetflow.errors import InputError
from unetflow.storage import folders
from unetflow.storage import store as stores
from unetflow.storage.describe import SPATIAL_AXES
from unetflow.storage.multiscales import AXES
from unetflow.storage.store import Json
from unetflow.storage.volume import create_array
from unetflow.storage.voxels import Volume

VERSION = "0.5"
SHORTEST_HALVED = 128  # voxels; an axis below is not halved further
LONGEST_LEFT = 256  # voxels; the pyramid ends where no spatial axis is longer
_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}
_COLORS = ("FFFFFF", "00FF00", "FF00FF", "00FFFF", "FFFF00", "FF0000", "0000FF")


class PyramidLevel(NamedTuple):
    """A level: grid shape, voxel size per spatial axis, window per grid axis in the level above."""

    shape: tuple[int, ...]
    voxel_size: tuple[float, ...]
    factors: tuple[int, ...]


def level_shapes(shape: Sequence[int], voxel_size: Sequence[float], spatial: str) -> list[PyramidLevel]:
    """Plan a pyramid that brings anisotropic voxels towards cubes.

    Each level halves the spatial axes of at least 128 voxels whose voxel size is below twice
    the smallest among them; ``t`` is never halved. The last level has at most 256 voxels on
    each spatial axis that can be halved.

    Parameters
    ----------
    shape : sequence of int
        Of the grid axes: t if it is longer than `spatial` by one, then the spatial ones.
    voxel_size : sequence of float
        Per spatial axis.
    spatial : str
        The spatial axes, such as "zyx".

    Examples
    --------
    >>> [level.shape for level in level_shapes((50, 1024, 1024), (40, 4, 4), "zyx")]
    [(50, 1024, 1024), (50, 512, 512), (50, 256, 256)]
    """
    n_lead = len(shape) - len(spatial)
    levels = [PyramidLevel(tuple(shape), tuple(float(v) for v in voxel_size), (1,) * len(shape))]
    while max(levels[-1].shape[n_lead:]) > LONGEST_LEFT:
        lengths, size = levels[-1].shape[n_lead:], levels[-1].voxel_size
        able = [n >= SHORTEST_HALVED for n in lengths]
        finest = min(v for v, ok in zip(size, able, strict=True) if ok)
        window = [2 if ok and v < 2 * finest else 1 for v, ok in zip(size, able, strict=True)]
        factors = (1,) * n_lead + tuple(window)
        levels.append(
            PyramidLevel(
                tuple(-(-n // f) for n, f in zip(levels[-1].shape, factors, strict=True)),
                tuple(v * f for v, f in zip(size, window, strict=True)),
                factors,
            )
        )
    return levels


def create_image(
    path: str | os.PathLike[str],
    *,
    axes: str,
    shape: Sequence[int],
    n_channels: int | None = None,
    dtype: str,
    chunk: Sequence[int],
    shard: Sequence[int] | None = None,
    voxel_size: Sequence[float],
    translation: Sequence[float] | None = None,
    unit: str | None = "micrometer",
    n_levels: int | None = None,
    channel_names: Sequence[str] | None = None,
    channel_colors: Sequence[str] | None = None,
    attributes: Json | None = None,
    label: bool = False,
    n_colors: int = 0,
    fill_value: float = 0,
    overwrite: bool = False,
) -> tuple[Volume, ...]:
    """Create an empty OME-Zarr 0.5 image and return its levels, finest first.

    Parameters
    ----------
    axes : str
        Stored order, which NGFF fixes: t, c, z, y, x as far as there.
    shape, chunk, shard : sequence of int
        Per grid axis (all but c); chunk and shard are those of every level.
    voxel_size, translation : sequence of float
        Per spatial axis, in `unit`.
    n_levels : int, optional
        At most so many levels; absent: as many as `level_shapes` plans.
    channel_names, channel_colors : sequence of str, optional
        For viewers; colours are six hexadecimal digits.
    attributes : dict, optional
        More attributes, beside ``ome``.
    label : bool
        Whether it is a label image, inside ``labels/`` of another.
    n_colors : int
        Colours for the labels 0 (transparent) to ``n_colors - 1``; 0 leaves colours to the viewer, as
        suits object ids: one that knows a colour for some hides the others.
    """
    if axes != "".join(a for a in AXES if a in axes) or not axes.endswith("yx"):
        raise InputError(f"an OME image is stored in the order t, c, z, y, x, got '{axes}'; reorder it")
    path = stores.normalise(path)
    spatial = "".join(a for a in axes if a in SPATIAL_AXES)
    plan = level_shapes(shape, voxel_size, spatial)[:n_levels]
    origins = _origins(plan, translation or [0.0] * len(spatial))
    ome: Json = {"version": VERSION, "multiscales": [_multiscale(axes, plan, origins, unit, label)]}
    if label:
        ome["image-label"] = {"source": {"image": "../../"}, **_label_colors(n_colors)}
    if channel_names is not None:
        ome["omero"] = _omero(channel_names, channel_colors, dtype)
    create_group(path, {**(attributes or {}), "ome": ome}, overwrite=overwrite)
    return tuple(
        create_array(
            stores.join(path, str(number)),
            axes=axes,
            shape=level.shape,
            n_channels=n_channels,
            dtype=dtype,
            chunk=chunk,
            shard=shard,
            fill_value=fill_value,
        )
        for number, level in enumerate(plan)
    )


# Okabe and Ito: told apart by colour-blind eyes too.
_PALETTE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))


def _label_colors(n: int) -> Json:
    if n == 0:
        return {}
    rgba = [[0, 0, 0, 0], *([*_PALETTE[k % len(_PALETTE)], 255] for k in range(n - 1))]
    return {"colors": [{"label-value": value, "rgba": color} for value, color in enumerate(rgba)]}


def create_group(
    path: str | os.PathLike[str], attributes: Json | None = None, overwrite: bool = False
) -> None:
    """Create a Zarr v3 group."""
    path = stores.normalise(path)
    folders.clear(path, overwrite=overwrite)
    stores.write_document(path, "zarr.json", _group_document(attributes or {}))


def create_labels_group(image_path: str | os.PathLike[str], names: Sequence[str]) -> None:
    """Create (or write anew) the group ``labels`` of an image, which lists its label images."""
    ome = {"version": VERSION, "labels": list(names)}
    document = _group_document({"ome": ome})
    stores.write_document(stores.join(stores.normalise(image_path), "labels"), "zarr.json", document)


def get_attributes(path: str | os.PathLike[str]) -> Json:
    """Return the attributes of a Zarr node."""
    return dict(stores.read_node(stores.normalise(path)).attributes)


def set_attributes(path: str | os.PathLike[str], attributes: Json) -> None:
    """Set attributes of a Zarr v3 node; those of other names stay."""
    node = stores.read_node(stores.normalise(path))
    if node.zarr_format != 3:
        raise InputError(f"attributes are written to Zarr v3 only, got '{path}'; convert it")
    document = {**node.metadata, "attributes": {**node.attributes, **attributes}}
    stores.write_document(node.path, "zarr.json", document)


def _group_document(attributes: Json) -> Json:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _origins(plan: Sequence[PyramidLevel], translation: Sequence[float]) -> list[tuple[float, ...]]:
    """Return the position of each level's first voxel: the centre of the voxels that it pools."""
    origins = [tuple(float(t) for t in translation)]
    for above, level in pairwise(plan):
        window = level.factors[len(level.factors) - len(level.voxel_size) :]
        steps = zip(origins[-1], above.voxel_size, window, strict=True)
        origins.append(tuple(t + (f - 1) / 2 * v for t, v, f in steps))
    return origins


def _multiscale(
    axes: str,
    plan: Sequence[PyramidLevel],
    origins: Sequence[Sequence[float]],
    unit: str | None,
    label: bool,
) -> Json:
    entries: list[Json] = [{"name": a, "type": _TYPES[a]} for a in axes]
    for entry in entries:
        if entry["type"] == "space" and unit is not None:
            entry["unit"] = unit
    method = "mode" if label else "mean"
    return {
        "name": "labels" if label else "image",
        "axes": entries,
        "datasets": [
            _dataset(axes, number, level, origin)
            for number, (level, origin) in enumerate(zip(plan, origins, strict=True))
        ],
        "type": method,
        "metadata": {"method": f"unetflow {method} of the voxels below"},
    }


def _dataset(axes: str, number: int, level: PyramidLevel, origin: Sequence[float]) -> Json:
    spatial = [a for a in axes if a in SPATIAL_AXES]
    scale = dict(zip(spatial, level.voxel_size, strict=True))
    position = dict(zip(spatial, origin, strict=True))
    return {
        "path": str(number),
        "coordinateTransformations": [
            {"type": "scale", "scale": [scale.get(a, 1.0) for a in axes]},
            {"type": "translation", "translation": [position.get(a, 0.0) for a in axes]},
        ],
    }


def _omero(names: Sequence[str], colors: Sequence[str] | None, dtype: str) -> Json:
    kind = np.dtype(dtype)
    high = float(np.iinfo(kind).max) if kind.kind in "iu" else 1.0
    window = {"start": 0.0, "min": 0.0, "end": high, "max": high}
    colors = colors or [_COLORS[i % len(_COLORS)] for i in range(len(names))]
    return {
        "channels": [
            {"label": name, "color": color, "window": window, "active": True}
            for name, color in zip(names, colors, strict=True)
        ]
    }
