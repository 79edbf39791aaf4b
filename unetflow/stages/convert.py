"""Convert foreign files or Zarr arrays to OME-Zarr 0.5, block by block.

::

    read box of SOURCE -> write whole shards of TARGET/0      pass write
    a few boxes of SOURCE = those of TARGET/0 ?               pass compare
    TARGET/0 -> TARGET/1 -> ...                               a pass a level
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from unetflow.geometry import Block
from unetflow.stages.convert_check import CompareBlock, choose_blocks, fail_where_different
from unetflow.stages.convert_plan import STAGE, ImagePlan, Plan, plan
from unetflow.stages.pieces import Pieces
from unetflow.stages.results import ConvertResult

if TYPE_CHECKING:
    from unetflow.stages.sources import Readable
    from unetflow.stages.work import Conditions, Report, Work
    from unetflow.storage.volume import Volume



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
    conditions: Conditions | None = None,
    plan_only: bool = False,
) -> ConvertResult:
    """Convert ``source`` to the OME-Zarr 0.5 image (or group of images) ``target``.

    Parameters
    ----------
    source : str
        A file, a folder or a glob of TIFF, PNG, JPEG or `.npy` files, a dataset of an HDF5 file or
        an N5 folder (``file.h5:/raw``, ``scan.n5:/s0``; the path may be left out where there is one), or
        anything Zarr.
    target : str
        A new folder or URL, or one that the same command began.
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
    overwrite : bool
        Start anew, whatever an earlier run left.
    client, progress, conditions : optional
        Where blocks run and who is told; ``conditions`` holds both, and when to stop.
    plan_only : bool
        Say what would be done, and do nothing.

    Returns
    -------
    ConvertResult
        target, images, shape, axes, voxel_size, blocks_compared (random blocks that were read again
        from both sides and were equal), blocks, blocks_skipped, retries, quarantined, seconds.

    Raises
    ------
    InputError
        For what `plan` refuses.
    StageError
        If a random block that is read again is not what the source holds.
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
        return cast(ConvertResult, {**planned.summary(), "blocks": len(planned.pieces), **layout})
    conditions = conditions or Conditions(client, progress)
    # The same command tries again what failed: the disk may have come back.
    with open_work(
        STAGE, target, planned.fingerprint, conditions, overwrite=overwrite, retry_failed=True
    ) as work:
        n_compared = _run(planned, work)
        return cast(ConvertResult, {**planned.summary(), "blocks_compared": n_compared, **work.totals()})


def _run(planned: Plan, work: Work) -> int:
    """Run all passes, and return how many blocks were compared with the source."""
    from unetflow.stages.pyramid import build_pyramids
    from unetflow.stages.work import digest_of

    levels = _create(planned, work)
    pieces = planned.pieces
    images, targets = tuple(image.image for image in planned.images), tuple(volumes[0] for volumes in levels)
    work.run_pass("write", ConvertBlock(images, targets, pieces), pieces, must_be_whole=False)
    if work.quarantined:  # a hole must not be pooled into coarser levels
        return 0
    seed = int(digest_of(planned.fingerprint)[:8], 16)
    found: dict[int, Report] = {}
    task = CompareBlock(images, targets, pieces, seed)
    work.run_pass("compare", task, choose_blocks(pieces, seed), found.__setitem__)
    fail_where_different(found, planned.source, targets)
    build_pyramids(work, levels, is_labels=planned.as_labels)
    return len(found)


def _create(planned: Plan, work: Work) -> list[tuple[Volume, ...]]:
    """Create the empty images, or open those that an earlier start created."""
    from unetflow.storage.ngff import create_group
    from unetflow.storage.store import join
    from unetflow.storage.volume import open_volume

    paths = [join(planned.target, image.name) if image.name else planned.target for image in planned.images]
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
    from unetflow.stages.pyramid import stand_alone
    from unetflow.storage.ngff import create_image

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
    if planned.as_labels:
        stand_alone(path)
    return volumes


def _provenance(planned: Plan) -> Report:
    from unetflow import __version__

    return {
        "stage": STAGE,
        "version": __version__,
        "source": _name_of(planned.source),
        "digest": planned.fingerprint["source"]["digest"],
    }


def _name_of(source: str) -> str:
    """Return the name of a source without its folder, with the dataset that was named."""
    from unetflow.formats import split_source

    file, dataset = split_source(source)
    return Path(file).name + (f":{dataset}" if dataset else "")
