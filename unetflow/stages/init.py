"""Look at the arrays and write a project file with numbers that suit them, and why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetflow.errors import InputError
from unetflow.stages.template import Choice, render

if TYPE_CHECKING:
    from unetflow.storage.volume import Volume

Section = dict[str, Choice]

MIN_PLANES, MAX_RATIO = 16, 4.0  # what a volume needs for a 3-D network to pay
PATCH = {2: 192, 3: 48}  # output of a training patch, in voxels of an axis


def init(
    raw: str | None = None,
    labels: str | None = None,
    *,
    out: str = "unetflow.toml",
    axes: str | None = None,
    voxel_size: Sequence[float] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a commented project file.

    Parameters
    ----------
    raw, labels : str, optional
        Zarr arrays, OME-Zarr images or groups of images. Without them every key is commented
        out.
    out : str
        The file to write.
    axes : str, optional
        Axes of the raw array, letters of ``tczyx``, where the metadata have none.
    voxel_size : sequence of float, optional
        Micrometres for each spatial axis, where the metadata have none.

    Returns
    -------
    dict
        file, and with arrays kind, dims and the reason for it, axes, shape, voxel_size, images.

    Raises
    ------
    InputError
        If the file exists, an array is missing, or the arrays do not fit each other.
    """
    path = Path(out)
    if path.exists() and not overwrite:
        raise InputError(f"a project file must not exist yet, got {out}; name another, or give --overwrite")
    if not path.parent.is_dir():
        raise InputError(f"the folder of the project file must exist, got {path.parent}; make it first")
    choices, report = propose(raw, labels, folder=path.parent, axes=axes, voxel_size=voxel_size)
    path.write_text(render(choices), encoding="utf-8")
    return {"file": str(path), **report}


def propose(
    raw: str | None,
    labels: str | None,
    *,
    folder: Path,
    axes: str | None = None,
    voxel_size: Sequence[float] | None = None,
) -> tuple[dict[str, Section], dict[str, Any]]:
    """Choose the values of a project file that will lie in ``folder``; nothing is written."""
    if raw is None:
        if labels is not None or axes is not None or voxel_size is not None:
            raise InputError("labels, axes and voxel size describe a raw volume, got none; name it first")
        return {}, {}
    from unetflow.stages.look import find_kind
    from unetflow.storage.volume import open_images

    images = list(open_images(raw, axes=axes, voxel_size=voxel_size).values())
    first = images[0]
    data: Section = {"raw": Choice(_relative(raw, folder), _describe(images))}
    kind, n_classes = "instances", 2
    if labels is not None:
        data["labels"] = Choice(_relative(labels, folder), "the annotation")
        found = find_kind(labels, axes=axes)
        kind, n_classes = found.kind, found.n_classes
        data["kind"] = Choice(kind, found.reason)
        if found.class_map is not None:
            data["class_map"] = Choice(found.class_map, "label value = class index; check the order")
    else:
        data["labels"] = Choice("labels.zarr", "name the annotation here, then set kind")
    data |= _geometry(first, axes, voxel_size)
    model, reason = _model(images, kind)
    choices = {
        "data": data,
        "model": model,
        "prepare": _prepare(images, model),
        "train": _train(model["dims"].value),
        "segment": _segment(kind, n_classes),
    }
    if labels is not None:
        _check(choices, folder)
    report = {
        "kind": kind,
        "dims": model["dims"].value,
        "axes": first.axes,
        "shape": list(first.shape),
        "voxel_size": list(first.voxel_size),
        "images": len(images),
        "reason": reason,
    }
    return choices, report


def _check(choices: dict[str, Section], folder: Path) -> None:
    """Let `prepare` refuse now what it would refuse later."""
    from unetflow.settings import make_settings
    from unetflow.stages.inputs import open_items

    values: dict[str, Any] = {
        name: {key: choice.value for key, choice in section.items() if not choice.is_note}
        for name, section in choices.items()
    }
    values["data"] = [values["data"]]
    open_items(make_settings(values, folder=str(folder)))


def _relative(path: str, folder: Path) -> str:
    return path if "://" in path else os.path.relpath(path, folder)


def _describe(images: Sequence[Volume]) -> str:
    first = images[0]
    many = f"{len(images)} images, the first " if len(images) > 1 else ""
    channels = f", {first.n_channels} channels" if first.has_channels else ""
    return f"{many}{' x '.join(map(str, first.shape))} voxels ({first.grid_axes}){channels}, {first.dtype}"


def _geometry(first: Volume, axes: str | None, voxel_size: Sequence[float] | None) -> Section:
    """Write axes and voxel size where the user gave them; note what the metadata say."""
    section: Section = {}
    if axes is not None:
        section["axes"] = Choice(axes, "as given; raw and labels without the c")
    else:
        section["axes"] = Choice(first.axes, "what the metadata say, or the default", is_note=True)
    letters = ", ".join(first.spatial_axes)
    if voxel_size is not None:
        section["voxel_size"] = Choice(list(first.voxel_size), f"{letters}, as given")
    elif len(set(first.voxel_size)) > 1 or first.unit:
        reason = f"{letters} from the metadata, in {first.unit or 'micrometer'}"
        section["voxel_size"] = Choice(list(first.voxel_size), reason, is_note=True)
    else:
        reason = f"{letters}; unknown: set it, distances and deformations follow it"
        section["voxel_size"] = Choice(list(first.voxel_size), reason, is_note=True)
    return section


def _model(images: Sequence[Volume], kind: str) -> tuple[Section, str]:
    from unetflow.stages.look import pooling

    dims, reason = _dims(images)
    size = images[0].voxel_size[-dims:]
    lengths = [min(image.shape[axis - dims] for image in images) for axis in range(dims)]
    depth = 3 if min(lengths[-2:]) >= 64 else 2
    pool, kernel = pooling(size, depth)
    section = {
        "dims": Choice(dims, reason),
        "depth": Choice(depth, "a laptop's network: it sees some 80 voxels around, enough for most cells"),
        "base_channels": Choice(
            32 if dims == 2 else 16, "a quarter of the work or less; 64 where there is a GPU"
        ),
        "norm": Choice("batch", "learns in hundreds of steps instead of thousands"),
        "dropout": Choice(0.0, "short training does not over-fit"),
    }
    if dims == 3:
        section["padding"] = Choice("same", "in 3-D the context of unpadded patches costs more than they give")
    if kind == "multilabel":
        section["head"] = Choice("sigmoid", "classes overlap")
    if any(min(window) == 1 for window in pool):
        section["pool"] = Choice(pool, "an axis is pooled only once its voxels are about as long as the others")
        section["kernel"] = Choice(kernel, "and is not convolved before")
    return section, reason


def _dims(images: Sequence[Volume]) -> tuple[int, str]:
    """Choose 3 for stacks that are deep and near enough to cubes."""
    first = images[0]
    if "z" not in first.grid_axes:
        return 2, "there is no z axis"
    planes = min(image.shape[image.grid_axes.index("z")] for image in images)
    ratio = first.voxel_size[0] / min(first.voxel_size[1:])
    if planes < MIN_PLANES:
        return 2, f"plane by plane: {planes} planes are few; 3 needs {MIN_PLANES} or more"
    if ratio >= MAX_RATIO:
        return 2, f"plane by plane: a plane is {ratio:.3g} voxels thick, its neighbours look different"
    return 3, f"{planes} planes, each {ratio:.3g} voxels thick: neighbours help"


def _prepare(images: Sequence[Volume], model: Section) -> Section:
    from unetflow.stages.look import patch_shape

    dims = model["dims"].value
    lengths = [min(image.shape[axis - dims] for image in images) for axis in range(dims)]
    numbers = {key: choice.value for key, choice in model.items()}
    shape = patch_shape(numbers, [min(PATCH[dims], n) for n in lengths])
    lead = [1] * (len(images[0].spatial_axes) - dims)
    return {
        "patches": Choice(500 if dims == 2 else 200, "made in a minute or two; flips and turns add more"),
        "patch_shape": Choice(
            [*lead, *shape], "the network's input; smaller patches, more of them, fit a laptop"
        ),
    }


def _train(dims: int) -> Section:
    return {
        "steps": Choice(400 if dims == 2 else 300, "a quarter of an hour on two cores; more is better"),
        "batch_size": Choice(2, "batch normalisation wants more than one patch"),
        "optimizer": Choice("adam", "needs no tuning of the rate"),
        "learning_rate": Choice(0.001, "of adam with batch normalisation"),
        "schedule": Choice("cosine", "ends at zero, so that the last steps settle"),
        "validate_every": Choice(100, "a look now and then; the best is kept"),
        "brightness": Choice(0.1, "makes up for uneven light"),
        "contrast": Choice(0.1, "the same"),
    }


def _segment(kind: str, n_classes: int) -> Section:
    outputs = Choice(["probabilities", "classes", "instances"], "number the objects too")
    return {"outputs": outputs} if kind == "instances" or (kind == "classes" and n_classes == 2) else {}
