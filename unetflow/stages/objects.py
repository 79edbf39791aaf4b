"""Find the objects of a segmentation in what was stored of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unetflow.geometry import BlockGrid
from unetflow.stages.components import Labelling, is_foreground, label_volumes
from unetflow.stages.layout import linked_axes
from unetflow.stages.pieces import Pieces
from unetflow.stages.stored import stored_only
from unetflow.stages.watershed import Flooding, flood_volumes
from unetflow.stages.work import private_place

if TYPE_CHECKING:
    from unetflow.stages.outputs import Output
    from unetflow.stages.segment_plan import Plan
    from unetflow.stages.work import Work
    from unetflow.storage.volume import Volume


def find_objects(made: Plan, work: Work, outputs: Sequence[Output]) -> list[int]:
    """Write the instances and return the number of objects of each image.

    They are the components of the stored classes above 0, or, for ``instances = "watershed"``,
    what the seeds among the stored probabilities flood of them.
    """
    from unetflow.storage.folders import remove

    settings = made.settings.segment
    scratch = private_place(made.out, "labelling")
    if work.ledger.value("scratch") is None:  # what an overwritten run left may be cut otherwise
        remove(scratch)
        work.ledger.set_value("scratch", True)
    if settings.instances == "watershed":
        return flood_volumes(
            work,
            tuple(_flooding(made, scratch, number, output) for number, output in enumerate(outputs)),
            seed_threshold=settings.seed_threshold,
            seed_size=settings.seed_size,
            connectivity=settings.connectivity,
            min_size=settings.min_size,
            scratch=scratch,
        )
    jobs = tuple(_labelling(made, scratch, number, output) for number, output in enumerate(outputs))
    pieces = Pieces(tuple(job.grid for job in jobs))
    return label_volumes(
        work,
        jobs,
        is_foreground,
        only=stored_only(pieces, [job.source for job in jobs]).numbers,
        connectivity=settings.connectivity,
        min_size=settings.min_size,
        scratch=scratch,
    )


def _labelling(made: Plan, scratch: str, number: int, output: Output) -> Labelling:
    classes, instances = output.classes[0][0], output.instances[0]
    fragments = _scratch_array(f"{scratch}/fragments-{number}", instances)
    return Labelling(classes, fragments, instances, *_cut(made, number))


def _flooding(made: Plan, scratch: str, number: int, output: Output) -> Flooding:
    instances = output.instances[0]
    grid, linked = _cut(made, number)
    return Flooding(
        probabilities=output.probabilities[0],
        classes=output.classes[0][0],
        fragments=_scratch_array(f"{scratch}/fragments-{number}", instances),
        seeds=_scratch_array(f"{scratch}/seeds-{number}", instances),
        flooded=_scratch_array(f"{scratch}/flooded-{number}", instances),
        rest=_scratch_array(f"{scratch}/rest-{number}", instances),
        target=instances,
        grid=grid,
        linked=linked,
    )


def _cut(made: Plan, number: int) -> tuple[BlockGrid, tuple[bool, ...]]:
    """Return the blocks of an image, and the axes along which its objects hang together."""
    image = made.images[number]
    linked = linked_axes(image.volume.grid_axes, made.spec.dims, link=made.settings.segment.link)
    return BlockGrid(image.domain.relative_to(image.domain), image.shard), linked


def _scratch_array(path: str, like: Volume) -> Volume:
    """Create, or find, an array for temporary ids, cut as another is."""
    from unetflow.storage.store import find_node
    from unetflow.storage.volume import create_array, open_volume

    if find_node(path) is None:
        create_array(
            path, axes=like.axes, shape=like.shape, dtype="uint32", chunk=like.chunk, shard=like.shard
        )
    return open_volume(path, axes=like.axes)
