"""Find the array that a user's path stands for, and say what its axes are.

A path may name an array, an OME image, a level of one, or a group that holds images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from unetflow.errors import InputError
from unetflow.storage import multiscales
from unetflow.storage import store as stores
from unetflow.storage.array import array_of
from unetflow.storage.multiscales import AXES, Image
from unetflow.storage.store import Json, Node

GRID_AXES = "tzyx"
SPATIAL_AXES = "zyx"
_DEFAULT_AXES = {1: "x", 2: "yx", 3: "zyx"}


@dataclass(frozen=True)
class Source:
    """An array and what is known of it; scale and translation are per stored axis."""

    path: str
    array: zarr.Array[Any]
    axes: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    unit: str | None
    image_path: str
    level: int


@dataclass(frozen=True)
class AxesWish:
    """What a caller says of the axes: ``given`` wins over metadata, ``default`` stands in for them."""

    given: str | None = None
    default: str | None = None

    def default_for(self, ndim: int) -> str | None:
        """Return the default where it names as many axes as the array has."""
        return self.default if self.default is not None and len(self.default) == ndim else None


def find_source(path: str, axes: AxesWish, level: int) -> Source:
    """Return the one array that a normalised path stands for."""
    node = stores.read_node(path)
    if node.kind == "array" or multiscales.is_image(node):
        return _source(node, axes, level)
    _refuse_plate(node)
    images = _images_in(node)
    if len(images) == 1:
        return _source(images[0], axes, level)
    if images:
        names = ", ".join(_name(n) for n in images[:8])
        raise InputError(f"one image is wanted, got the group '{path}' with {len(images)}: {names}; name one")
    raise InputError(_no_image(path))


def find_sources(path: str, axes: AxesWish, level: int) -> dict[str, Source]:
    """Return the arrays of a collection by name; "" is the name of a single image."""
    node = stores.read_node(path)
    if node.kind == "array" or multiscales.is_image(node):
        return {"": _source(node, axes, level)}
    _refuse_plate(node)
    images = _images_in(node)
    if not images:
        raise InputError(_no_image(path))
    if len(images) == 1:
        return {"": _source(images[0], axes, level)}
    return {_name(image): _source(image, axes, level) for image in images}


def _source(node: Node, axes: AxesWish, level: int) -> Source:
    return _from_array(node, axes, level) if node.kind == "array" else _from_image(node, axes, level)


def _from_image(node: Node, axes: AxesWish, level: int) -> Source:
    image = multiscales.parse_image(node)
    if not 0 <= level < len(image.levels):
        raise InputError(
            f"level must be one of the image's {len(image.levels)} levels "
            f"0 to {len(image.levels) - 1}, got {level} for '{node.path}'"
        )
    child = stores.read_node(stores.join(node.path, image.levels[level].name))
    if child.kind != "array":
        raise InputError(f"a level of an OME image must be an array, got the group '{child.path}'")
    return _level(child, node.path, image, axes, level)


def _from_array(node: Node, axes: AxesWish, level: int) -> Source:
    """Describe an array; as a level of an image where it is one."""
    if level:
        raise InputError(f"level {level} needs an OME image, got the array '{node.path}'; name the image")
    for group, name in _above(node.path):
        image_node = stores.find_node(group)
        if image_node is not None and multiscales.is_image(image_node):
            image = multiscales.parse_image(image_node)
            names = [found.name for found in image.levels]
            if name in names:
                return _level(node, group, image, axes, names.index(name))
    array = array_of(node, stores.open_store(node.path))
    letters = axes.given or _named_axes(node) or axes.default_for(array.ndim) or _default_axes(node, array)
    letters = _check_axes(node, array, letters)
    scale, translation, unit = _place(node, letters)
    return Source(node.path, _check_array(node, array), letters, scale, translation, unit, node.path, 0)


def _level(node: Node, group: str, image: Image, axes: AxesWish, level: int) -> Source:
    array = array_of(node, stores.open_store(node.path))
    found = image.axes or _named_axes(node) or (AXES if array.ndim == 5 else None)
    letters = axes.given or found or axes.default_for(array.ndim) or _default_axes(node, array)
    letters = _check_axes(node, array, letters)
    scale, translation = image.levels[level].scale, image.levels[level].translation
    if not scale:
        scale, translation = (1.0,) * len(letters), (0.0,) * len(letters)
    if len(scale) != len(letters):
        raise InputError(
            f"an OME image needs as many axes as its arrays, got {len(scale)} for '{node.path}' "
            f"with {len(letters)}; its metadata are damaged"
        )
    return Source(node.path, _check_array(node, array), letters, scale, translation, image.unit, group, level)


def place_attributes(
    voxel_size: Sequence[float], translation: Sequence[float] | None, unit: str | None
) -> Json:
    """Return attributes that keep voxel size and position (per spatial axis) of an array of its own."""
    return {
        "voxel_size": [float(v) for v in voxel_size],
        "translation": [float(t) for t in translation or [0.0] * len(voxel_size)],
        "unit": unit,
    }


def _place(node: Node, axes: str) -> tuple[tuple[float, ...], tuple[float, ...], str | None]:
    """Return scale, translation (per stored axis) and unit from an array's own attributes."""
    spatial = [a for a in SPATIAL_AXES if a in axes]
    known = node.attributes
    try:
        scale = dict(zip(spatial, map(float, known["voxel_size"]), strict=True))
        shift = dict(zip(spatial, map(float, known["translation"]), strict=True))
    except (KeyError, TypeError, ValueError):  # none, or attributes of other software
        return (1.0,) * len(axes), (0.0,) * len(axes), None
    return (
        tuple(scale.get(a, 1.0) for a in axes),
        tuple(shift.get(a, 0.0) for a in axes),
        known.get("unit"),
    )


def _above(path: str) -> list[tuple[str, str]]:
    """Return the two groups above an array, each with the array's name as seen from there."""
    first = stores.parent(path)
    second = stores.parent(first)
    return [(group, path[len(group) :].strip("/")) for group in (first, second) if group != path]


def _images_in(node: Node) -> list[Node]:
    """Return the images and arrays right below a group, sorted by name; labels are no images."""
    names = [n for n in stores.list_names(node.path) if n != "labels"]
    children = [stores.find_node(stores.join(node.path, name)) for name in names]
    return [n for n in children if n is not None and (n.kind == "array" or multiscales.is_image(n))]


def _name(node: Node) -> str:
    return node.path.rpartition("/")[2]


def _refuse_plate(node: Node) -> None:
    example = multiscales.plate_image(node)
    if example:
        raise InputError(
            f"an image is wanted, got the plate '{node.path}'; name an image in it, for instance "
            f"'{stores.join(node.path, example)}'"
        )


def _no_image(path: str) -> str:
    inside = stores.list_names(path)
    labels = stores.list_names(stores.join(path, "labels")) if "labels" in inside else []
    names = [f"labels/{name}" for name in labels] or inside[:8]
    cure = f"inside it there is {', '.join(names)}" if names else "it is empty"
    return (
        f"a volume must be a Zarr array or an OME-Zarr image, got the group '{path}' that is neither; {cure}"
    )


def _check_array(node: Node, array: zarr.Array[Any]) -> zarr.Array[Any]:
    if np.dtype(array.dtype).kind not in "buif":
        raise InputError(
            f"voxels must be integers, floats or booleans, got {array.dtype} in '{node.path}'; convert them"
        )
    if 0 in array.shape:
        raise InputError(f"a volume must hold a voxel, got the shape {array.shape} of '{node.path}'")
    return array


def _check_axes(node: Node, array: zarr.Array[Any], axes: str) -> str:
    if len(axes) != array.ndim or not set(axes) <= set(AXES) or len(set(axes)) < len(axes) or "x" not in axes:
        raise InputError(
            f"axes must name each of the {array.ndim} axes of shape {array.shape} once with the "
            f"letters t, c, z, y, x, got '{axes}' for '{node.path}'; give for instance "
            f"--axes {_suggest(array.ndim)}"
        )
    return axes


def _named_axes(node: Node) -> str | None:
    """Return the axes that the array's own dimension names give (Zarr v3, or xarray's for v2)."""
    names: Sequence[object] | None = node.metadata.get("dimension_names")
    names = names or node.attributes.get("_ARRAY_DIMENSIONS")
    letters = [str(name).lower() for name in names or []]
    if letters and set(letters) <= set(AXES) and len(set(letters)) == len(letters) and "x" in letters:
        return "".join(letters)
    return None


def _default_axes(node: Node, array: zarr.Array[Any]) -> str:
    if array.ndim not in _DEFAULT_AXES:
        raise InputError(
            f"axes must be told for {array.ndim} dimensions without metadata, got shape {array.shape} "
            f"of '{node.path}'; give for instance --axes {_suggest(array.ndim)}"
        )
    return _DEFAULT_AXES[array.ndim]


def _suggest(ndim: int) -> str:
    return {1: "x", 2: "yx", 3: "zyx", 4: "czyx"}.get(ndim, AXES)
