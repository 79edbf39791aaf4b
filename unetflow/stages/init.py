"""Look at the arrays and write a project file with numbers that suit them, and why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from unetflow.errors import InputError
from unetflow.stages.results import InitResult
from unetflow.stages.template import Choice, render

if TYPE_CHECKING:
    from unetflow.stages.machine import Machine
    from unetflow.storage.volume import Volume

Section = dict[str, Choice]

MIN_PLANES, MAX_RATIO = 16, 4.0  # what a volume needs for a 3-D network to pay


def init(
    raw: str | None = None,
    labels: str | None = None,
    *,
    out: str = "unetflow.toml",
    axes: str | None = None,
    voxel_size: Sequence[float] | None = None,
    overwrite: bool = False,
    machine: Machine | None = None,
) -> InitResult:
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
    overwrite : bool
        Write over an earlier file.
    machine : Machine, optional
        That the numbers are for; absent: this one.

    Returns
    -------
    InitResult
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
    choices, report = propose(raw, labels, folder=path.parent, axes=axes, voxel_size=voxel_size, machine=machine)
    path.write_text(render(choices), encoding="utf-8")
    return cast(InitResult, {"file": str(path), **report})


def propose(
    raw: str | None,
    labels: str | None,
    *,
    folder: Path,
    axes: str | None = None,
    voxel_size: Sequence[float] | None = None,
    machine: Machine | None = None,
) -> tuple[dict[str, Section], dict[str, Any]]:
    """Choose the values of a project file that will lie in ``folder``; nothing is written."""
    if raw is None:
        if labels is not None or axes is not None or voxel_size is not None:
            raise InputError("labels, axes and voxel size describe a raw volume, got none; name it first")
        return {}, {}
    from unetflow.stages.look import Labels, Looks, find_kind, look_at
    from unetflow.stages.machine import find_machine
    from unetflow.stages.proposal import Facts, propose_model, propose_prepare, propose_train
    from unetflow.storage.volume import open_images

    images = list(open_images(raw, axes=axes, voxel_size=voxel_size).values())
    first = images[0]
    data: Section = {"raw": Choice(_relative(raw, folder), _describe(images))}
    kind, n_classes, looks = "instances", 2, Looks()
    if labels is not None:
        data["labels"] = Choice(_relative(labels, folder), "the annotation")
        annotation = Labels(labels, axes=axes)
        found = find_kind(annotation)
        kind, n_classes = found.kind, found.n_classes
        data["kind"] = Choice(kind, found.reason)
        if found.class_map is not None:
            data["class_map"] = Choice(found.class_map, "label value = class index; check the order")
        looks = look_at(annotation, found)
    else:
        data["labels"] = Choice("labels.zarr", "name the annotation here, then set kind")
    data |= _geometry(first, axes, voxel_size)
    dims, reason = _dims(images)
    facts = Facts(
        lengths=tuple(min(image.shape[axis - dims] for image in images) for axis in range(dims)),
        voxel_size=tuple(first.voxel_size[-dims:]),
        lead=len(first.spatial_axes) - dims,
        kind=kind,
        channels=first.n_channels,
        classes=n_classes,
        looks=looks,
    )
    machine = machine or find_machine()
    model = {"dims": Choice(dims, reason), **propose_model(facts, machine)}
    prepare, batch = propose_prepare(facts, model, machine)
    choices = {
        "data": data,
        "model": model,
        "prepare": prepare,
        "train": propose_train(facts, machine, batch),
        "segment": _segment(kind, n_classes),
    }
    if labels is not None:
        _check(choices, folder)
    report = {
        "kind": kind,
        "dims": dims,
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


def _segment(kind: str, n_classes: int) -> Section:
    outputs = Choice(["probabilities", "classes", "instances"], "number the objects too")
    return {"outputs": outputs} if kind == "instances" or (kind == "classes" and n_classes == 2) else {}
