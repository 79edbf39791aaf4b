"""The table of objects: one pass measures them block by block, the driver adds up a range of ids at a time.

`objects.parquet` and `objects.csv` lie beside the image that the objects were found in, sorted by id;
counts and sizes stand in the attributes of the instances. All of it is the same for any cut into
blocks: parts are added as whole numbers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Block, BlockGrid
from unetflow.stages.gathering import Gatherer, bucket_length, buckets_of
from unetflow.stages.pieces import Pieces
from unetflow.stages.stored import stored_only
from unetflow.stages.tables import BUCKET, Rows

if TYPE_CHECKING:
    from unetflow.stages.work import Report, Work
    from unetflow.storage.volume import Volume

FILES = ("objects.parquet", "objects.csv")


@dataclass(frozen=True)
class Measured:
    """One image whose objects are measured.

    Parameters
    ----------
    instances : Volume
        Ids 1..N.
    probabilities : Volume or None
        As `segment` stored them.
    folder : str
        Path or URL of the folder that the table goes to.
    linked : tuple of bool
        Axes along which objects hang together; the border is the volume's along these.
    """

    instances: Volume
    probabilities: Volume | None
    folder: str
    linked: tuple[bool, ...]


@dataclass(frozen=True)
class MeasureBlock:
    """Measure the objects of one block."""

    images: tuple[Measured, ...]
    pieces: Pieces
    rows: Rows

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.measuring import fixed_probability, measure_objects

        index, here = self.pieces.locate(block.number)
        image = self.images[index]
        ids = image.instances.read(here.inner)[0]
        if not ids.any():
            return {"buckets": []}
        p = None if image.probabilities is None else fixed_probability(image.probabilities.read(here.inner))[0]
        found, columns = measure_objects(ids, here.inner, p)
        self.rows.write(block.number, np.concatenate([found[None], columns]))
        return {"buckets": buckets_of(found)}


def write_object_tables(work: Work, images: tuple[Measured, ...], counts: list[int], scratch: str) -> None:
    """Measure the objects of each image, and write tables and attributes."""
    from unetflow.numerics.measuring import n_columns
    from unetflow.storage.folders import put_file
    from unetflow.storage.ngff import get_attributes, set_attributes

    grids = [BlockGrid(i.instances.box, i.instances.shard or i.instances.chunk) for i in images]
    pieces = Pieces(tuple(grids))
    blocks = stored_only(pieces, [image.instances for image in images])
    longest = max(int(np.prod(grid.block_shape)) for grid in grids)
    rows = Rows.create(
        f"{scratch}/measured", len(pieces), 1 + n_columns(grids[0].domain.ndim), longest, keep=True
    )
    seen = Gatherer(rows)
    work.run_pass("measure-objects", MeasureBlock(images, pieces, rows), blocks, seen.add)
    for index, (image, n) in enumerate(zip(images, counts, strict=True)):
        span = range(pieces.first[index], pieces.first[index + 1])
        with tempfile.TemporaryDirectory() as folder:
            sizes = _write(Path(folder), image, _whole(seen, span, n, image.instances.ndim))
            for name in FILES:
                put_file(f"{image.folder.rstrip('/')}/{name}", Path(folder, name))
        path = image.instances.image_path
        set_attributes(path, {**get_attributes(path), "unetflow": {"objects": n, "sizes": sizes}})


def _whole(seen: Gatherer, span: range, n: int, ndim: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the measures of all objects by id, bucket by bucket."""
    from unetflow.numerics.measuring import add_measures, no_measures

    for bucket, (ids, columns) in enumerate(seen.buckets(span, n)):
        total = no_measures(bucket_length(bucket, n), ndim)
        add_measures(total, ids, columns, ndim)
        yield total


def _write(folder: Path, image: Measured, buckets: Iterator[npt.NDArray[np.int64]]) -> dict[str, list[int]]:
    """Write both files and return the histogram of sizes: objects of 1, 2 to 3, 4 to 7 ... voxels."""
    from unetflow.formats.table import TableFiles

    volume = image.instances
    counts = np.zeros(64, np.int64)
    unit = volume.unit or "micrometer"
    metadata = {"length_unit": unit, "axes": volume.grid_axes, "voxel_size": str(list(volume.voxel_size))}
    with TableFiles(folder / FILES[0], folder / FILES[1], _columns(volume), metadata) as files:
        for bucket, measures in enumerate(buckets):
            files.append(_rows(image, measures, 1 + bucket * BUCKET))
            counts += np.bincount(np.log2(measures[0]).astype(np.int64), minlength=64)[:64]
    n_bins = int(np.flatnonzero(counts).max(initial=-1)) + 1
    return {"from": [2**k for k in range(n_bins)], "objects": counts[:n_bins].tolist()}


def _columns(volume: Volume) -> dict[str, str]:
    axes = volume.grid_axes
    return {
        "id": "int64",
        "voxels": "int64",
        "volume": "float64",
        **{f"centroid_{a}": "float64" for a in axes},
        **{f"start_{a}": "int64" for a in axes},
        **{f"stop_{a}": "int64" for a in axes},
        "mean_probability": "float64",
        "touches_border": "bool",
    }


def _rows(image: Measured, measures: npt.NDArray[np.int64], first_id: int) -> dict[str, npt.NDArray[Any]]:
    """Turn measures into the columns of the table; lengths are physical, the box is in voxels."""
    volume, ndim = image.instances, image.instances.ndim
    voxels, sums, start, stop = np.split(measures[:-1], [1, 1 + ndim, 1 + 2 * ndim])
    lead = ndim - len(volume.spatial_axes)
    size = np.array((1.0,) * lead + volume.voxel_size)[:, None]
    origin = np.array((0.0,) * lead + volume.translation)[:, None]
    centroid = sums / voxels * size + origin
    ends = np.array(volume.shape)[:, None]
    linked = np.array(image.linked)
    touches = ((start == 0) | (stop == ends))[linked].any(axis=0)
    mean = np.full(voxels.shape[1], np.nan)
    if image.probabilities is not None:
        from unetflow.numerics.measuring import fixed_probability

        unit = fixed_probability(np.zeros((1, 1), image.probabilities.dtype))[1]
        mean = measures[-1] * unit / voxels[0]
    axes = volume.grid_axes
    return {
        "id": np.arange(first_id, first_id + voxels.shape[1]),
        "voxels": voxels[0],
        "volume": voxels[0] * float(np.prod(volume.voxel_size)),
        **{f"centroid_{a}": centroid[i] for i, a in enumerate(axes)},
        **{f"start_{a}": start[i] for i, a in enumerate(axes)},
        **{f"stop_{a}": stop[i] for i, a in enumerate(axes)},
        "mean_probability": mean,
        "touches_border": touches,
    }
