"""Convert foreign files or Zarr arrays to OME-Zarr 0.5, block by block.

::

    read box of SOURCE -> write whole shards of TARGET/0      pass write
    TARGET/0 -> TARGET/1 -> ...                               a pass a level
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unetflow.errors import InputError
from unetflow.geometry import Block, BlockGrid, Box, Shape
from unetflow.stages.layout import choose_layout, on_grid
from unetflow.stages.pieces import Pieces
from unetflow.stages.sources import open_source

if TYPE_CHECKING:
    from unetflow.stages.sources import Readable
    from unetflow.stages.work import Report, Work
    from unetflow.storage.volume import Volume

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


@dataclass(frozen=True)
class ConvertBlock:
    """Copy one block from the source to level 0 of its image."""

    images: tuple[Readable, ...]
    targets: tuple[Volume, ...]
    pieces: Pieces

    def __call__(self, block: Block) -> Report:
        """Read, cast (bool to uint8), write whole shards."""
        index, here = self.pieces.locate(block.number)
        voxels = self.images[index].read(here.inner)
        self.targets[index].write(here.inner, voxels.astype(self.targets[index].dtype, copy=False))
        return {}


def convert(
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
    client: Any = None,
    progress: Any = None,
    should_stop: Callable[[], bool] | None = None,
    deadline: float | None = None,
    plan_only: bool = False,
) -> Report:
    """Convert ``source`` to the OME-Zarr 0.5 image (or group of images) ``target``.

    Parameters
    ----------
    source : str
        A file, a folder or a glob of TIFF, PNG, JPEG or `.npy` files, or anything Zarr.
    target : str
        A new local folder, or one that the same command began.
    axes : str, optional
        Axes as stored in the source, letters of ``tczyx``. Several files of one shape are
        stacked along the axis that they lack; without ``axes`` 2-D files become ``zyx`` and
        3-D files ``tzyx``. A colour picture whose channels are equal may leave out the c.
    voxel_size : sequence of float, optional
        Micrometres for each spatial axis in the order z, y, x; absent: the metadata's, else 1.
    chunk, shard : sequence of int, optional
        Voxels for each spatial axis.
    as_labels : bool
        Write a label image: integers only, coarser levels by mode.
    collection : bool
        Keep files apart, as one image each under the files' names.
    level : int
        Level of a multiscale Zarr source.

    Returns
    -------
    dict
        target, images, shape, axes, voxel_size, blocks, blocks_skipped, retries,
        quarantined, seconds.
    """
    from unetflow.stages.work import Conditions, open_work

    planned = plan(
        source,
        target,
        axes=axes,
        voxel_size=voxel_size,
        chunk=chunk,
        shard=shard,
        as_labels=as_labels,
        collection=collection,
        level=level,
        overwrite=overwrite,
    )
    if plan_only:
        first = planned.images[0]
        layout = {"chunk": list(first.chunk), "shard": list(first.shard), "block": list(first.block)}
        return {**planned.summary(), "blocks": len(planned.pieces), **layout}
    conditions = Conditions(client, progress, should_stop, deadline)
    # The same command tries again what failed: a damaged file may have been replaced.
    with open_work(
        STAGE, target, planned.fingerprint, conditions, overwrite=overwrite, retry_failed=True
    ) as work:
        _run(planned, work)
        return {**planned.summary(), **work.totals()}


def _run(planned: Plan, work: Work) -> None:
    from unetflow.stages.pyramid import build_pyramids

    levels = _create(planned, work)
    pieces = planned.pieces
    task = ConvertBlock(
        tuple(image.image for image in planned.images), tuple(volumes[0] for volumes in levels), pieces
    )
    work.run_pass("write", task, pieces, must_be_whole=False)
    if not work.quarantined:  # a hole must not be pooled into coarser levels
        build_pyramids(work, levels, is_labels=planned.as_labels)


def _create(planned: Plan, work: Work) -> list[tuple[Volume, ...]]:
    """Create the empty images, or open those that an earlier start created."""
    from unetflow.storage.ngff import create_group
    from unetflow.storage.volume import open_volume

    paths = [str(Path(planned.target, image.name)) for image in planned.images]
    depth = work.ledger.value("levels")
    if depth is not None:
        return [
            tuple(open_volume(path, level=n) for n in range(count))
            for path, count in zip(paths, depth, strict=True)
        ]
    if planned.is_collection:
        create_group(planned.target, {"unetflow": _provenance(planned)}, overwrite=True)
    levels = [
        _create_image(planned, image, path) for image, path in zip(planned.images, paths, strict=True)
    ]
    work.ledger.set_value("levels", [len(volumes) for volumes in levels])
    return levels


def _create_image(planned: Plan, image: ImagePlan, path: str) -> tuple[Volume, ...]:
    from unetflow.storage.ngff import create_image, get_attributes, set_attributes

    volumes = create_image(
        path,
        axes=image.axes,
        shape=image.image.shape,
        n_channels=image.image.n_channels if image.image.has_channels else None,
        dtype="uint8" if image.image.dtype == "bool" else image.image.dtype,
        chunk=image.chunk,
        shard=image.shard,
        voxel_size=image.image.voxel_size,
        translation=image.translation,
        unit=image.unit,
        attributes={"unetflow": _provenance(planned)},
        label=planned.as_labels,
        overwrite=True,
    )
    if planned.as_labels:  # labels that stand alone have no source image beside them
        set_attributes(path, {"ome": {**get_attributes(path)["ome"], "image-label": {}}})
    return volumes


def _provenance(planned: Plan) -> Report:
    from unetflow import __version__

    return {
        "stage": STAGE,
        "version": __version__,
        "source": Path(planned.source).name,
        "digest": planned.fingerprint["source"]["digest"],
    }


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
    """Refuse a target that holds its source, or lies in a Zarr source."""
    if "://" in source:
        return
    here, there = Path(source).resolve(), Path(target).resolve()
    is_zarr = any(Path(here, name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))
    if here.is_relative_to(there) or (is_zarr and there.is_relative_to(here)):
        raise InputError(f"a target must lie outside its source, got {source} and {target}; name another")
