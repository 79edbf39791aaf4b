"""Plan a conversion: what is read, how it is stored, how it is cut; every refusal happens here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unetflow.errors import InputError
from unetflow.geometry import BlockGrid, Box, Shape
from unetflow.stages.layout import choose_layout, on_grid
from unetflow.stages.pieces import Pieces
from unetflow.stages.sources import open_source

if TYPE_CHECKING:
    from unetflow.stages.sources import Readable
    from unetflow.stages.work import Report

STAGE = "convert"
LARGE_PLANE = 2**22  # voxels; larger planes that are decoded whole are stored in flat shards
FLAT_CHUNK, FLAT_SHARD = (16, 128, 128), (16, 1024, 1024)
BLOCK_BYTES = 2**28


@dataclass(frozen=True)
class ImagePlan:
    """One image: where it is read, how it is stored, how it is cut into blocks."""

    name: str
    image: Readable
    axes: str
    unit: str | None
    translation: tuple[float, ...]
    chunk: Shape
    shard: Shape
    block: Shape

    @property
    def grid(self) -> BlockGrid:
        """The blocks of level 0; each owns whole shards."""
        return BlockGrid(Box.of_shape(self.image.shape), self.block)


@dataclass(frozen=True)
class Plan:
    """A whole conversion."""

    source: str
    target: str
    images: tuple[ImagePlan, ...]
    is_collection: bool
    as_labels: bool
    fingerprint: dict[str, Any]

    @property
    def pieces(self) -> Pieces:
        """All blocks of level 0, numbered through."""
        return Pieces(tuple(image.grid for image in self.images))

    def summary(self) -> Report:
        """Return what ``--json`` tells of the images."""
        first = self.images[0]
        return {
            "target": self.target,
            "images": [image.name for image in self.images] if self.is_collection else 1,
            "shape": list(first.image.shape),
            "axes": first.axes,
            "voxel_size": list(first.image.voxel_size),
        }


def plan(
    source: str,
    target: str,
    *,
    axes: str | None = None,
    voxel_size: Sequence[float] | None = None,
    chunk: Sequence[int] | None = None,
    shard: Sequence[int] | None = None,
    as_labels: bool = False,
    collection: bool = False,
    level: int = 0,
    overwrite: bool = False,
) -> Plan:
    """Work out what `convert` will do; nothing is written.

    Raises
    ------
    InputError
        For everything that `convert` refuses.
    """
    from unetflow.stages.work import refuse_foreign

    _refuse_overlap(source, target)
    refuse_foreign(target, STAGE, overwrite=overwrite)
    images, digest = open_source(
        source, axes=axes, voxel_size=voxel_size, as_labels=as_labels, collection=collection, level=level
    )
    if as_labels:
        for image in images.values():
            if np.dtype(image.dtype).kind not in "iub":
                raise InputError(
                    f"labels must be integers, got {image.dtype} in {source}; save them as integers, "
                    "or convert without --as-labels"
                )
    plans = tuple(_plan_image(name, image, voxel_size, chunk, shard) for name, image in images.items())
    fingerprint = {
        "source": {"digest": digest, "level": level},
        "axes": axes,
        "voxel_size": None if voxel_size is None else [float(v) for v in voxel_size],
        "chunk": None if chunk is None else list(chunk),
        "shard": None if shard is None else list(shard),
        "as_labels": as_labels,
        "collection": collection,
        "layout": [list(plans[0].chunk), list(plans[0].shard), list(plans[0].block)],
    }
    return Plan(str(source), str(target), plans, list(images) != [""], as_labels, fingerprint)


def _plan_image(
    name: str,
    image: Readable,
    voxel_size: Sequence[float] | None,
    chunk: Sequence[int] | None,
    shard: Sequence[int] | None,
) -> ImagePlan:
    from unetflow.formats import Oriented

    if not set("yx") <= set(image.axes):
        raise InputError(f"an image needs the axes y and x, got {image.axes}; give --axes")
    axes = "".join(letter for letter in "tczyx" if letter in image.axes)
    dims = len(image.voxel_size)
    given = on_grid(chunk, image.grid_axes, "chunk"), on_grid(shard, image.grid_axes, "shard")
    is_planewise = isinstance(image, Oriented) and image.source.is_planewise
    if given == (None, None) and is_planewise and dims == 3 and math.prod(image.shape[-2:]) > LARGE_PLANE:
        lead = (1,) * (len(image.shape) - dims)
        given = lead + FLAT_CHUNK, lead + FLAT_SHARD
    chunk_shape, shard_shape = choose_layout(image.shape, dims, *given)
    block = _widen(shard_shape, image) if is_planewise else shard_shape
    known = voxel_size is not None or (isinstance(image, Oriented) and image.source.voxel_size is not None)
    unit = "micrometer" if known else getattr(image, "unit", None)
    translation = getattr(image, "translation", (0.0,) * dims)
    return ImagePlan(name, image, axes, unit, translation, chunk_shape, shard_shape, block)


def _widen(shard: Shape, image: Readable) -> Shape:
    """Widen a block along x, then y, while it fits memory: whole planes are decoded anyway."""
    block = list(shard)
    voxel = np.dtype(image.dtype).itemsize * image.n_channels
    for axis in (-1, -2):
        room = BLOCK_BYTES // (math.prod(block) * voxel)
        needed = -(-image.shape[axis] // shard[axis])
        block[axis] = shard[axis] * max(1, min(room, needed))
    return tuple(block)


def _refuse_overlap(source: str, target: str) -> None:
    """Refuse a target that holds its source, or lies in a Zarr or N5 source."""
    from unetflow.formats import split_source

    if "://" in source or "://" in target:
        if f"{target.rstrip('/')}/".startswith(f"{source.rstrip('/')}/") or f"{source}/".startswith(
            f"{target.rstrip('/')}/"
        ):
            raise InputError(f"a target must lie outside its source, got {source} and {target}; name another")
        return
    here, there = Path(split_source(source)[0]).resolve(), Path(target).resolve()
    markers = ("zarr.json", ".zarray", ".zgroup", "attributes.json")
    is_store = here.suffix.lower() == ".n5" or any(Path(here, name).exists() for name in markers)
    if here.is_relative_to(there) or (is_store and there.is_relative_to(here)):
        raise InputError(f"a target must lie outside its source, got {source} and {target}; name another")
