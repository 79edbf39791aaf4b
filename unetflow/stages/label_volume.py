"""Label the connected components of any volume: the passes of `segment`, of use alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError
from unetflow.geometry import BlockGrid, Box, Shape
from unetflow.stages.components import Labelling, is_foreground, label_volumes
from unetflow.stages.holes import fill_holes as fill
from unetflow.stages.in_memory import Source, as_path
from unetflow.stages.layout import choose_layout, linked_axes
from unetflow.stages.pieces import Pieces
from unetflow.stages.results import LabelResult
from unetflow.stages.stored import stored_only
from unetflow.stages.work import Conditions, Work, open_work, private_place, refuse_foreign

if TYPE_CHECKING:
    from unetflow.storage.volume import Volume


Layout = tuple[Shape, Shape]


def label_volume(
    source: Source,
    out: str | os.PathLike[str] | None = None,
    *,
    threshold: float = 0,
    connectivity: str = "face",
    dims: int | None = None,
    link: bool = False,
    min_size: int = 0,
    fill_holes: bool | int = False,
    axes: str | None = None,
    chunk: Sequence[int] | None = None,
    shard: Sequence[int] | None = None,
    client: Any = None,
    conditions: Conditions | None = None,
    overwrite: bool = False,
) -> Any:
    """Label the connected components of an array or a volume of any size.

    Objects are numbered 1..N by their first voxel in C order: the labels of
    `scipy.ndimage.label` up to their numbers, for any chunks and any number of workers.

    Parameters
    ----------
    source : array, path or URL
        An array ``([T, ][Z, ]Y, X)``, or anything Zarr with one channel.
    out : path or URL, optional
        Where the labels go, a Zarr array; needed for a path. An array is labelled in memory without it.
    threshold : float
        Foreground is what lies above.
    connectivity : {"face", "full"}
        Whether neighbours share a face, or an edge or a corner will do.
    dims : {2, 3}, optional
        2 labels a stack plane by plane; absent: all axes of space belong together.
    link : bool
        With ``dims = 2``: planes and times belong together after all.
    min_size : int
        Objects with fewer voxels are dropped.
    fill_holes : bool or int
        Fill what objects enclose: all, or holes of at most so many voxels.
    axes : str, optional
        Letters of ``tzyx``, where metadata have none.
    chunk, shard : sequence of int, optional
        Of the labels, per axis; a block is a shard.
    client : distributed.Client, optional
        Where blocks run; None is a plain loop.
    conditions : Conditions, optional
        Client, progress, and when to stop, in one record.
    overwrite : bool
        Start anew, whatever an earlier run left.

    Returns
    -------
    ndarray of uint32 or LabelResult
        The labels of an array; else where the labels of a volume are, how many objects there are, and the
        totals of the blocks.

    Raises
    ------
    InputError
        If something is wrong with the source or the target; nothing is written before.

    Examples
    --------
    >>> label_volume(np.array([[1, 0, 1], [1, 0, 1]]))
    array([[1, 0, 2],
           [1, 0, 2]], dtype=uint32)
    """
    if connectivity not in ("face", "full"):
        raise InputError(f"connectivity must be face or full, got '{connectivity}'; use face")
    wanted = Wanted(threshold, connectivity, dims, link, min_size, fill_holes, _whole(chunk), _whole(shard))
    conditions = conditions or Conditions(client)
    if isinstance(source, str | os.PathLike):
        if out is None:
            raise InputError(f"the labels of {source} need a place; name it with out")
        return _label(os.fspath(source), os.fspath(out), axes, wanted, conditions, overwrite)
    with tempfile.TemporaryDirectory(prefix=".unetflow-label-", dir=".") as folder:
        path = as_path(source, Path(folder), "source", axes)
        target = str(Path(folder, "labels")) if out is None else os.fspath(out)
        result = _label(path, target, axes, wanted, conditions, overwrite)
        return result if out is not None else _read(target)


@dataclass(frozen=True)
class Wanted:
    """What was asked for: all that the labels depend on, but the source."""

    threshold: float
    connectivity: str
    dims: int | None
    link: bool
    min_size: int
    fill_holes: bool | int
    chunk: Shape | None
    shard: Shape | None


def _whole(lengths: Sequence[int] | None) -> Shape | None:
    return None if lengths is None else tuple(int(n) for n in lengths)


def _label(
    path: str, out: str, axes: str | None, wanted: Wanted, conditions: Conditions, overwrite: bool
) -> LabelResult:
    from unetflow.storage.folders import remove
    from unetflow.storage.volume import open_volume

    volume = open_volume(path, axes=axes)
    if volume.n_channels != 1:
        raise InputError(f"a volume that is labelled must have one channel, got {volume.n_channels} in {path}")
    dims = wanted.dims or min(3, len(volume.spatial_axes))
    linked = linked_axes(volume.grid_axes, dims, link=wanted.link)
    layout = choose_layout(volume.shape, dims, wanted.chunk, wanted.shard)
    refuse_foreign(out, "label", overwrite=overwrite)
    prints = {"input": volume.digest(), "wanted": asdict(wanted)}
    scratch = private_place(out, "labelling")
    with open_work("label", out, prints, conditions, overwrite=overwrite) as work:
        is_new = work.ledger.value("created") is None
        if is_new:
            remove(scratch)
        target = _array(out, volume, layout, "uint32", is_new=is_new, overwrite=overwrite)
        work.ledger.set_value("created", True)
        grid = BlockGrid(volume.box, target.shard or target.chunk)
        part = _Part(work, volume, target, grid, linked, scratch, layout)
        n = work.once("objects", lambda: part.run(wanted))
        remove(scratch)
        return cast(LabelResult, {"out": out, "objects": n, **work.totals()})


@dataclass(frozen=True, eq=False)
class _Part:
    """The one volume that is labelled."""

    work: Work
    source: Volume
    target: Volume
    grid: BlockGrid
    linked: tuple[bool, ...]
    scratch: str
    layout: Layout

    def run(self, wanted: Wanted) -> int:
        """Fill and label; return the number of objects."""
        source, foreground, fill_holes = self.source, Above(wanted.threshold), wanted.fill_holes
        pieces = Pieces((self.grid,))
        only = stored_only(pieces, [source]).numbers if source.fill_value <= wanted.threshold else None
        if fill_holes is not False:
            filled = self.array("filled", "uint8")
            holes = Labelling(source, self.array("background"), self.array("holes"), self.grid, self.linked)
            most = None if fill_holes is True else fill_holes
            fill(self.work, (holes,), (filled,), most, self.scratch, foreground)
            source, only = filled, None
        job = Labelling(source, self.array("fragments"), self.target, self.grid, self.linked)
        [n] = label_volumes(
            self.work, (job,), foreground if source is self.source else is_foreground, connectivity=wanted.connectivity,
            scratch=self.scratch, min_size=wanted.min_size, only=only, widen=self.widen,
        )  # fmt: skip
        return n

    def widen(self, _: int) -> Volume:
        """Create the target anew, for more objects than 32 bits count."""
        return _array(self.target.path, self.source, self.layout, "uint64", is_new=True, overwrite=True)

    def array(self, name: str, dtype: str = "uint32") -> Volume:
        """Create, or find, a temporary array."""
        from unetflow.storage.store import find_node

        path = f"{self.scratch}/{name}"
        return _array(path, self.source, self.layout, dtype, is_new=find_node(path) is None)


@dataclass(frozen=True)
class Above:
    """Where a volume is above a threshold."""

    threshold: float

    def __call__(self, volume: Volume, box: Box) -> npt.NDArray[np.bool_]:
        """Read one box."""
        return np.asarray(volume.read(box)[0] > self.threshold)


def _array(path: str, like: Volume, layout: Layout, dtype: str, *, is_new: bool, overwrite: bool = False) -> Volume:
    from unetflow.storage.volume import create_array, open_volume

    if is_new:
        chunk, shard = layout
        create_array(
            path, axes=like.grid_axes, shape=like.shape, dtype=dtype, chunk=chunk, shard=shard, overwrite=overwrite,
            voxel_size=like.voxel_size, translation=like.translation, unit=like.unit,
        )  # fmt: skip
    return open_volume(path, axes=like.grid_axes)


def _read(path: str) -> npt.NDArray[Any]:
    from unetflow.storage.volume import open_volume

    volume = open_volume(path)
    return np.asarray(volume.read(volume.box)[0])
