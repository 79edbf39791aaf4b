"""Write a synthetic tissue volume and its cells' numbers, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unetflow.errors import InputError
from unetflow.geometry import Block, BlockGrid, Box, Shape
from unetflow.stages.layout import choose_layout, on_grid

if TYPE_CHECKING:
    from unetflow.stages.work import Conditions, Report, Work
    from unetflow.storage.volume import Volume

STAGE = "synthetic"


@dataclass(frozen=True)
class Tissue:
    """The numbers that a synthetic volume follows from; lengths in voxels of the finest axis."""

    shape: Shape
    seed: int
    voxel_size: tuple[float, ...]
    cell_size: float
    gap: float
    noise: float


def plan(
    shape: Sequence[int], chunk: Sequence[int] | None, shard: Sequence[int] | None
) -> tuple[Shape, Shape]:
    """Return chunk and shard of a volume ``([Z, ]Y, X)``.

    Raises
    ------
    InputError
        If the shape is none of an image or a volume, or the shard no multiple of the chunk.
    """
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise InputError(f"a synthetic volume has the axes yx or zyx, got the shape {tuple(shape)}")
    grid_axes = "zyx"[-len(shape) :]
    given = on_grid(chunk, grid_axes, "chunk"), on_grid(shard, grid_axes, "shard")
    return choose_layout(tuple(shape), len(shape), *given)


@dataclass(frozen=True)
class TissueBlock:
    """Make one block of the volume and write it."""

    tissue: Tissue
    raw: Volume
    labels: Volume

    def __call__(self, block: Block) -> Report:
        """Compute, write raw and ids."""
        from unetflow.numerics.tissue import tissue

        numbers = self.tissue
        raw, ids = tissue(
            block.inner,
            numbers.shape,
            seed=numbers.seed,
            cell_size=numbers.cell_size,
            voxel_size=numbers.voxel_size,
            gap=numbers.gap,
            noise=numbers.noise,
        )
        self.raw.write(block.inner, raw)
        self.labels.write(block.inner, ids)
        return {}


def make_tissue(
    path_raw: str,
    path_labels: str,
    shape: Sequence[int],
    *,
    seed: int = 0,
    voxel_size: Sequence[float] | None = None,
    cell_size: float = 24.0,
    gap: float = 0.12,
    noise: float = 9.0,
    chunk: Sequence[int] | None = None,
    shard: Sequence[int] | None = None,
    overwrite: bool = False,
    client: Any = None,
    progress: Any = None,
    conditions: Conditions | None = None,
) -> Report:
    """Make a synthetic tissue volume: cells that touch, membranes, gaps, uneven light, noise.

    The voxels follow from the numbers alone, not from chunks, blocks or workers.

    Parameters
    ----------
    path_raw, path_labels : str
        New OME-Zarr images: uint8 grey values, and uint32 cell numbers that are unique over
        the volume.
    shape : sequence of int
        ``([Z, ]Y, X)`` in voxels.
    voxel_size : sequence of float, optional
        Micrometres per axis; absent: 1.
    cell_size : float
        Mean diameter of a cell, in voxels of the finest axis.
    gap : float
        Share of space without cells.
    noise : float
        Standard deviation of the noise, in grey values.

    client, progress, conditions : optional
        Where blocks run and who is told; ``conditions`` holds both, and when to stop.

    Returns
    -------
    dict
        raw, labels, shape, blocks, blocks_skipped, retries, quarantined, seconds.
    """
    from unetflow.stages.work import Conditions, open_work, refuse_foreign

    layout = plan(shape, chunk, shard)
    if voxel_size is not None and (len(voxel_size) != len(shape) or min(voxel_size) <= 0):
        raise InputError(f"a voxel size needs {len(shape)} lengths above 0, got {tuple(voxel_size)}")
    refuse_foreign(path_raw, STAGE, overwrite=overwrite)
    size = tuple(float(v) for v in voxel_size or [1.0] * len(shape))
    tissue = Tissue(tuple(int(n) for n in shape), seed, size, cell_size, gap, noise)
    fingerprint = {
        "tissue": [*tissue.shape, seed, *size, cell_size, gap, noise],
        "labels": path_labels,
        "layout": [list(lengths) for lengths in layout],
    }
    conditions = conditions or Conditions(client, progress)
    with open_work(STAGE, path_raw, fingerprint, conditions, overwrite=overwrite) as work:
        _run(work, tissue, path_raw, path_labels, layout, overwrite)
        return {"raw": str(path_raw), "labels": str(path_labels), "shape": list(shape), **work.totals()}


def _run(
    work: Work, tissue: Tissue, path_raw: str, path_labels: str, layout: tuple[Shape, Shape], overwrite: bool
) -> None:
    from unetflow.stages.pyramid import build_pyramids

    raw, labels = _create(work, tissue, path_raw, path_labels, layout, overwrite)
    blocks = BlockGrid(Box.of_shape(tissue.shape), layout[1])
    work.run_pass("make", TissueBlock(tissue, raw[0], labels[0]), blocks)
    build_pyramids(work, [raw], is_labels=False, name="pyramid-raw")
    build_pyramids(work, [labels], is_labels=True, name="pyramid-labels")


def _create(
    work: Work, tissue: Tissue, path_raw: str, path_labels: str, layout: tuple[Shape, Shape], overwrite: bool
) -> tuple[tuple[Volume, ...], tuple[Volume, ...]]:
    """Create both empty images, or open those that an earlier start created."""
    from unetflow.stages.pyramid import stand_alone
    from unetflow.storage.ngff import create_image
    from unetflow.storage.volume import open_volume

    n_levels = work.ledger.value("levels")
    if n_levels is not None:
        raw, labels = (
            tuple(open_volume(path, level=n) for n in range(n_levels)) for path in (path_raw, path_labels)
        )
        return raw, labels
    axes = "zyx"[-len(tissue.shape) :]
    chunk, shard = layout

    def create(path: str, dtype: str, label: bool, may_replace: bool) -> tuple[Volume, ...]:
        return create_image(
            path,
            axes=axes,
            shape=tissue.shape,
            dtype=dtype,
            chunk=chunk,
            shard=shard,
            voxel_size=tissue.voxel_size,
            attributes={"unetflow": {"stage": STAGE, "seed": tissue.seed}},
            label=label,
            overwrite=may_replace,
        )

    # The raw image's folder holds the ledger, so what else lies there is ours; the labels may not be.
    labels = create(path_labels, "uint32", True, overwrite or bool(work.ledger.value("began")))
    stand_alone(path_labels)
    work.ledger.set_value("began", True)
    raw = create(path_raw, "uint8", False, True)
    work.ledger.set_value("levels", len(raw))
    return raw, labels
