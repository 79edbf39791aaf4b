"""The stores that `segment` writes: one OME-Zarr image per input image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unetflow.stages.predict import Image
    from unetflow.stages.segment_plan import Plan
    from unetflow.stages.work import Work
    from unetflow.storage.volume import Volume

Levels = tuple["Volume", ...]

# Of instances: the second where there are more objects than the first counts.
INSTANCE_TYPES = ("uint32", "uint64")


@dataclass(frozen=True)
class Output:
    """The levels of each array of one output image; empty where it is not wanted.

    ``classes`` has one entry, or one a class for multilabel.
    """

    probabilities: Levels
    classes: tuple[Levels, ...]
    instances: Levels


def create_outputs(made: Plan, work: Work, provenance: dict[str, Any]) -> tuple[Output, ...]:
    """Create the empty stores, or open those of an earlier start."""
    from unetflow.storage import ngff

    is_begun = work.before is not None and work.before.value("created") is not None
    with work.first_start() as ledger:
        is_new = not is_begun and ledger.value("created") is None
        if is_new and made.is_collection:
            ngff.create_group(made.out, {"unetflow": provenance}, overwrite=True)
        outputs = tuple(_create(made, image, provenance, is_new=is_new) for image in made.images)
        ledger.set_value("created", True)
        ledger.flush()
    return outputs


def open_outputs(made: Plan) -> tuple[Output, ...]:
    """Open the stores that a finished run left."""
    return tuple(_create(made, image, {}, is_new=False) for image in made.images)


def label_names(made: Plan) -> list[str]:
    """Name the class label images: ``classes``, or one a class for multilabel."""
    if made.facts["kind"] == "multilabel":
        return [f"class-{k}" for k in range(made.spec.out_channels)]
    return ["classes"]


def _create(made: Plan, image: Image, provenance: dict[str, Any], *, is_new: bool) -> Output:
    from unetflow.storage import ngff
    from unetflow.storage.store import join

    wanted = made.settings.segment.outputs
    root = made.folder_of(image)
    of_image = {"input": image.volume.digest(), "tile": list(image.tile)}
    if image.ratio:
        of_image["resampled_by"] = list(image.ratio)
    attributes = {"unetflow": {**provenance, **of_image}}
    common = _common(image)
    axes = image.volume.grid_axes
    probabilities: Levels = ()
    if "probabilities" in wanted:
        channel_axes = "tc" + axes[1:] if axes.startswith("t") else "c" + axes
        names = [f"class {k}" for k in range(made.spec.out_channels)] if made.spec.out_channels > 1 else ["foreground"]
        probabilities = _image(
            root, is_new=is_new, axes=channel_axes, n_channels=made.spec.out_channels,
            dtype=made.settings.segment.dtype, channel_names=names, attributes=attributes, overwrite=True, **common,
        )  # fmt: skip
    elif is_new:
        ngff.create_group(root, attributes, overwrite=True)
    classes = label_names(made) if {"classes", "instances"} & set(wanted) else []
    labels = [*classes, *(["instances"] if "instances" in wanted else [])]
    if labels and is_new:
        ngff.create_labels_group(root, labels)
    n_classes = 2 if made.facts["kind"] == "multilabel" else made.facts["n_classes"]
    n_colors = {name: 0 if name == "instances" else n_classes for name in labels}
    levels = {
        name: _image(
            join(root, "labels", name), is_new=is_new, axes=axes, label=True,
            dtype=INSTANCE_TYPES[0] if name == "instances" else "uint8",
            n_colors=n_colors[name],
            **common,
        )
        for name in labels
    }  # fmt: skip
    return Output(probabilities, tuple(levels[name] for name in classes), levels.get("instances", ()))


def widen_instances(made: Plan, image: Image) -> Levels:
    """Create the instances of an image anew, for more objects than 32 bits count."""
    from unetflow.storage.store import join

    path = join(made.folder_of(image), "labels", "instances")
    return _image(
        path, is_new=True, axes=image.volume.grid_axes, label=True, dtype=INSTANCE_TYPES[1], n_colors=0,
        overwrite=True, **_common(image),
    )  # fmt: skip


def _common(image: Image) -> dict[str, Any]:
    return {
        "shape": image.domain.shape,
        "chunk": image.chunk,
        "shard": image.shard,
        "voxel_size": image.volume.voxel_size,
        "translation": _translation(image),
        "unit": image.volume.unit,
    }


def _image(path: str, *, is_new: bool, **description: Any) -> Levels:
    from unetflow.storage import ngff
    from unetflow.storage.volume import open_volume

    if is_new:
        return ngff.create_image(path, **description)
    count = len(ngff.get_attributes(path)["ome"]["multiscales"][0]["datasets"])
    return tuple(open_volume(path, level=level) for level in range(count))


def _translation(image: Image) -> list[float]:
    """Place the output where the region of interest lies."""
    n_lead = image.volume.ndim - len(image.volume.spatial_axes)
    start = image.domain.start[n_lead:]
    return [
        t + a * s for t, a, s in zip(image.volume.translation, start, image.volume.voxel_size, strict=True)
    ]
