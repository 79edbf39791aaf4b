"""Find the objects of a segmentation in what was stored of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unetflow.geometry import BlockGrid
from unetflow.stages.components import Labelling, is_foreground, label_volumes
from unetflow.stages.layout import linked_axes

if TYPE_CHECKING:
    from unetflow.stages.outputs import Output
    from unetflow.stages.segment_plan import Plan
    from unetflow.stages.work import Work


def find_objects(made: Plan, work: Work, outputs: Sequence[Output]) -> list[int]:
    """Label the components of the stored classes; return the number of objects of each image."""
    from unetflow.storage.volume import create_array, open_volume

    settings = made.settings.segment
    scratch = made.out / ".unetflow" / "labelling"
    jobs = []
    for number, (image, output) in enumerate(zip(made.images, outputs, strict=True)):
        classes, instances = output.classes[0][0], output.instances[0]
        path = scratch / f"fragments-{number}"
        if not path.exists():
            create_array(
                str(path), axes=instances.axes, shape=instances.shape, dtype="uint32",
                chunk=image.chunk, shard=image.shard,
            )  # fmt: skip
        linked = linked_axes(image.volume.grid_axes, made.spec.dims, link=settings.link)
        fragments = open_volume(str(path), axes=instances.axes)
        jobs.append(Labelling(classes, fragments, instances, BlockGrid(classes.box, image.shard), linked))
    return label_volumes(
        work,
        tuple(jobs),
        is_foreground,
        connectivity=settings.connectivity,
        min_size=settings.min_size,
        scratch=scratch,
    )
