"""Find the objects of a segmentation in what was stored of it, and write the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unetflow.geometry import BlockGrid
from unetflow.stages.components import Labelling, is_foreground, label_volumes
from unetflow.stages.holes import fill_holes
from unetflow.stages.layout import linked_axes
from unetflow.stages.linking import Linking, link_axis, link_planes
from unetflow.stages.object_table import Measured, write_object_tables
from unetflow.stages.outputs import widen_instances
from unetflow.stages.pieces import Pieces
from unetflow.stages.stored import stored_only
from unetflow.stages.tables import scratch_array
from unetflow.stages.watershed import Flooding, flood_volumes, seed_depth, with_depths
from unetflow.stages.work import private_place

if TYPE_CHECKING:
    from unetflow.stages.components import Widen
    from unetflow.stages.outputs import Output
    from unetflow.stages.segment_plan import Plan
    from unetflow.stages.work import Work
    from unetflow.storage.volume import Volume


def find_objects(made: Plan, work: Work, outputs: Sequence[Output]) -> tuple[list[int], tuple[Output, ...]]:
    """Write instances and their table; return the number of objects of each image, and the outputs.

    Objects are the components of the stored classes above 0, or, for ``instances = "watershed"``,
    what the seeds flood of them. With ``link = "overlap"`` they are found in each plane by itself and then joined
    over planes where their IoU is at least ``link_iou`` (`unetflow.stages.linking`). Outputs come back with wider
    instances where 32 bits were too few.
    """
    from unetflow.storage.folders import remove

    scratch = private_place(made.out, "labelling")
    if work.ledger.value("scratch") is None:  # what an overwritten run left may be cut otherwise
        remove(scratch)
        work.ledger.set_value("scratch", True)
    found = list(outputs)

    def widen(index: int) -> Volume:
        found[index] = replace(found[index], instances=widen_instances(made, made.images[index]))
        return found[index].instances[0]

    def passes() -> list[int]:
        counts = _label(made, work, outputs, scratch, widen)
        write_object_tables(work, tuple(_measured(made, i, o) for i, o in enumerate(found)), counts, scratch)
        return counts

    return [int(n) for n in work.once("objects", passes)], tuple(found)


def _label(made: Plan, work: Work, outputs: Sequence[Output], scratch: str, widen: Widen) -> list[int]:
    settings = made.settings.segment
    targets = [output.instances[0] for output in outputs]
    if settings.link != "overlap":
        return _find(made, work, outputs, targets, scratch, settings.min_size, widen)
    planar = [_scratch_array(f"{scratch}/planar-{n}", target, "uint64") for n, target in enumerate(targets)]
    counts = _find(made, work, outputs, planar, scratch, 0, None)
    jobs = tuple(
        Linking(p, t, _cut(made, n)[0], link_axis(t.grid_axes))
        for n, (p, t) in enumerate(zip(planar, targets, strict=True))
    )
    asked: dict[str, Any] = {"iou": settings.link_iou, "min_size": settings.min_size, "scratch": scratch}
    return link_planes(work, jobs, counts, widen=widen, **asked)


def _find(
    made: Plan, work: Work, outputs: Sequence[Output], targets: list[Volume], scratch: str, min_size: int,
    widen: Widen | None,
) -> list[int]:  # fmt: skip
    """Write the components, or what is flooded, into targets."""
    settings = made.settings.segment
    common: dict[str, Any] = {"connectivity": settings.connectivity, "min_size": min_size, "scratch": scratch}
    classes = _classes(made, work, outputs, scratch)
    if settings.instances == "watershed":
        floods = tuple(_flooding(made, scratch, n, o, classes[n], targets[n]) for n, o in enumerate(outputs))
        threshold = settings.seed_threshold
        if settings.seeds == "distance":
            depths = tuple(_scratch_array(f"{scratch}/depth-{n}", c, "uint8") for n, c in enumerate(classes))
            floods, threshold = with_depths(work, floods, depths), seed_depth(settings.seed_distance)
        return flood_volumes(
            work,
            floods,
            seed_threshold=threshold,
            seed_size=settings.seed_size,
            widen=widen,
            **common,
        )
    jobs = tuple(
        _labelling(made, f"{scratch}/fragments-{number}", number, classes[number], target)
        for number, target in enumerate(targets)
    )
    pieces = Pieces(tuple(job.grid for job in jobs))
    only = stored_only(pieces, classes).numbers
    return label_volumes(work, jobs, is_foreground, only=only, widen=widen, **common)


def _classes(made: Plan, work: Work, outputs: Sequence[Output], scratch: str) -> list[Volume]:
    """Return the classes that objects are made of: as stored, or with their holes filled."""
    stored = [output.classes[0][0] for output in outputs]
    wanted = made.settings.segment.fill_holes
    if wanted is False:
        return stored
    holes = tuple(
        _labelling(made, f"{scratch}/background-{n}", n, c, _scratch_array(f"{scratch}/holes-{n}", o.instances[0]))
        for n, (c, o) in enumerate(zip(stored, outputs, strict=True))
    )
    filled = tuple(
        _scratch_array(f"{scratch}/filled-{n}", o.instances[0], "uint8") for n, o in enumerate(outputs)
    )
    fill_holes(work, holes, filled, None if wanted is True else wanted, scratch)
    return list(filled)


def _labelling(made: Plan, fragments: str, number: int, classes: Volume, target: Volume) -> Labelling:
    return Labelling(classes, _scratch_array(fragments, target), target, *_cut(made, number))


def _flooding(
    made: Plan, scratch: str, number: int, output: Output, classes: Volume, target: Volume
) -> Flooding:
    instances = output.instances[0]
    grid, linked = _cut(made, number)
    return Flooding(
        # Of no use where seeds are found by distance: depths take their place.
        probabilities=output.probabilities[0] if output.probabilities else classes,
        classes=classes,
        fragments=_scratch_array(f"{scratch}/fragments-{number}", instances),
        seeds=_scratch_array(f"{scratch}/seeds-{number}", instances),
        flooded=_scratch_array(f"{scratch}/flooded-{number}", instances),
        rest=_scratch_array(f"{scratch}/rest-{number}", instances),
        target=target,
        grid=grid,
        linked=linked,
    )


def _measured(made: Plan, number: int, output: Output) -> Measured:
    probabilities = output.probabilities[0] if output.probabilities else None
    folder = made.folder_of(made.images[number])
    linked, axis = list(_cut(made, number)[1]), link_axis(output.instances[0].grid_axes)
    if made.settings.segment.link == "overlap" and axis is not None:
        linked[axis] = True
    return Measured(output.instances[0], probabilities, folder, tuple(linked))


def _cut(made: Plan, number: int) -> tuple[BlockGrid, tuple[bool, ...]]:
    """Return the blocks of an image, and the axes along which its objects hang together."""
    image = made.images[number]
    linked = linked_axes(image.volume.grid_axes, made.spec.dims, link=made.settings.segment.link)
    return BlockGrid(image.domain.relative_to(image.domain), image.shard), linked


def _scratch_array(path: str, like: Volume, dtype: str = "uint32") -> Volume:
    """Create, or find, a temporary array that is cut as another is."""
    return scratch_array(
        path, axes=like.axes, shape=like.shape, dtype=dtype, chunk=like.chunk, shard=like.shard,
        voxel_size=like.voxel_size,
    )  # fmt: skip
